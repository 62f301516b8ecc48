import io
import os
import re
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from speechssl.data.manifest import Utterance, write_manifest
from speechssl.errors import AudioError, ManifestError
from speechssl.transcribe.inputs import InputFile, Reference, find_inputs, read_references


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with names of recordings and of other files."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "a.wav",
        "talks/b.FLAC",
        "talks/2/c.mp3",
        "talks/2/notes.txt",
        "talks/.d.wav",
        "empty/x.txt",
        "[1].wav",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def found(*paths: str) -> list[tuple[str, str]]:
    sources, errors = find_inputs(paths)
    assert not errors
    return [(source.path, source.name) for source in sources]


def test_files_come_in_the_order_given_each_once(folder: Path) -> None:
    assert found("talks/b.FLAC", "a.wav", "./a.wav", str(folder / "a.wav"), "talks/../a.wav") == [
        ("talks/b.FLAC", "b"),
        ("a.wav", "a"),
    ]


def test_folders_are_searched_and_keep_their_subfolders(folder: Path) -> None:
    assert found("talks") == [("talks/2/c.mp3", "2/c"), ("talks/b.FLAC", "b")]
    assert found("talks/2/c.mp3", "talks/") == [("talks/2/c.mp3", "c"), ("talks/b.FLAC", "b")]


def test_recordings_of_one_name_are_told_apart_by_their_folders(folder: Path) -> None:
    for name in ("x/1/a.wav", "x/2/a.flac", "y/a.wav", "y/b.wav", "y/b.mp3"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    assert found("x/1", "x/2") == [("x/1/a.wav", "1/a"), ("x/2/a.flac", "2/a")]
    assert found("x/1/a.wav", "y/a.wav", "talks/b.FLAC") == [
        ("x/1/a.wav", "x/1/a"),
        ("y/a.wav", "y/a"),
        ("talks/b.FLAC", "b"),
    ]
    assert found("a.wav", str(folder / "y" / "a.wav")) == [("a.wav", "a"), (str(folder / "y" / "a.wav"), "y/a")]
    assert found("x", "y/a.wav") == [("x/1/a.wav", "1/a"), ("x/2/a.flac", "2/a"), ("y/a.wav", "a")]
    assert found("y/b.wav", "y/b.mp3") == [("y/b.wav", "b"), ("y/b.mp3", "b")]  # no folder tells these apart


def test_patterns_are_expanded_if_no_file_has_that_name(folder: Path) -> None:
    assert found("*.wav") == [("[1].wav", "[1]"), ("a.wav", "a")]
    assert found("talks/**/*.mp3") == [("talks/2/c.mp3", "c")]
    assert found("t?lks") == found("talks")
    assert found("[1].wav") == [("[1].wav", "[1]")]
    assert {path for path, _ in found("talks/**")} == {"talks/b.FLAC", "talks/2/c.mp3", "talks/2/notes.txt"}


def test_a_missing_file_is_found_out_when_it_is_read(folder: Path) -> None:
    (source,), errors = find_inputs(["nowhere.wav"])
    assert not errors
    with pytest.raises(AudioError, match=r"nowhere\.wav: expected an audio file, found none"):
        list(source.open())


def test_folders_and_patterns_without_recordings_are_errors(folder: Path) -> None:
    sources, errors = find_inputs(["empty", "a.wav", "*.ogg"])
    assert [source.path for source in sources] == ["a.wav"]
    assert [str(error) for error in errors] == [
        "empty: expected recordings, found none",
        "*.ogg: expected recordings, found none",
    ]


@pytest.mark.parametrize("pattern", ["closed", "closed/*.wav", "**/*.wav", "."])
def test_a_folder_that_cannot_be_read_is_an_error(folder: Path, pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "closed").mkdir()
    (folder / "closed" / "z.wav").touch()
    original = os.scandir

    def refuse(path: Any) -> Any:
        if Path(path) == Path("closed"):
            raise PermissionError(13, "Permission denied", path)
        return original(path)

    monkeypatch.setattr(os, "scandir", refuse)  # root may read everything
    inputs, errors = find_inputs([pattern])
    [error] = map(str, errors)
    assert error.endswith("closed: expected a folder that may be read: Permission denied")
    assert not any("z.wav" in file.path for file in inputs)
    assert bool(inputs) == (pattern in ("**/*.wav", "."))


def test_names_stay_in_their_line(folder: Path) -> None:
    _, errors = find_inputs(["a\nb*", "c\td*"])
    assert [str(error).partition(":")[0] for error in errors] == [r"a\nb*", r"c\td*"]
    [[file], _] = find_inputs(["a\tb\n.wav"])
    assert (file.path, file.label) == ("a\tb\n.wav", r"a\tb\n.wav")


def test_names_that_are_no_utf8(folder: Path) -> None:
    (folder / os.fsdecode(b"caf\xe9.wav")).touch()
    assert (os.fsdecode(b"caf\xe9.wav"), os.fsdecode(b"caf\xe9")) in found("*.wav")


def test_a_dash_is_standard_input(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "-").touch()
    assert found("-", "./-", "-") == [("-", "stdin"), ("./-", "-")]
    samples = np.linspace(-0.5, 0.5, 1600, dtype=np.float32)
    recording = io.BytesIO()
    soundfile.write(recording, samples, 16_000, format="WAV", subtype="FLOAT")
    recording.seek(0)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=recording))
    np.testing.assert_array_equal(np.concatenate(list(InputFile("-", "stdin").open())), samples)
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(AudioError, match="<stdin>: expected audio, found it closed"):
        InputFile("-", "stdin").open()


