import gzip
import math
from pathlib import Path

import pytest

from speechssl.decode.arpa import read_arpa, write_arpa
from speechssl.errors import LanguageModelError

ARPA = """
made by hand

\\data\\
ngram 1=5
ngram 2=3
ngram 3=1

\\1-grams:
-99\t<s>\t-0.5
-1\t</s>
-2\t<unk>\t-0.1
-0.7\ta\t-0.2
-0.9\te\u0301\t-0.3

\\2-grams:
-0.4\t<s> a\t-0.25
-0.6 a e\u0301 -0.35
-0.8\ta </s>

\\3-grams:
-0.05\t<s> a e\u0301

\\end\\
"""


@pytest.fixture
def arpa(tmp_path: Path) -> Path:
    path = tmp_path / "lm.arpa"
    path.write_text(ARPA, "utf-8")
    return path


@pytest.mark.parametrize(
    ("context", "word", "expected"),
    [
        ("<s> a", "é", -0.05),
        ("<s>", "a", -0.4),
        ("é a", "é", -0.6),  # no é a in the model, so nothing is paid for it
        ("<s> a", "a", -0.25 - 0.2 - 0.7),  # neither <s> a a nor a a
        ("a é", "</s>", -0.35 - 0.3 - 1),
        ("é é", "</s>", -0.3 - 1),
        ("", "é", -0.9),
        ("a a a <s> a", "é", -0.05),  # only the last two count
        ("<s> a", "z", -0.25 - 0.2 - 2),
        ("<s> z", "a", -0.1 - 0.7),  # a word that is not known is <unk> as context too
    ],
)
def test_scores_back_off_as_arpa_says(arpa: Path, context: str, word: str, expected: float) -> None:
    model = read_arpa(arpa)
    assert model.order == 3
    assert model.words == {"a", "é"}
    assert model.score(tuple(context.split()), word) == pytest.approx(expected * math.log(10))


@pytest.mark.parametrize(
    ("unknown", "expected"), [("", -0.9), ("-99\t<unk>\n", -0.9), ("-inf <unk>\n", -0.9), ("-3\t<UNK>\n", -3.0)]
)
def test_unknown_words_always_have_a_probability(tmp_path: Path, unknown: str, expected: float) -> None:
    path = tmp_path / "lm.arpa"
    number = 4 if unknown else 3
    head = f"ngram model of texts\n\\data\\\r\nngram 1= {number}\r\n\\1-grams:\r\n"
    path.write_text(f"{head}-99 <s>\n-0.5  a \t-0.2\n-0.9\tb\n{unknown}\\end\\ ")
    model = read_arpa(path)
    assert model.words == {"a", "b"}
    assert model.score(("a",), "z") == pytest.approx(expected * math.log(10))


def test_saved_and_compressed_models_are_the_same(arpa: Path, tmp_path: Path) -> None:
    model = read_arpa(arpa)
    write_arpa(tmp_path / "again" / "lm.arpa", model)
    again = read_arpa(tmp_path / "again" / "lm.arpa")
    (tmp_path / "lm.arpa.gz").write_bytes(gzip.compress(arpa.read_bytes()))
    for other in again, read_arpa(tmp_path / "lm.arpa.gz"):
        assert other.order == 3
        assert other.entries.keys() == model.entries.keys()
        for ngram, entry in model.entries.items():
            assert other.entries[ngram] == pytest.approx(entry)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (ARPA, "", r"lm\.arpa: expected an ARPA file, which begins with \\data\\, found something else"),
        (ARPA, "a line\n" * 2000, "expected an ARPA file"),
        ("\\end\\", "", r"lm\.arpa:24: expected \\end\\ at the end of the file, found none"),
        ("ngram 2=3", "ngram 2=4", r"as its head says, \[5, 4, 1\], found \[5, 3, 1\]"),
        ("ngram 2=3", "ngram 2=x", r"lm\.arpa:6: expected 'ngram N=COUNT', found 'ngram 2=x'"),
        ("-0.4\t<s> a\t-0.25", "-0.4\ta", r"lm\.arpa:17: expected a logarithm, 2 words and at most a back-off weight"),
        ("-0.7\ta", "0.7\ta", r"lm\.arpa:13: expected a logarithm, 1 word and at most"),
        ("-0.7\ta", "nan\ta", r"lm\.arpa:13: expected a logarithm, 1 word and at most"),
        ("-0.7\ta\t-0.2", "-0.7\ta\tinf", r"lm\.arpa:13: expected a logarithm, 1 word and at most"),
        ("-0.7\ta", "x\ta", r"lm\.arpa:13: expected a logarithm, 1 word and at most"),
    ],
)
def test_what_is_no_arpa_file_is_refused_by_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in ARPA
    path = tmp_path / "lm.arpa"
    path.write_text(ARPA.replace(old, new), "utf-8")
    with pytest.raises(LanguageModelError, match=message):
        read_arpa(path)


def test_files_that_cannot_be_read(arpa: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.gz").write_bytes(gzip.compress(arpa.read_bytes())[:-20])
    damaged = bytearray(gzip.compress(arpa.read_bytes()))
    damaged[-8] ^= 1  # of the checksum
    (tmp_path / "damaged.gz").write_bytes(damaged)
    damaged[20] ^= 255
    (tmp_path / "broken.gz").write_bytes(damaged)
    (tmp_path / "latin1.arpa").write_bytes(ARPA.replace("e\u0301", "é").encode("latin-1"))
    for name, message in (
        ("missing.arpa", "No such file"),
        ("cut.gz", "cut.gz: "),
        ("damaged.gz", "damaged.gz: CRC check failed"),
        ("broken.gz", "broken.gz: "),
        ("latin1.arpa", "expected an ARPA file in UTF-8"),
    ):
        with pytest.raises(LanguageModelError, match=message):
            read_arpa(tmp_path / name)
    with pytest.raises(LanguageModelError, match=r"lm\.arpa.lm\.arpa: "):
        write_arpa(tmp_path / "lm.arpa" / "lm.arpa", read_arpa(arpa))
