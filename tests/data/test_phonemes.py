"""Phonemes as units, given in texts, and made from words by a stand-in for espeak-ng."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from speechssl.__main__ import app
from speechssl.data.manifest import Utterance, read_manifest, write_manifest
from speechssl.data.phonemes import Phonemes
from speechssl.data.units import BLANK, WORD_DELIMITER
from speechssl.data.units_file import load_units
from speechssl.errors import ManifestError

PHONEMES = ["t", "ʃ", "tʃ", "ax-h", "AH0", "ɜː", "d_h"]
WORDS = st.lists(st.sampled_from(PHONEMES), min_size=1, max_size=4).map("/".join)


@given(st.lists(WORDS, min_size=1, max_size=5).map(" ".join))
def test_texts_come_back(text: str) -> None:
    units = Phonemes.from_texts([text])
    labels = units.encode(text)
    assert units.decode(labels) == text
    assert units.decode([units.blank_id, *labels]) == text
    assert sum(units.word_starts(labels)) == len(text.split())


def test_a_phoneme_is_what_stands_between_spaces_and_slashes() -> None:
    units = Phonemes.from_texts(["t/ʃ tʃ", "ax-h"])
    assert units.symbols == (BLANK, WORD_DELIMITER, "ax-h", "t", "tʃ", "ʃ")
    assert units.encode("tʃ t/ʃ") == [4, 1, 3, 5, 1]
    assert units.word_starts([0, 1, 3, 0, 5, 1, 1, 4]) == [False, False, True, False, False, False, False, True]
    assert units.unknown_characters("t/X//t tʃʃ") == ("", "X", "tʃʃ")
    with pytest.raises(ManifestError, match=r"expected phonemes .* found 'X' \(U\+0058\), 'oʊ' in 't/X oʊ'"):
        units.encode("t/X oʊ")


def test_without_word_boundaries_each_is_a_word() -> None:
    units = Phonemes.from_texts(["sh iy", "hh"])
    assert (units.symbols, units.delimiter_id) == ((BLANK, "hh", "iy", "sh"), None)
    assert units.encode("sh iy sh") == [3, 2, 3]
    assert units.decode([3, 0, 2, 2, 3]) == "sh iy iy sh"
    assert units.word_starts([3, 0, 2, 3]) == [True, False, True, True]
    assert units.unknown_characters("sh/iy") == ("sh/iy",), "a word of several would lose its borders"


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([" "], "expected texts of phonemes to build a vocabulary from, found none"),
        (["t/a", "t//a"], "none of them empty, .* found 't//a'"),
        (["/"], "found '/'"),
        (["t | a"], r"found '\|'"),
        ([f"t/{BLANK}"], f"found 't/{BLANK}'"),
    ],
)
def test_texts_that_give_no_vocabulary(texts: list[str], message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        Phonemes.from_texts(texts)


@pytest.mark.parametrize("text", ["t/ʃ tʃ", "sh iy"])
def test_they_come_back_from_their_file(text: str, tmp_path: Path) -> None:
    units = Phonemes.from_texts([text])
    units.save(tmp_path / "vocab.json")
    assert load_units(tmp_path / "vocab.json") == units


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Recordings that are never read, in a folder beside that of the result."""
    (tmp_path / "corpus").mkdir()
    path = tmp_path / "corpus" / "train.tsv"
    texts = ["hello  world", None, "a"]
    recordings = [Utterance(str(tmp_path / "corpus" / f"{n}.wav"), 100, text=text) for n, text in enumerate(texts)]
    write_manifest(path, recordings, ".")
    return path


@pytest.fixture
def espeak(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A stand-in for phonemizer that takes each letter for a phoneme; returns what it was asked."""
    asked: list[dict[str, Any]] = []

    def phonemize(text: list[str], *, separator: Any, **options: Any) -> list[str]:
        asked.append({"text": text, **options})
        if options["language"] == "xx":
            raise RuntimeError('language "xx" is not supported by the espeak backend')
        return [separator["word"].join(map(separator["phone"].join, line.split())) for line in text]

    package, part = ModuleType("phonemizer"), ModuleType("phonemizer.separator")
    package.phonemize, part.Separator = phonemize, dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "phonemizer", package)
    monkeypatch.setitem(sys.modules, "phonemizer.separator", part)
    return asked


def phonemize(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["phonemize", *map(str, arguments)])


def test_a_manifest_in_phonemes(manifest: Path, espeak: list[dict[str, Any]], tmp_path: Path) -> None:
    result = phonemize(manifest, "--voice", "en-us", "-o", tmp_path / "phonemes.tsv")
    assert result.exit_code == 0, result.output
    before, after = read_manifest(manifest), read_manifest(tmp_path / "phonemes.tsv")
    assert [utterance.text for utterance in after] == ["h/e/l/l/o w/o/r/l/d", None, "a"]
    assert [utterance.path for utterance in after] == [utterance.path for utterance in before]
    [asked] = espeak
    assert (asked["text"], asked["language"]) == (["hello world", "", "a"], "en-us")
    assert asked["preserve_empty_lines"], "or texts would move to other recordings"


def test_what_phonemize_refuses(
    manifest: Path, espeak: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert espeak == []
    result = phonemize(manifest, "--voice", "en-us", "-o", manifest)
    assert (result.exit_code, "expected another file" in result.stderr) == (1, True)
    result = phonemize(manifest, "--voice", "xx", "-o", tmp_path / "x.tsv")
    assert result.exit_code == 1
    assert "expected espeak-ng on this machine and one of its voices" in result.stderr
    assert "found 'xx': language \"xx\" is not supported" in result.stderr
    monkeypatch.setitem(sys.modules, "phonemizer", None)
    result = phonemize(manifest, "--voice", "en-us", "-o", tmp_path / "x.tsv")
    assert result.stderr == "error: phonemize needs the package phonemizer: pip install 'speechssl[phonemes]'\n"
    assert not (tmp_path / "x.tsv").exists()
