import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from speechssl.__main__ import app
from speechssl.data import unpack as unpack_module
from speechssl.data.audio import Waveform
from speechssl.data.manifest import Utterance, read_manifest, read_utterance, write_manifest
from speechssl.data.recording import Recording, read_audio
from speechssl.data.unpack import unpack_manifests
from speechssl.errors import ManifestError


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    (folder / "a").mkdir(parents=True)
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (44_100, 2))
    soundfile.write(folder / "a" / "one.flac", noise, 44_100)
    soundfile.write(folder / "two.ogg", noise[:8000, 0], 16_000)
    utterances = [
        Utterance(str(folder / "a" / "one.flac"), 22_050, start=11_025, sample_rate=44_100, text="eins", speaker="s"),
        Utterance(str(folder / "two.ogg"), 8000, text="zwei", language="de"),
    ]
    write_manifest(folder / "train.tsv", utterances, ".")
    write_manifest(folder / "dev.tsv", utterances[1:], ".")
    return folder


def unpack(corpus: Path, out: Path) -> str:
    result = CliRunner().invoke(app, ["unpack", str(corpus / "train.tsv"), str(corpus / "dev.tsv"), "-o", str(out)])
    assert result.exit_code == (1 if result.stderr else 0)
    return result.stderr


def test_copies_sound_like_the_recordings_and_keep_their_rows(corpus: Path, tmp_path: Path) -> None:
    assert unpack(corpus, tmp_path / "out") == ""
    first, second = read_manifest(tmp_path / "out" / "train.tsv")
    assert (first.text, first.speaker, second.text, second.language) == ("eins", "s", "zwei", "de")
    assert (first.start, first.num_samples, first.sample_rate) == (4000, 8000, 16_000)
    whole = read_audio(corpus / "a" / "one.flac")
    np.testing.assert_allclose(read_utterance(first), whole[4000:12_000], atol=1e-4)
    np.testing.assert_allclose(read_utterance(second), read_audio(corpus / "two.ogg"), atol=1e-4)
    assert read_manifest(tmp_path / "out" / "dev.tsv")[0].path == second.path


def test_copies_that_are_there_are_kept(corpus: Path, tmp_path: Path) -> None:
    unpack(corpus, tmp_path / "out")
    copies = sorted((tmp_path / "out" / "audio").rglob("*.wav"))
    assert [str(copy.relative_to(tmp_path / "out" / "audio")) for copy in copies] == ["a/one.flac.wav", "two.ogg.wav"]
    copies[0].unlink()
    before = copies[1].stat().st_mtime_ns
    unpack(corpus, tmp_path / "out")
    assert copies[0].exists()
    assert copies[1].stat().st_mtime_ns == before
    assert not list((tmp_path / "out").rglob("*.tmp"))


@pytest.mark.parametrize("age", [-1000, 1000])  # older than the copy, as after `cp -p`, and newer
def test_a_recording_that_was_replaced_is_decoded_again(corpus: Path, tmp_path: Path, age: int) -> None:
    unpack(corpus, tmp_path / "out")
    recording = corpus / "two.ogg"
    changed = recording.stat().st_mtime_ns + age * 10**9
    soundfile.write(recording, np.random.default_rng(1).uniform(-0.5, 0.5, 8000), 16_000)
    os.utime(recording, ns=(changed, changed))
    unpack(corpus, tmp_path / "out")
    (copy,) = read_manifest(tmp_path / "out" / "dev.tsv")
    np.testing.assert_allclose(read_utterance(copy), read_audio(recording), atol=1e-4)


def test_a_copy_of_another_recording_is_not_taken(corpus: Path, tmp_path: Path) -> None:
    unpack(corpus, tmp_path / "out")
    other = Path(shutil.copytree(corpus, tmp_path / "other"))
    status = (other / "two.ogg").stat()
    soundfile.write(other / "two.ogg", np.random.default_rng(1).uniform(-0.5, 0.5, 8000), 16_000)
    os.utime(other / "two.ogg", ns=(status.st_atime_ns, status.st_mtime_ns))
    unpack(other, tmp_path / "out")
    (copy,) = read_manifest(tmp_path / "out" / "dev.tsv")
    np.testing.assert_allclose(read_utterance(copy), read_audio(other / "two.ogg"), atol=1e-4)


def test_a_part_of_an_archive_that_was_replaced_is_decoded_again(tmp_path: Path) -> None:
    archive, parts = tmp_path / "parts.zip", []
    for seed in range(2):
        soundfile.write(tmp_path / "part.wav", np.random.default_rng(seed).uniform(-0.5, 0.5, 8000), 16_000)
        parts.append(read_audio(tmp_path / "part.wav"))
        content = b"head" + (tmp_path / "part.wav").read_bytes()
        archive.write_bytes(content)
        os.utime(archive, (seed, seed))
        utterances = [Utterance(str(tmp_path / f"parts.zip:4:{len(content) - 4}"), 8000)]
        write_manifest(tmp_path / "train.tsv", utterances, ".")
        assert unpack_manifests([read_manifest(tmp_path / "train.tsv")], tmp_path / "out") == []
        (copy,) = read_manifest(tmp_path / "out" / "train.tsv")
        np.testing.assert_allclose(read_utterance(copy), parts[-1], atol=1e-4)


