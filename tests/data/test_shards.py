"""Shards on a disk: what is in them, what is kept, and that they read as the recordings do."""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from speechssl.__main__ import app
from speechssl.data import shards as shards_module
from speechssl.data.clips import Clip, Encoding, make_clip
from speechssl.data.manifest import Manifest, Utterance, read_manifest, read_utterance, write_manifest
from speechssl.errors import AudioError

NUM_SAMPLES = 12_000
SUFFIXES = ["wav", "flac", "wav", "wav", "mp3", "flac", "flac"]  # of copies and of spans as FLAC


@pytest.fixture
def corpus(tmp_path: Path) -> Manifest:
    """Recordings of several formats, rates and widths; the last two utterances are spans of one."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    generator = np.random.default_rng(0)
    noise = generator.integers(-9000, 9000, (NUM_SAMPLES, 2)).astype(np.int16)
    soundfile.write(folder / "mono.wav", noise[:, 0], 16_000)
    soundfile.write(folder / "stereo.flac", noise, 44_100)
    soundfile.write(folder / "wide.wav", noise[:, 0] / 2**15 + 3 / 2**23, 16_000, "PCM_24")
    soundfile.write(folder / "telephone.wav", noise[:, 1], 8000, "ULAW")
    soundfile.write(folder / "lossy.mp3", noise[:, 1], 16_000)
    rates = {"mono.wav": 16_000, "stereo.flac": 44_100, "wide.wav": 16_000, "telephone.wav": 8000, "lossy.mp3": 16_000}
    utterances = [
        Utterance(str(folder / name), NUM_SAMPLES, sample_rate=rate, text=f"ein {name}", speaker="s", language="de")
        for name, rate in rates.items()
    ]
    utterances += [Utterance(str(folder / "stereo.flac"), 5000, start, 44_100) for start in (1000, 7000)]
    write_manifest(folder / "train.tsv", utterances, ".")
    return read_manifest(folder / "train.tsv")


def shard(manifest: Manifest, folder: Path | str, *options: str, status: int = 0) -> str:
    result = CliRunner().invoke(app, ["shard", str(manifest.path), "-o", str(folder), *options])
    assert result.exit_code == status, result.output
    return result.stderr


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("encode", ["copy", "flac"])
def test_utterances_read_as_before_sample_for_sample(corpus: Manifest, tmp_path: Path, encode: str) -> None:
    shard(corpus, tmp_path / "out", "--encode", encode, "--shard-mib", "0.1")
    found = read_manifest(tmp_path / "out" / "train.tsv")
    assert len({utterance.path.rpartition(".tar")[0] for utterance in found}) > 1
    assert len(found) == len(corpus)
    for mine, its in zip(found, corpus, strict=True):
        assert (mine.text, mine.speaker, mine.language) == (its.text, its.speaker, its.language)
        assert (mine.start, mine.num_samples, mine.sample_rate) == (0, its.num_samples, its.sample_rate)
        if encode == "copy" or not its.path.endswith(".mp3"):
            np.testing.assert_array_equal(read_utterance(mine), read_utterance(its))
        else:
            np.testing.assert_allclose(read_utterance(mine), read_utterance(its), atol=2**-15)


def test_opus_is_as_long_and_sounds_alike(corpus: Manifest, tmp_path: Path) -> None:
    shard(corpus, tmp_path / "out", "--encode", "opus")
    for mine, its in zip(read_manifest(tmp_path / "out" / "train.tsv"), corpus, strict=True):
        assert (mine.num_samples, mine.sample_rate) == (its.num_output_samples, 16_000)
        found, expected = read_utterance(mine), read_utterance(its)
        assert np.corrcoef(found, expected)[0, 1] > 0.7


def test_a_shard_is_what_webdataset_reads(corpus: Manifest, tmp_path: Path) -> None:
    shard(corpus, tmp_path / "out")
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    names = [f"{row:09d}.{kind}" for row, suffix in enumerate(SUFFIXES) for kind in (suffix, "json")]
    assert list(members) == names
    assert members["000000001.flac"] == Path(corpus[1].path).read_bytes()
    labels = {"text": "ein mono.wav", "speaker": "s", "language": "de", "sample_rate": 16_000, "num_samples": 12_000}
    assert json.loads(members["000000000.json"]) == labels
    assert json.loads(members["000000006.json"]) == {"sample_rate": 44_100, "num_samples": 5000}


@pytest.mark.parametrize("encode", ["copy", "flac", "opus"])
def test_the_same_gives_the_same_bytes_wherever_it_lies(corpus: Manifest, tmp_path: Path, encode: str) -> None:
    options = ["--encode", encode, "--shard-mib", "0.03"]
    shard(corpus, tmp_path / "one", *options)
    shutil.copytree(corpus.path.parent, tmp_path / "moved")
    shard(read_manifest(tmp_path / "moved" / "train.tsv"), tmp_path / "two", *options)
    one, two = files(tmp_path / "one"), files(tmp_path / "two")
    assert one == two
    tars = [len(content) for name, content in one.items() if name.endswith(".tar")]
    assert len(tars) > 1
    assert max(tars) <= 0.03 * 2**20 or encode != "opus"  # a longer clip has a shard of its own


def test_an_interrupted_run_goes_on_and_gives_the_same(
    corpus: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard(corpus, tmp_path / "whole", "--shard-mib", "0.08")

    def fail(utterance: Utterance, encoding: Encoding) -> Clip:
        if utterance.path.endswith("lossy.mp3"):
            raise KeyboardInterrupt
        return make_clip(utterance, encoding)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(shards_module, "make_clip", fail)
        shard(corpus, out, "--shard-mib", "0.08", status=130)
    names = set(files(out))
    assert "train-000000.tar" in names
    assert "train.tsv" not in names
    assert not [name for name in names if name.endswith(".partial")]
    before = (out / "train-000000.tar").stat().st_mtime_ns
    assert "kept" in shard(corpus, out, "--shard-mib", "0.08")
    assert files(out) == files(tmp_path / "whole")
    assert (out / "train-000000.tar").stat().st_mtime_ns == before


@pytest.mark.parametrize("change", ["recording", "text", "row", "encoding", "size", "cut", "json"])
def test_a_shard_of_something_else_is_written_again(corpus: Manifest, tmp_path: Path, change: str) -> None:
    out, options = tmp_path / "out", ["--encode", "copy"]
    shard(corpus, out, *options)
    assert "(1 kept)" in shard(corpus, out, *options)
    if change == "recording":
        soundfile.write(corpus[0].path, np.zeros(NUM_SAMPLES), 16_000)  # as many bytes
    elif change == "text":
        corpus.path.write_text(corpus.path.read_text().replace("ein mono.wav", "two mono.wav"))
    elif change == "row":  # the last one is gone
        corpus.path.write_text("".join(corpus.path.read_text().splitlines(keepends=True)[:-1]))
    elif change == "encoding":
        options = ["--encode", "flac"]
    elif change == "size":
        options = ["--shard-mib", "0.1"]
    elif change == "cut":
        (out / "train-000000.tar").write_bytes((out / "train-000000.tar").read_bytes()[:-512])
    else:
        (out / "train-000000.json").write_text('{"made_of": "')
        (out / "train-000000.tar").unlink()
    assert "kept" not in shard(corpus, out, *options)
    shard(read_manifest(corpus.path), tmp_path / "fresh", *options)
    assert files(out) == files(tmp_path / "fresh")


def test_shards_behind_the_last_one_are_removed(corpus: Manifest, tmp_path: Path) -> None:
    shard(corpus, tmp_path / "out", "--shard-mib", "0.05")
    assert "train-000002.tar" in files(tmp_path / "out")
    shard(corpus, tmp_path / "out")
    assert [*files(tmp_path / "out")] == ["train-000000.json", "train-000000.tar", "train.tsv"]


@pytest.mark.parametrize("row", [0, 2])
def test_recordings_that_cannot_be_read_are_named_each_time_and_tried_again(
    corpus: Manifest, tmp_path: Path, row: int
) -> None:
    path = Path(corpus[row].path)
    content = path.read_bytes()
    path.write_bytes(content[:1000])
    for _ in range(2):
        error = shard(corpus, tmp_path / "out", status=1)
        assert error.startswith(f"error: {path}: expected")
        assert len(read_manifest(tmp_path / "out" / "train.tsv")) == len(corpus) - 1
    assert "(1 kept)" in error
    path.write_bytes(content)
    shard(corpus, tmp_path / "out")
    for mine, its in zip(read_manifest(tmp_path / "out" / "train.tsv"), corpus, strict=True):
        np.testing.assert_array_equal(read_utterance(mine), read_utterance(its))


def test_a_failure_that_passes_without_a_trace_is_tried_again(
    corpus: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(utterance: Utterance, encoding: Encoding) -> Clip:
        if utterance.text == "ein wide.wav":
            raise AudioError(f"{utterance.path}: the disk was away")
        return make_clip(utterance, encoding)

    with monkeypatch.context() as patch:
        patch.setattr(shards_module, "make_clip", fail)
        assert "the disk was away" in shard(corpus, tmp_path / "out", status=1)
    shard(corpus, tmp_path / "out")
    for mine, its in zip(read_manifest(tmp_path / "out" / "train.tsv"), corpus, strict=True):
        np.testing.assert_array_equal(read_utterance(mine), read_utterance(its))


def test_what_is_no_shard_is_not_overwritten(corpus: Manifest, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "train-000000.tar").write_bytes(b"mine")
    error = shard(corpus, out, status=1)
    assert error == f"error: {out}/train-000000.tar: expected a shard with its index, found no index\n"
    assert files(out) == {"train-000000.tar": b"mine"}
    assert "another manifest" in shard(corpus, corpus.path.parent, status=1)
    assert "expected --manifest FILE.tsv" in shard(corpus, "s3://bucket", status=1)


def test_shards_of_shards(corpus: Manifest, tmp_path: Path) -> None:
    shard(corpus, tmp_path / "one", "--shard-mib", "0.05")
    shard(read_manifest(tmp_path / "one" / "train.tsv"), tmp_path / "two")
    for mine, its in zip(read_manifest(tmp_path / "two" / "train.tsv"), corpus, strict=True):
        np.testing.assert_array_equal(read_utterance(mine), read_utterance(its))
    with tarfile.open(tmp_path / "two" / "train-000000.tar") as tar:
        assert [name.partition(".")[2] for name in tar.getnames()][::2] == SUFFIXES
