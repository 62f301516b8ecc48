"""What a large manifest costs: time to start, memory of each process, the order of an epoch, resuming.

    python tools/bench_manifest.py [--rows 100000 1000000 10000000] [--workers 2]

Writes manifests of clips in tar shards, 80 bytes a row at most and of no audio, and for each starts a process that does
what training does up to its first batch: it reads the manifest, makes the sampler, and hands the manifest to the
loader's workers and to another rank. The last row of the table is not measured: ten times as many rows, at the
longest manifest's seconds and bytes a row.
"""

import argparse
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from speechssl.data.batches import Batch, load_batches
from speechssl.data.manifest import Manifest, read_manifest
from speechssl.data.sampler import BatchConfig, BatchPlan, BatchSampler

Result = TypeVar("Result")
_EPOCHS = 5  # before the place where it resumes
_WRITTEN_AT_ONCE = 100_000


@dataclass(frozen=True)
class Costs:
    """Of one manifest; seconds are those in which a core computes, unless they are of the clock."""

    rows: float
    megabytes: float  # of the file
    read_seconds: float
    sampler_seconds: float
    epoch_seconds: float  # to shuffle one
    resume_seconds: float  # to find a batch in the middle of a later epoch
    first_batch_clock_seconds: float  # from the start of the workers, who import torch
    peak_megabytes: float  # of the process that reads, while it does, more than before
    rank_megabytes: float  # that it has to itself in the end, more than before
    other_rank_megabytes: float  # that another rank has to itself, which maps the manifest
    worker_megabytes: float  # that a worker has to itself, more than before the first batch
    shared_megabytes: float  # once on a machine


HEADS = (
    *("rows", "file MB", "read s", "sampler s", "epoch s", "resume s", "workers ready s"),
    *("peak MB", "rank MB", "other rank MB", "worker MB", "shared MB"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10**5, 10**6, 10**7])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)  # in a process of its own
    options = parser.parse_args()
    if options.measure is not None:
        print(json.dumps(asdict(measure(options.measure, options.workers))))
        return
    print("| " + " | ".join(HEADS) + " |\n" + "|---" * len(HEADS) + "|")
    with tempfile.TemporaryDirectory() as folder:
        for number in options.rows:
            path = Path(folder, "train.tsv")
            write_rows(path, number)
            command = [sys.executable, __file__, "--measure", str(path), "--workers", str(options.workers)]
            run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            costs = Costs(**json.loads(run.stdout))
            print_row(costs)
    print_row(predict(costs, 10))


def write_rows(path: Path, number: int) -> None:
    """Write a manifest of clips with the lengths of read speech, 12 s on average."""
    seconds = np.random.default_rng(0).gamma(6, 2.0, number).clip(0.5, 35)
    samples = (seconds * 16_000).astype(np.int64)
    with path.open("w", encoding="utf-8") as file:
        file.write(".\npath\tnum_samples\tspeaker\n")
        for first in range(0, number, _WRITTEN_AT_ONCE):
            lengths = samples[first : first + _WRITTEN_AT_ONCE].tolist()
            file.writelines(
                f"train-{row // 2500:06d}.tar:{row % 2500 * 200_000 + 512}:{length // 2}\t{length}\ts{row % 100_000}\n"
                for row, length in enumerate(lengths, first)
            )


def measure(path: Path, num_workers: int) -> Costs:
    """Do what training does up to its first batch."""
    before, all_before = own_megabytes(), status_megabytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    manifest, read_seconds = timed(lambda: read_manifest(path))
    peak = status_megabytes("VmHWM") - all_before
    sampler, sampler_seconds = timed(lambda: BatchSampler(manifest.num_output_samples, BatchConfig(), 0, crop=True))
    _, epoch_seconds = timed(lambda: sampler[sampler.num_batches])
    number = _EPOCHS * sampler.num_batches + sampler.num_batches // 2
    plan, resume_seconds = timed(lambda: sampler[number])
    plans = [plan] + [sampler[number + i] for i in range(1, 8 * max(num_workers, 1))]

    start = time.monotonic()
    batches = load_batches(Look(manifest), str, plans, num_workers=num_workers)
    clock_seconds = 0.0
    grown: list[float] = []
    for batch in batches:
        clock_seconds = clock_seconds or time.monotonic() - start
        grown.append(batch.grown_megabytes)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        other_rank = pool.apply(grow_as_rank, (manifest,))
    return Costs(
        rows=len(manifest),
        megabytes=path.stat().st_size / 1e6,
        read_seconds=read_seconds,
        sampler_seconds=sampler_seconds,
        epoch_seconds=epoch_seconds,
        resume_seconds=resume_seconds,
        first_batch_clock_seconds=clock_seconds,
        peak_megabytes=peak,
        rank_megabytes=own_megabytes() - before,
        other_rank_megabytes=other_rank,
        worker_megabytes=max(grown),
        shared_megabytes=sum(array.nbytes for array in manifest.columns.arrays.values()) / 1e6,
    )


def timed(function: Callable[[], Result]) -> tuple[Result, float]:
    start = time.process_time()
    result = function()
    return result, time.process_time() - start


@dataclass(frozen=True)
class Grown(Batch):
    """How much memory a worker has to itself, more than before its first batch."""

    grown_megabytes: float


class Look:
    """Looks at the utterances of a batch, as a reader does, but for their audio."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.before: float | None = None

    def __call__(self, plan: BatchPlan) -> Grown:
        if self.before is None:
            self.before = own_megabytes()
        assert all(self.manifest[index].num_output_samples >= (plan.crop_samples or 0) for index in plan.indices)
        return Grown(own_megabytes() - self.before)


def grow_as_rank(manifest: Manifest) -> float:
    """Have a sampler, as every rank does."""
    before = own_megabytes()
    sampler = BatchSampler(manifest.num_output_samples, BatchConfig(), 0, crop=True)
    assert sampler[sampler.num_batches].epoch == 1
    return own_megabytes() - before


def own_megabytes() -> float:
    """The memory of this process that it shares with no other."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) * 1024 / 1e6


def status_megabytes(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024 / 1e6


def predict(costs: Costs, factor: int) -> Costs:
    """Return the costs of so many times the rows; the start of the workers stays."""
    values = {name: value * factor for name, value in asdict(costs).items()}
    same = {name: getattr(costs, name) for name in ("first_batch_clock_seconds", "worker_megabytes")}
    return Costs(**values | same)


def print_row(costs: Costs) -> None:
    rows, *others = astuple(costs)
    print(
        "| " + " | ".join([f"{rows:,.0f}", *(f"{value:,.{1 if value < 10 else 0}f}" for value in others)]) + " |",
        flush=True,
    )


if __name__ == "__main__":
    main()
