"""How many seconds of audio one core reads a second: by format, from files, from tar shards and from an object store.

    python tools/bench_loading.py MANIFEST [--minutes 5] [--rounds 3]

The utterances of the manifest are written in each format, one file each, at 16 kHz, and read in random order as
training reads them. The object store is moto's server on this machine (pip install 'moto[server]' s3fs), a process of
its own: its time is in the seconds that pass, not in those of the core.
"""

import argparse
import io
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import soundfile

from speechssl.data.audio import SAMPLE_RATE
from speechssl.data.manifest import Manifest, Utterance, read_manifest, read_utterance, write_manifest
from speechssl.data.shards import ShardConfig, write_shards
from speechssl.data.stores import Folder, Prefix

FORMATS = {"wav": ("WAV", "PCM_16"), "flac": ("FLAC", "PCM_16"), "opus": ("OGG", "OPUS"), "mp3": ("MP3", None)}
BUCKET = "s3://loading"


@dataclass(frozen=True)
class Speed:
    """Seconds of audio read in a second."""

    of_core: float  # in which this process computes
    of_clock: float  # by one reader, which also waits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=3, help="the fastest counts")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, object_store() as has_store:
        print(f"{'':6}{'kbit/s':>8}{'':>4}seconds of audio a second of a core (of one reader's waiting too)")
        print(f"{'':6}{'':8}{'files':>16}{'shards':>16}{'object store':>18}")
        for kind in FORMATS:
            files = write_files(options.manifest, options.minutes * 60, Path(folder, kind), kind)
            places = [list(files), shard(files, Folder(str(Path(folder, kind, "shards"))))]
            places += [shard(files, Prefix(f"{BUCKET}/{kind}"))] if has_store else []
            speeds = [measure(utterances, options.rounds) for utterances in places]
            size = sum(path.stat().st_size for path in Path(folder, kind).glob(f"*.{kind}"))
            seconds = float(files.seconds.sum())
            rate = size * 8 / seconds / 1000
            cells = "".join(f"{speed.of_core:8.0f} ({speed.of_clock:5.0f})" for speed in speeds)
            print(f"{kind:6}{rate:8.0f}  {cells}", flush=True)
        print(f"{len(files)} clips of {seconds / len(files):.1f} seconds on average")
        if not has_store:
            print("no object store: moto and s3fs are not installed")


def write_files(manifest: Path, seconds: float, folder: Path, kind: str) -> Manifest:
    """Write so many seconds of utterances, one file each."""
    folder.mkdir(parents=True)
    written: list[Utterance] = []
    for number, utterance in enumerate(read_manifest(manifest)):
        if sum(one.seconds for one in written) >= seconds:
            break
        waveform = read_utterance(utterance)
        path = folder / f"{number}.{kind}"
        file_format, subtype = FORMATS[kind]
        content = io.BytesIO()
        soundfile.write(content, waveform, SAMPLE_RATE, subtype, format=file_format)
        path.write_bytes(content.getvalue())
        written.append(replace(utterance, path=str(path), start=0, num_samples=len(waveform), sample_rate=SAMPLE_RATE))
    write_manifest(folder / "all.tsv", written, ".")
    return read_manifest(folder / "all.tsv")


def shard(files: Manifest, store: Folder) -> Sequence[Utterance]:
    return write_shards(files, store, ShardConfig(max_bytes=1 << 29)).utterances


def measure(utterances: Sequence[Utterance], rounds: int) -> Speed:
    """Read everything in random order, several times."""
    order = random.Random(0).sample(utterances, len(utterances))
    seconds = sum(utterance.seconds for utterance in order)

    read_utterance(order[0])  # imports, connections
    times: list[tuple[float, float]] = []
    for _ in range(rounds):
        begin, computed = time.perf_counter(), time.process_time()
        for utterance in order:
            read_utterance(utterance)
        times.append((time.process_time() - computed, time.perf_counter() - begin))
    return Speed(*(seconds / min(column) for column in zip(*times, strict=True)))


@contextmanager
def object_store() -> Iterator[bool]:
    """Start a store with a bucket, if there is one, and name it in the environment."""
    try:
        import fsspec
        import moto  # noqa: F401
        import s3fs  # noqa: F401
    except ImportError:
        yield False
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ |= names | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    command = [sys.executable, "-c", f"from moto.server import main; main(['-p', '{port}'])"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        fsspec.filesystem("s3").mkdir(BUCKET)
        yield True
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
