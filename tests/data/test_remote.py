"""Shards in an object store that fails: moto's server speaks S3, and requests to it are made to go wrong."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from manifests import make_loader
from object_store import BUCKET, SETTINGS, ObjectStore, running_store
from typer.testing import CliRunner

from speechssl.__main__ import app
from speechssl.data import remote, sources
from speechssl.data.batches import Example
from speechssl.data.check import check_before_training
from speechssl.data.manifest import Manifest, Utterance, read_manifest, read_utterance, write_manifest
from speechssl.data.recording import read_audio
from speechssl.data.sampler import BatchConfig, BatchSampler
from speechssl.errors import AudioError
from speechssl.frames import FrameGeometry

pytest.importorskip("moto", reason="moto[server] is not installed")
pytest.importorskip("s3fs", reason="s3fs is not installed")

WAITS = [1, 2, 4, 8, 16, 32]


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    with running_store() as store:
        yield store


@pytest.fixture
def store(server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    for name, value in (SETTINGS | {"AWS_ENDPOINT_URL": server.url}).items():
        monkeypatch.setenv(name, value)
    import fsspec

    files = fsspec.filesystem("s3")
    if not files.exists(BUCKET):
        files.mkdir(BUCKET)
        rule = {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{BUCKET}/*"}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [rule]})
        files.call_s3("put_bucket_policy", Bucket=BUCKET, Policy=policy)
    server.faults.clear()
    server.requests.clear()
    return server


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waited: list[float] = []
    monkeypatch.setattr(remote.time, "sleep", waited.append)
    return waited


@pytest.fixture
def local(tmp_path: Path) -> Manifest:
    """Utterances of all lengths, two of them spans of one recording."""
    generator = np.random.default_rng(0)
    utterances = []
    for number, num_samples in enumerate([16_000, 24_000, 20_000, 36_000, 17_000]):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, generator.integers(-9000, 9000, num_samples).astype(np.int16), 16_000)
        utterances.append(Utterance(str(path), num_samples, text=f"text {number}"))
    utterances += [Utterance(str(path), 8000, start=start, text="span") for start in (1000, 9000)]
    write_manifest(tmp_path / "train.tsv", utterances, ".")
    return read_manifest(tmp_path / "train.tsv")


def upload(manifest: Manifest, prefix: str, *options: str) -> Manifest:
    target = manifest.path.parent / "remote.tsv"
    arguments = [str(manifest.path), "-o", f"s3://{BUCKET}/{prefix}", "--manifest", str(target), *options]
    result = CliRunner().invoke(app, ["shard", *arguments])
    assert result.exit_code == 0, result.output
    return read_manifest(target)


def clip(manifest: Manifest, row: int, store: ObjectStore, scheme: str) -> str:
    """The path of an utterance, as s3:// or as http://."""
    return manifest[row].path.replace("s3://", f"{store.url}/") if scheme == "http" else manifest[row].path


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_batches_are_those_of_the_files_and_no_byte_beside_the_clips_is_read(
    local: Manifest, store: ObjectStore, num_workers: int
) -> None:
    shards = upload(local, "batches", "--shard-mib", "0.1")
    archives = {utterance.path.rpartition(".tar")[0] for utterance in shards}
    assert len(archives) > 2
    store.requests.clear()

    def batches(manifest: Manifest) -> list[list[Example]]:
        sampler = BatchSampler(
            manifest.num_output_samples, BatchConfig(seconds=3, min_seconds=0, max_seconds=1.5), 0, crop=True
        )
        plans = (sampler[number] for number in range(2 * sampler.num_batches))
        return list(make_loader(manifest, plans, list, seed=3, num_workers=num_workers))  # type: ignore[type-var]

    expected, found = batches(local), batches(shards)
    assert len(found) == len(expected) > 2
    for one, other in zip(found, expected, strict=True):
        for mine, its in zip(one, other, strict=True):
            assert (mine.index, mine.text) == (its.index, its.text)
            np.testing.assert_array_equal(mine.waveform, its.waveform)
    num_bytes = {int(utterance.path.rpartition(":")[2]) for utterance in shards}
    for asked in store.gets(".tar"):
        first, last = asked.removeprefix("bytes=").split("-")
        assert int(last) + 1 - int(first) in num_bytes
    assert len(store.gets(".tar")) == sum(map(len, expected))


def test_finished_shards_are_kept_and_others_written_again(local: Manifest, store: ObjectStore) -> None:
    upload(local, "again", "--shard-mib", "0.1")
    store.requests.clear()
    upload(local, "again", "--shard-mib", "0.1")
    assert not [path for method, path, _ in store.requests if method in ("PUT", "POST") and path.endswith(".tar")]
    assert not store.gets(".tar")
    import fsspec

    fsspec.filesystem("s3").rm_file(f"{BUCKET}/again/train-000001.tar")
    shards = upload(local, "again", "--shard-mib", "0.1")
    written = {path for method, path, _ in store.requests if method in ("PUT", "POST") and path.endswith(".tar")}
    assert written == {f"/{BUCKET}/again/train-000001.tar"}
    for mine, its in zip(shards, local, strict=True):
        np.testing.assert_array_equal(read_utterance(mine), read_utterance(its))


