import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechssl.data.units import Letters, num_frames_needed
from speechssl.errors import CheckpointError, ManifestError
from speechssl.files import write_text_file

LETTERS = st.characters(categories=["L", "M", "N"])
TEXTS = st.lists(st.text(LETTERS, min_size=1, max_size=8), min_size=1, max_size=6).map(" ".join)


def test_the_order_of_the_symbols() -> None:
    vocabulary = Letters.from_texts(["it's", "a b"])
    assert vocabulary.symbols == ("<blank>", "|", "'", "a", "b", "i", "s", "t")
    assert (vocabulary.blank_id, vocabulary.delimiter_id, len(vocabulary)) == (0, 1, 8)


def test_every_word_ends_with_the_delimiter() -> None:
    vocabulary = Letters.from_texts(["ab"])
    assert vocabulary.encode("ab  a") == [2, 3, 1, 2, 1]
    assert vocabulary.encode(" ") == []


def test_decoding_drops_blanks_and_keeps_repeats() -> None:
    vocabulary = Letters.from_texts(["ab"])
    assert vocabulary.decode([0, 1, 2, 2, 0, 2, 1, 1, 3, 1, 0]) == "aaa b"
    assert vocabulary.decode([]) == ""


def test_russian() -> None:
    text = "нажмите один ещё раз"
    vocabulary = Letters.from_texts([text])
    assert vocabulary.decode(vocabulary.encode(text)) == text
    decomposed = unicodedata.normalize("NFD", text)
    assert decomposed != text
    assert vocabulary.encode(decomposed) == vocabulary.encode(text)
    assert Letters.from_texts([decomposed]) == vocabulary


@given(st.lists(TEXTS, min_size=1, max_size=4))
def test_texts_of_any_script_come_back(texts: list[str]) -> None:
    vocabulary = Letters.from_texts(texts)
    for text in texts:
        expected = " ".join(unicodedata.normalize("NFC", text).split())
        assert vocabulary.decode(vocabulary.encode(text)) == expected
        assert vocabulary.unknown_characters(text) == ""


def test_unknown_characters_are_named() -> None:
    vocabulary = Letters.from_texts(["abc"])
    with pytest.raises(ManifestError) as caught:
        vocabulary.encode("a|cé b")
    assert str(caught.value) == ("expected characters of the vocabulary, found '|' (U+007C), 'é' (U+00E9) in 'a|cé b'")
    assert vocabulary.unknown_characters("zab y") == "yz"


def test_texts_that_give_no_vocabulary() -> None:
    with pytest.raises(ManifestError, match=r"expected texts without '[|]', found 'a[|]b'"):
        Letters.from_texts(["a|b"])
    with pytest.raises(ManifestError, match=r"expected texts to build a vocabulary from, found no letter"):
        Letters.from_texts(["", "  "])


def test_save_and_load(tmp_path: Path) -> None:
    vocabulary = Letters.from_texts(["два", "one"])
    path = tmp_path / "vocab.json"
    vocabulary.save(path)
    assert json.loads(path.read_text("utf-8"))["<blank>"] == 0
    assert Letters.load(path) == vocabulary
    assert [entry.name for entry in tmp_path.iterdir()] == ["vocab.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "expected an object of symbols numbered 0, 1, 2, ..."),
        ('{"<blank>": 0, "|": 2}', "expected an object of symbols numbered 0, 1, 2, ..."),
        ('{"a": 0, "b": 1}', "expected | and one of <blank>, <pad>, [PAD] among the symbols, found ('a', 'b')"),
        ('{"<blank>": 0, "|": 1, "a": 1}', "expected an object of symbols numbered 0, 1, 2, ..."),
        ('{"<blank>": false, "|": true}', "expected an object of symbols numbered 0, 1, 2, ..."),
        ("{", "expected JSON: "),
    ],
)
def test_files_that_are_no_vocabulary(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "vocab.json"
    path.write_text(content)
    with pytest.raises(CheckpointError) as caught:
        Letters.load(path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_a_vocabulary_of_another_toolkit(tmp_path: Path) -> None:
    ids = {"E": 5, "|": 4, "<unk>": 3, "H": 6, "<s>": 1, "L": 7, "O": 8, "<pad>": 0, "</s>": 2, "'": 9}
    path = tmp_path / "vocab.json"
    path.write_text(json.dumps(ids))
    units = Letters.load(path)
    assert (units.blank_id, units.delimiter_id, units.special_ids, len(units)) == (0, 4, {0, 1, 2, 3}, 10)
    labels = units.encode("hello hOLE'")
    assert labels == [6, 5, 7, 7, 8, 4, 6, 8, 7, 5, 9, 4]
    assert units.decode([1, 0, *labels, 3, 2]) == "HELLO HOLE'"
    assert units.unknown_characters("hex?") == "?x"
    units.save(path)
    assert Letters.load(path) == units


def test_capitals_do_not_stand_for_lower_case() -> None:
    assert Letters.from_texts(["abc"]).unknown_characters("aB") == "B"
    both = Letters.from_texts(["aA"])
    assert both.decode(both.encode("aA Aa")) == "aA Aa"


def test_words_start_behind_delimiters() -> None:
    units = Letters(("<s>", "a", "|", "<pad>", "b"))
    assert units.word_starts([1, 4, 2, 2, 4, 2]) == [True, False, False, False, True, False]
    assert units.word_starts([2, 0, 3, 1, 0, 1, 3, 1]) == [False, False, False, True, False, False, False, False]


def test_a_missing_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"vocab.json: No such file or directory"):
        Letters.load(tmp_path / "vocab.json")


@pytest.mark.parametrize(("labels", "frames"), [([], 0), ([2], 1), ([2, 3, 2], 3), ([2, 2, 2, 1], 6)])
def test_equal_neighbors_need_a_blank_between_them(labels: list[int], frames: int) -> None:
    assert num_frames_needed(labels) == frames


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text_file(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text_file(path, "new \ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
