"""Tar files of WebDataset and folders of lhotse's Shar, made by hand as their programs write them."""

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from speechssl.__main__ import app
from speechssl.data.manifest import Utterance, read_manifest, read_utterance


def noise(number: int, num_samples: int = 4000) -> np.ndarray:
    return np.random.default_rng(number).integers(-9000, 9000, num_samples).astype(np.int16)


def audio(number: int, kind: str = "FLAC", rate: int = 16_000) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, noise(number), rate, format=kind)
    return file.getvalue()


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def index(folder: Path, status: int = 0) -> tuple[list[Utterance], str]:
    output = folder.parent / "found.tsv"
    result = CliRunner().invoke(app, ["manifest", str(folder), "-o", str(output)])
    assert result.exit_code == status, result.output
    return list(read_manifest(output)) if output.exists() else [], result.stderr


def assert_reads(utterance: Utterance, number: int) -> None:
    np.testing.assert_array_equal(read_utterance(utterance), noise(number) / np.float32(2**15))


def as_json(**fields: Any) -> bytes:
    return json.dumps(fields, ensure_ascii=False).encode()


def test_a_folder_of_webdataset(tmp_path: Path) -> None:
    long_name = "speaker/" + 60 * "chapter/" + "utterance.flac"  # longer than a header of tar holds
    write_tar(
        tmp_path / "data" / "a-000001.tar",
        {
            "s/one.two.flac": audio(0),
            "s/one.two.json": as_json(Text="ein  zwei", speaker_id="x", lang="de", other=[1]),
            "s/three.txt": " drei\n".encode("utf-16"),
            "s/three.wav": audio(1, "WAV"),
            "s/cls.cls": b"5",
            long_name: audio(2),
        },
    )
    write_tar(tmp_path / "data" / "a-000000.tar", {"b.ogg": audio(3, "OGG", 8000), "b.json": as_json(text=None)})
    soundfile.write(tmp_path / "data" / "z.wav", noise(4), 16_000)
    found, errors = index(tmp_path / "data")
    labels = [(utterance.text, utterance.speaker, utterance.language) for utterance in found]
    nothing = (None, None, None)
    assert labels == [nothing, nothing, ("ein zwei", "x", "de"), ("drei", None, None), nothing]
    assert [utterance.sample_rate for utterance in found] == [16_000, 8000, 16_000, 16_000, 16_000]
    for utterance, number in ((found[0], 4), (found[2], 0), (found[3], 1), (found[4], 2)):
        assert_reads(utterance, number)
    assert "error" not in errors