@pytest.mark.parametrize("scheme", ["s3", "http"])
@pytest.mark.parametrize("fault", [500, 503, 429, "cut"])
def test_an_error_that_passes_is_retried(
    local: Manifest, store: ObjectStore, waits: list[float], scheme: str, fault: int | str
) -> None:
    path = clip(upload(local, "passing"), 2, store, scheme)
    store.requests.clear()
    store.faults[:] = [fault, fault]
    np.testing.assert_array_equal(read_audio(path), read_audio(local[2].path))
    assert not store.faults
    assert len(store.gets(".tar")) == 3
    if scheme == "http" or fault == 500:  # s3fs itself tries again at the others
        assert waits == WAITS[:2]


@pytest.mark.parametrize("scheme", ["s3", "http"])
def test_an_error_that_stays_names_the_clip_and_what_failed(
    local: Manifest, store: ObjectStore, waits: list[float], scheme: str
) -> None:
    path = clip(upload(local, "staying"), 2, store, scheme)
    store.requests.clear()
    store.faults[:] = [500] * 99
    with pytest.raises(AudioError) as caught:
        read_audio(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert ("500" if scheme == "http" else "Internal Server Error") in str(caught.value)
    assert "(7 tries)" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert waits == WAITS
    assert len(store.gets(".tar")) == 7


@pytest.mark.parametrize("scheme", ["s3", "http"])
def test_a_refusal_is_not_retried(local: Manifest, store: ObjectStore, waits: list[float], scheme: str) -> None:
    path = clip(upload(local, "refused"), 2, store, scheme)
    store.requests.clear()
    store.faults[:] = [403] * 9
    with pytest.raises(AudioError) as caught:
        read_audio(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(store.gets(".tar")) == 1
    assert not waits


@pytest.mark.parametrize("scheme", ["s3", "http"])
def test_a_missing_shard_is_named_at_once(local: Manifest, store: ObjectStore, waits: list[float], scheme: str) -> None:
    path = clip(upload(local, "missing"), 2, store, scheme).replace("train-000000", "train-000009")
    with pytest.raises(AudioError) as caught:
        read_audio(path)
    assert str(caught.value) == f"{path}: expected an audio file, found none"
    assert not waits


@pytest.mark.parametrize("scheme", ["s3", "http"])
def test_a_truncated_shard_is_told_from_a_whole_one(
    local: Manifest, store: ObjectStore, waits: list[float], scheme: str
) -> None:
    import fsspec

    shards = upload(local, "cut")
    archive, start, size = (shards[2].path).rsplit(":", 2)
    files = fsspec.filesystem("s3")
    whole = files.cat_file(archive)
    files.pipe_file(archive, whole[: int(start) + 100])
    with pytest.raises(AudioError) as caught:
        read_audio(clip(shards, 2, store, scheme))
    assert str(caught.value).endswith(f"expected {size} bytes from byte {start} on, found 100")
    with pytest.raises(AudioError) as caught:
        read_audio(clip(shards, 3, store, scheme))
    _, start, size = (shards[3].path).rsplit(":", 2)
    assert str(caught.value).endswith(f"expected {size} bytes from byte {start} on, found 0")
    assert not waits


def test_a_server_that_knows_no_ranges_is_refused(local: Manifest, store: ObjectStore, waits: list[float]) -> None:
    path = clip(upload(local, "whole"), 2, store, "http")
    store.faults[:] = ["whole"]
    with pytest.raises(AudioError, match="expected a server that reads ranges"):
        read_audio(path)


@pytest.mark.parametrize("is_in_archive", [True, False])
def test_what_is_long_is_read_in_parts(
    local: Manifest, store: ObjectStore, monkeypatch: pytest.MonkeyPatch, is_in_archive: bool
) -> None:
    monkeypatch.setattr(sources, "_REMOTE_CLIP_BYTES", 10_000)
    monkeypatch.setattr(remote, "_AT_ONCE_BYTES", 4096)
    path = upload(local, "parts")[3].path
    if not is_in_archive:
        import fsspec

        path = f"s3://{BUCKET}/parts/3.wav"
        fsspec.filesystem("s3").put_file(local[3].path, path)
    store.requests.clear()
    store.faults[:] = [503]
    monkeypatch.setattr(remote.time, "sleep", lambda seconds: None)
    found = read_audio(path, start=20_000, num_samples=1000)
    np.testing.assert_array_equal(found, read_audio(local[3].path)[20_000:21_000])
    asked = store.gets(".tar" if is_in_archive else ".wav")
    assert 1 < len(asked) < 8  # of 18


def test_an_extra_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(AudioError, match=r"s3:// needs the extra 'remote' \(pip install 'speechssl\[remote\]'\)"):
        read_audio("s3://bucket/a.tar:0:100")


def test_the_check_before_training_asks_once_a_shard_and_reads_no_clip(
    local: Manifest, store: ObjectStore, waits: list[float]
) -> None:
    import fsspec

    manifest = upload(local, "check", "--shard-mib", "0.1")
    archives = sorted({utterance.path.rpartition(".tar")[0] + ".tar" for utterance in manifest})
    assert len(archives) > 2
    store.requests.clear()
    geometry = FrameGeometry((10, 8), (10, 8))
    assert check_before_training(manifest, geometry, None, 100) == []
    assert [method for method, path, _ in store.requests if path.endswith(".tar")] == ["HEAD"] * len(archives)
    files = fsspec.filesystem("s3")
    files.rm_file(archives[0])
    files.pipe_file(archives[1], files.cat_file(archives[1])[:2000])
    missing, truncated = check_before_training(manifest, geometry, None, 100)
    assert missing.detail == f"{archives[0]}: expected an audio file, found none"
    assert truncated.detail.startswith(f"{archives[1]}: expected ")
    assert truncated.detail.endswith(" bytes, found 2000")
    assert missing.is_error
    assert truncated.is_error
