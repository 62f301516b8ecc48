"""``speechssl units``: what the outputs of a model will stand for, from texts and manifests."""

from pathlib import Path
from typing import Any

import pytest
from planted import TINY
from typer.testing import CliRunner

from speechssl.__main__ import app
from speechssl.checkpoint.native import save_model
from speechssl.checkpoint.saved_model import ModelDescription
from speechssl.data.manifest import Utterance, write_manifest
from speechssl.data.phonemes import Phonemes
from speechssl.data.pieces import SPACE, Pieces
from speechssl.data.units import BLANK, Letters
from speechssl.data.units_file import load_units
from speechssl.model.ctc import CTCModel


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [*map(str, arguments)])


@pytest.fixture
def texts(tmp_path: Path) -> list[Path]:
    """A manifest and a text."""
    spoken, silent = Utterance(str(tmp_path / "a.wav"), 100, text="bad cab"), Utterance(str(tmp_path / "b.wav"), 100)
    write_manifest(tmp_path / "train.tsv", [spoken, silent], ".")
    (tmp_path / "book.txt").write_text("A bad cab, a cab!\nDead bead\n", "utf-8")
    return [tmp_path / "train.tsv", tmp_path / "book.txt"]


def test_letters_of_manifests_and_texts(texts: list[Path], tmp_path: Path) -> None:
    result = run("units", *texts, "--kind", "letters", "--normalize", "-o", tmp_path / "v.json")
    assert result.exit_code == 0, result.output
    assert result.stderr == f"{tmp_path / 'v.json'}: 7 letters\n"
    assert load_units(tmp_path / "v.json") == Letters.from_texts(["abcde"])


def test_pieces(texts: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece")
    result = run("units", *texts, "--size", 9, "--normalize", "-o", tmp_path / "v.json")
    assert result.exit_code == 0, result.output
    units = load_units(tmp_path / "v.json")
    assert isinstance(units, Pieces)
    assert {BLANK, SPACE, *"abcde"} < {*units.symbols}
    assert len(units) == 9
    before = (tmp_path / "v.json").read_bytes()
    refused = run("units", *texts, "--size", 3, "--normalize", "-o", tmp_path / "v.json")
    assert refused.exit_code == 1
    assert refused.stderr == "error: pieces: expected at least 7, one a character, found 3\n"
    assert (tmp_path / "v.json").read_bytes() == before


def test_phonemes(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("h/ə l\nəʊ\n", "utf-8")
    assert run("units", tmp_path / "p.txt", "--kind", "phonemes", "-o", tmp_path / "v.json").exit_code == 0
    assert load_units(tmp_path / "v.json") == Phonemes.from_texts(["h/ə l əʊ"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--kind", "letters", "--size", 9, "-o", "v.json"), "--kind letters: expected neither --size nor"),
        (("--kind", "phonemes", "--normalize", "-o", "v.json"), "--kind phonemes: expected neither --size nor"),
        (("--kind", "letters", "-o", "book.txt"), "book.txt: expected another file than those with the texts"),
        (("nothing.txt", "-o", "v.json"), "nothing.txt: No such file"),
    ],
)
def test_what_is_refused(
    arguments: tuple[object, ...], message: str, texts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("units", "book.txt", *arguments)
    assert (result.exit_code, result.stderr.startswith(f"error: {message}")) == (1, True), result.stderr
    assert not (tmp_path / "v.json").exists()


def test_inspect_says_what_they_are(tmp_path: Path) -> None:
    units = Pieces((BLANK, SPACE, "a", f"{SPACE}ab"), (0.0, -1.0, -2.0, -3.0))
    model = CTCModel(TINY, len(units))
    save_model(tmp_path, ModelDescription(kind="ctc", step=1, encoder=TINY), model.state_dict(), units)
    result = run("inspect", tmp_path)
    expected = f"pieces, 4 symbols, blank '{BLANK}' (number 0), between words '{SPACE}', special none: a {SPACE}ab\n"
    assert expected in result.stdout