def test_a_part_of_a_channel(tmp_path: Path) -> None:
    left = np.linspace(0, 0.5, 16_000, dtype=np.float32)
    soundfile.write(tmp_path / "a.wav", np.stack([left, -left], axis=1), 16_000, subtype="FLOAT")
    (source,), _ = find_inputs([str(tmp_path / "a.wav")], channel=2, start=0.25, end=0.5)
    np.testing.assert_array_equal(np.concatenate(list(source.open())), -left[4000:8000])


def test_references_from_a_folder(folder: Path) -> None:
    texts = folder / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("one\n two\n", "utf-8")
    (folder / "talks/2/c.txt").write_text("где", "utf-8")
    sources, _ = find_inputs(["a.wav", "talks/2"])
    a, c = sources
    with pytest.warns(UserWarning, match=r"texts: expected a text for talks/2/c\.mp3, found none"):
        assert read_references(texts, sources) == {a: Reference("one two")}
    with pytest.raises(ManifestError, match=r"texts: expected a text for talks/2/c\.mp3, found none"):
        read_references(texts, [c])
    (texts / "c.txt").write_text("there", "utf-8")
    assert read_references(texts, sources) == {a: Reference("one two"), c: Reference("there")}
    assert read_references(folder / "talks", [c]) == {c: Reference("где")}  # beside the recording
    (texts / "c.txt").write_text("\n", "utf-8")  # nothing is said
    assert read_references(texts, sources) == {a: Reference("one two"), c: Reference("")}


def test_references_keep_their_subfolders_and_are_of_one_recording(folder: Path) -> None:
    texts = folder / "texts"
    x, y = InputFile("in/x/a.wav", "x/a"), InputFile("in/y/a.wav", "y/a")
    for name in ("a", "x/a"):
        (texts / name).parent.mkdir(parents=True, exist_ok=True)
        (texts / f"{name}.txt").write_text(name, "utf-8")
    assert read_references(texts, [x]) == {x: Reference("x/a")}
    assert read_references(texts, [y]) == {y: Reference("a")}
    with pytest.warns(UserWarning, match="in/y/a.wav"):  # which of the two said it?
        assert read_references(texts, [x, y]) == {x: Reference("x/a")}


def test_references_from_a_manifest(folder: Path) -> None:
    utterances = [
        Utterance(str(folder / "talks/b.FLAC"), 5, start=9, text="later"),
        Utterance(str(folder / "talks/b.FLAC"), 5, text="first"),
        Utterance(str(folder / "a.wav"), 5, text="one", language="tr"),
        Utterance(str(folder / "talks/2/c.mp3"), 5),
    ]
    write_manifest(folder / "said.tsv", utterances, ".")
    sources = find_inputs(["a.wav", "talks/b.FLAC", "talks/2"])[0]
    found = list(read_references(folder / "said.tsv", sources).values())
    assert found == [Reference("one", "tr"), Reference("first later"), Reference("")]
    with pytest.raises(ManifestError, match="expected a text for"):
        read_references(folder / "said.tsv", find_inputs(["nowhere.wav"])[0])
    write_manifest(folder / "said.tsv", utterances[-1:], ".")  # without any text
    with pytest.raises(ManifestError, match="expected a text for"):
        read_references(folder / "said.tsv", sources)


def test_references_from_labels_of_other_forms(folder: Path) -> None:
    sources = find_inputs(["a.wav", "talks/b.FLAC"])[0]
    rows = [
        "file;start;text;lang",
        "b;9,5;later;tr",
        "TALKS/b.flac;0:01,5;first;tr",
        "a.wav;;;",
        "c.wav;;no;",
        "a.wav;-1;no;",
    ]
    (folder / "said.csv").write_text("\n".join(rows), "utf-8")
    with pytest.warns(UserWarning, match=r"said\.csv: 1 label not used, such as times that make no span: .*:6$"):
        found = list(read_references(folder / "said.csv", sources).values())
    assert found == [Reference(""), Reference("first later", "tr")]
    (folder / "talks" / "b.srt").write_text("0:05 --> 0:06\nb\n\n0:01 --> 0:02\na\n")
    assert read_references(folder / "talks" / "b.srt", sources[1:]) == {sources[1]: Reference("a b")}
    (folder / "said.tsv").write_text("path\ttext\na.wav\tone\n")
    assert read_references(folder / "said.tsv", sources[:1]) == {sources[0]: Reference("one")}


CONTAINERS = {"wav": {}, "flac": {}, "ogg": {}, "aiff": {}, "mp3": {"format": "MP3"}}


def contents(suffix: str) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (1000, 2))
    soundfile.write(file, noise, 16_000, **{"format": suffix.upper(), **CONTAINERS[suffix]})
    return file.getvalue()


@pytest.mark.parametrize("suffix", CONTAINERS)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_are_read_or_refused_on_one_line(tmp_path: Path, suffix: str, data: st.DataObject) -> None:
    content = bytearray(contents(suffix))
    positions = st.one_of(st.integers(0, min(120, len(content)) - 1), st.integers(0, len(content) - 1))
    damage = st.lists(st.tuples(positions, st.one_of(st.sampled_from([0, 127, 255]), st.integers(0, 255))), max_size=6)
    for position, byte in data.draw(damage):
        content[position] = byte
    path = tmp_path / f"damaged.{suffix}"
    path.write_bytes(content[: data.draw(st.one_of(st.none(), st.integers(0, len(content))))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            waveform = np.concatenate(list(InputFile(str(path), "damaged").open()))
        except AudioError as error:
            message, waveform = str(error), np.zeros(1, np.float32)
        else:
            message = f"{path}: fine"
    assert re.fullmatch(f"{re.escape(str(path))}: [^\n]+", message)
    assert np.isfinite(waveform).all()
