import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from speechssl.__main__ import app
from speechssl.data.manifest import Utterance, read_manifest, read_utterance, write_manifest
from speechssl.data.recording import read_audio
from speechssl.data.unpack import unpack_manifests


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    (folder / "a").mkdir(parents=True)
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (44_100, 2))
    soundfile.write(folder / "a" / "one.flac", noise, 44_100)
    soundfile.write(folder / "two.ogg", noise[:8000, 0], 16_000)
    utterances = [
        Utterance(folder / "a" / "one.flac", 22_050, start=11_025, sample_rate=44_100, text="eins", speaker="s"),
        Utterance(folder / "two.ogg", 8000, text="zwei", language="de"),
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
    assert not list((tmp_path / "out").rglob("*.partial"))


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
        utterances = [Utterance(tmp_path / f"parts.zip:4:{len(content) - 4}", 8000)]
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
    assert not list((tmp_path / "out").rglob("*.partial"))


def test_two_manifests_of_one_name_are_refused(corpus: Path, tmp_path: Path) -> None:
    arguments = ["unpack", str(corpus / "train.tsv"), str(corpus / "train.tsv"), "-o", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "different names, found train.tsv 2 times" in result.stderr