def test_what_is_wrong_in_an_archive_is_named_and_the_rest_is_found(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_tar(data / "a.tar", {"one.flac": audio(0), "one.json": b"{", "two.wav": b"RIFF", "three.flac": audio(1)})
    cut = write_tar(data / "b.tar", {"one.flac": audio(2), "two.flac": audio(3)})
    cut.write_bytes(cut.read_bytes()[: 512 + 8192 + 600])
    write_tar(data / "c.tar", {"one.flac": audio(0)}, "w:gz")
    found, errors = index(data, status=1)
    assert [Path(utterance.path).name.partition(":")[0] for utterance in found] == ["a.tar", "a.tar", "b.tar"]
    lines = [line for line in errors.splitlines() if line.startswith("error")]
    for start in (f"{data}/a.tar: one.json: ", f"{data}/a.tar:", f"{data}/b.tar: ", f"{data}/c.tar: "):
        assert sum(line.startswith(f"error: {start}") for line in lines) >= 1, (start, lines)
    assert sum("expected an uncompressed tar file that is whole" in line for line in lines) == 2


def test_compressed_archives_are_not_passed_over_in_silence(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_tar(data / "a.tar", {"one.flac": audio(0)})
    for name in ("b.tar.gz", "C.TGZ"):
        write_tar(data / name, {"one.flac": audio(1)}, "w:gz")
    found, errors = index(data)
    assert [Path(utterance.path).name.partition(":")[0] for utterance in found] == ["a.tar"]
    said = (
        f"{data}: 2 archives not read: expected tar files that are not compressed, found some that are, such as {data}/"
    )
    assert f"warning: {said}C.TGZ\n" in errors


def cut(name: str, *supervisions: dict[str, Any]) -> dict[str, Any]:
    source = {"type": "shar", "channels": [0], "source": ""}
    recording = {"id": name, "sources": [source], "sampling_rate": 16_000, "num_samples": 4000, "duration": 0.25}
    spans = [{"id": f"{name}-{i}", "recording_id": name, "channel": 0} | one for i, one in enumerate(supervisions)]
    return {
        "id": name, "start": 0, "duration": 0.25, "channel": 0, "supervisions": spans, "recording": recording,
        "type": "MonoCut",
    }  # fmt: skip


def write_shar(folder: Path, number: int, cuts: list[dict[str, Any]], members: dict[str, bytes]) -> None:
    write_tar(folder / f"recording.{number:06d}.tar", members)
    lines = "".join(json.dumps(one) + "\n" for one in cuts)
    with gzip.open(folder / f"cuts.{number:06d}.jsonl.gz", "wt") as file:
        file.write(lines)


@pytest.fixture
def shar(tmp_path: Path) -> Path:
    """Two shards; the cuts of the first stand in another order than the recordings, and one has none."""
    folder = tmp_path / "shar"
    cuts = [
        cut(
            "b.1",
            {"start": 0.1, "duration": 0.1, "text": "zwei", "speaker": "x", "language": "de"},
            {"start": 0.0, "duration": 0.1, "text": "eins", "speaker": "y", "language": "de"},
        ),
        cut("a-2"),
        cut("gone", {"start": 0, "duration": 0.25, "text": "nichts"}),
    ]
    members = {"a-2.flac": audio(0), "a-2.json": as_json(id="a-2"), "b.1.flac": audio(1), "b.1.json": as_json(id="b.1")}
    write_shar(folder, 0, cuts, members | {"gone.nodata": b"", "gone.nometa": b""})
    write_shar(folder, 1, [cut("c", {"start": 0, "duration": 0.25, "text": "drei"})], {"c.flac": audio(2)})
    return folder


def test_a_folder_of_shar(shar: Path) -> None:
    found, errors = index(shar, status=1)
    labels = [(utterance.text, utterance.speaker, utterance.language) for utterance in found]
    assert labels == [("eins zwei", None, "de"), (None, None, None), ("drei", None, None)]
    for utterance, number in zip(found, (1, 0, 2), strict=True):
        assert_reads(utterance, number)
    expected = f"expected a recording gone in {shar}/recording.000000.tar, found none"
    assert errors.splitlines()[0] == f"error: {shar}/cuts.000000.jsonl.gz:3: {expected}"
    assert errors.count("error") == 1


# Without a time, or each worker would collect other tests.
EMPTY_CUT, LIST = gzip.compress(b"{}\n", mtime=0), gzip.compress(b"[1]\n", mtime=0)


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("recording.000000.tar", None, "recording.000000.tar: expected a tar file, found none"),
        ("cuts.000000.jsonl.gz", b"no gzip", "cuts.000000.jsonl.gz: "),
        ("cuts.000000.jsonl.gz", EMPTY_CUT, "cuts.000000.jsonl.gz:1: expected a cut of one recording"),
        ("cuts.000000.jsonl.gz", LIST, "cuts.000000.jsonl.gz:1: expected a JSON object, found list"),
        ("cuts.000000.jsonl.gz", EMPTY_CUT[:-4], "cuts.000000.jsonl.gz:1: "),
    ],
)
def test_a_damaged_shard_is_named_and_the_other_read(shar: Path, name: str, content: bytes | None, error: str) -> None:
    (shar / name).unlink() if content is None else (shar / name).write_bytes(content)
    found, errors = index(shar, status=1)
    assert [utterance.text for utterance in found] == ["drei"]
    assert errors.startswith(f"error: {shar}/{error}")