def test_what_cannot_be_read_costs_a_line_and_its_rows(corpus: Path, tmp_path: Path) -> None:
    (corpus / "a" / "one.flac").write_bytes(b"fLaC")
    said = unpack(corpus, tmp_path / "out")
    assert said.count("\n") == 1
    assert "one.flac" in said
    assert len(read_manifest(tmp_path / "out" / "train.tsv")) == 1
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_two_manifests_of_one_name_are_refused(corpus: Path, tmp_path: Path) -> None:
    arguments = ["unpack", str(corpus / "train.tsv"), str(corpus / "train.tsv"), "-o", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "different names, found train.tsv 2 times" in result.stderr


def everything_below(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def write_cells(file: Path, root: str, *cells: str) -> None:
    rows = [f"{cell}\t8000" for cell in cells]
    file.write_bytes("\n".join([root, "path\tnum_samples", *rows, ""]).encode())


@pytest.mark.parametrize("cell", ["../elsewhere/evil.wav", "a/../../elsewhere/evil.wav", "{elsewhere}/evil.wav"])
def test_no_cell_chooses_a_place_outside_the_folder(corpus: Path, tmp_path: Path, cell: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(corpus / "two.ogg", elsewhere / "evil.wav")
    cell = cell.format(elsewhere=elsewhere)
    write_cells(corpus / "train.tsv", ".", "two.ogg", cell)
    before = everything_below(tmp_path)
    said = unpack(corpus, tmp_path / "new" / "out")
    assert said == f"error: {corpus / 'train.tsv'}:4: expected a recording below {corpus}, found {corpus / cell}\n"
    assert everything_below(tmp_path) == before


def test_a_link_in_the_folder_leads_no_copy_out_of_it(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "audio").mkdir(parents=True)
    (tmp_path / "out" / "audio" / "a").symlink_to(tmp_path / "elsewhere")
    before = everything_below(tmp_path)
    expected = f"expected a name inside {tmp_path / 'out' / 'audio'}, found 'a/one.flac.wav'"
    assert unpack(corpus, tmp_path / "out") == f"error: {corpus / 'train.tsv'}:3: {expected}\n"
    assert everything_below(tmp_path) == before


def test_a_carriage_return_in_a_name_is_refused_before_the_work(corpus: Path, tmp_path: Path) -> None:
    shutil.copy(corpus / "two.ogg", corpus / "two\r.ogg")
    write_cells(corpus / "train.tsv", ".", "two\r.ogg")
    before = everything_below(tmp_path)
    assert "train.tsv:3: expected a name inside " in unpack(corpus, tmp_path / "out")
    assert everything_below(tmp_path) == before


def test_roots_of_all_kinds_and_spellings_share_one_copy(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lists").mkdir()
    write_cells(Path("lists/relative.tsv"), "../corpus", "two.ogg", "two.ogg", "a/../two.ogg")
    write_cells(Path("lists/absolute.tsv"), str(corpus), "two.ogg")
    manifests = [read_manifest("lists/relative.tsv"), read_manifest("lists/absolute.tsv")]
    assert unpack_manifests(manifests, Path("out")) == []
    assert [path.name for path in everything_below(tmp_path / "out")] == [
        *("absolute.tsv", "audio", "two.ogg.wav", "relative.tsv")
    ]
    copies = [
        Path(utterance.path).name for name in ("relative", "absolute") for utterance in read_manifest(f"out/{name}.tsv")
    ]
    assert copies == ["two.ogg.wav"] * 4


def test_neither_manifests_nor_recordings_are_overwritten(corpus: Path, tmp_path: Path) -> None:
    before = everything_below(tmp_path)
    assert unpack(corpus, corpus) == (
        f"error: {corpus / 'train.tsv'}: expected another folder than its own to unpack to\n"
    )
    assert everything_below(tmp_path) == before
    audio = tmp_path / "out" / "audio"
    audio.mkdir(parents=True)
    for name in ("x", "x.wav"):
        soundfile.write(audio / name, np.zeros(8000), 16_000, format="WAV")
    write_cells(corpus / "train.tsv", str(audio), "x", "x.wav")
    content = (audio / "x.wav").read_bytes()
    with pytest.raises(ManifestError, match=r"train.tsv:3: the copy of .*/x would overwrite the recording .*/x.wav$"):
        unpack_manifests([read_manifest(corpus / "train.tsv")], tmp_path / "out")
    assert (audio / "x.wav").read_bytes() == content


def test_an_interrupted_unpacking_resumes(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = unpack_module.Recording.__iter__

    def broken_off(recording: Recording) -> Iterator[Waveform]:
        yield next(original(recording))
        raise KeyboardInterrupt

    monkeypatch.setattr(unpack_module.Recording, "__iter__", broken_off)
    manifests = [read_manifest(corpus / "train.tsv")]
    with pytest.raises(KeyboardInterrupt):
        unpack_manifests(manifests, tmp_path / "out")
    assert not [path for path in everything_below(tmp_path / "out") if path.is_file()]
    monkeypatch.undo()
    assert unpack_manifests(manifests, tmp_path / "out") == []
    assert len(read_manifest(tmp_path / "out" / "train.tsv")) == 2
