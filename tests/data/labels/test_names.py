import unicodedata
from pathlib import Path

import pytest

from speechssl.data.labels.names import RecordingNames


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of recordings, and another to work in."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    for name in (
        "a.wav",
        "two  blanks\u00a0.wav",
        unicodedata.normalize("NFD", "é.wav"),
        "x/Big.WAV",
        "x/1.flac",
        "y/1.flac",
    ):
        (tmp_path / "corpus" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "corpus" / name).touch()
    return tmp_path / "corpus"


@pytest.mark.parametrize(
    ("written", "name", "way"),
    [
        ("a.wav", "a.wav", None),
        ("x/../a.wav", "a.wav", None),
        ("two  blanks\u00a0.wav", "two  blanks\u00a0.wav", None),
        ("two blanks .wav", None, None),
        (" a.wav ", "a.wav", "without blanks around it or backslashes"),
        ("x\\1.flac", "x/1.flac", "without blanks around it or backslashes"),
        ("é.wav", unicodedata.normalize("NFD", "é.wav"), "by the composed form of its letters"),
        ("X/big.wav", "x/Big.WAV", "in another letter case"),
        ("x/big", "x/Big.WAV", "without its suffix"),
        ("x/big.mp3", "x/Big.WAV", "without its suffix"),
        ("x\\BIG.mp3", "x/Big.WAV", "without its suffix"),
        ("big", "x/Big.WAV", "in another folder"),
        ("z/big.wav", None, None),  # another's may be called so
        ("1.flac", None, None),  # which of the two?
        ("x/1.0", None, None),
        ("", None, None),
        ("\0", None, None),
        ("a" * 5000, None, None),
    ],
)
def test_a_recording_is_found_as_it_is_called(
    corpus: Path, capsys: pytest.CaptureFixture[str], written: str, name: str | None, way: str | None
) -> None:
    names = RecordingNames([path for path in sorted(corpus.rglob("*")) if path.is_file()], [corpus])
    assert names.find(written) == (None if name is None else corpus / name)
    names.report("labels.csv")
    said = capsys.readouterr().err.splitlines()
    if name is None:
        assert said == [
            f"labels.csv: what is missing was looked for in {corpus}, {Path.cwd()}, in any letter case and Unicode "
            "form and without suffix; what names no folder, in all of them"
        ]
        assert names.describe(written) == f"{written!r} not in {corpus}, {Path.cwd()}"
    else:
        assert said == ([] if way is None else [f"labels.csv: 1 found {way}, such as {written!r} for {corpus / name}"])


def test_from_the_labels_and_the_working_folder(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (corpus.parent / "labels").mkdir()
    names = RecordingNames([corpus / "a.wav"], [corpus, corpus.parent / "labels"])
    for name in ("labels/own.wav", "work/here.wav"):
        (corpus.parent / name).touch()
    assert names.find("nowhere.wav", "own.wav") == corpus.parent / "labels/own.wav"
    assert names.find("../corpus/A.wav") == corpus / "a.wav"
    assert names.find("here.wav") == names.find("here.wav") == corpus.parent / "work/here.wav"
    assert names.find(str(corpus / "a.wav")) == corpus / "a.wav"
    names.report("l")
    said = capsys.readouterr().err
    assert f"l: 1 found from the working folder, such as 'here.wav' for {corpus.parent}/work/here.wav\n" in said
    assert "own.wav" not in said
