"""Measure what pretraining with each objective costs: time beside the reference, FLOPs, memory.

    python recipes/prompts/costs.py OUT [NAME...]

OUT/data holds the unpacked corpus. OUT/costs.tsv gets a row for each objective that it lacks (budget.py says what the
columns are); by default, for all. What is measured is `speechssl pretrain` itself, on one core: a few updates of the
reference and a few of the objective in turns, in one process, so that what else the machine does slows both. The
median of the turns counts; the first one warms up. FLOPs are those of matrix products and convolutions in updates,
forward and backward, those of teachers included. The peak of memory is that of a process of its own.
"""

import argparse
import csv
import os
import shutil
import subprocess
import sys
import time
from contextlib import redirect_stderr
from dataclasses import astuple, fields
from itertools import pairwise
from pathlib import Path
from statistics import median

from speechssl.cpu import tune_cpu

tune_cpu()  # before torch is imported

import sklearn.cluster  # noqa: E402, F401 # so that its import does not count
import torch  # noqa: E402
from budget import REFERENCE, Cost, objective_names, read_costs, settings_of  # noqa: E402

from speechssl.data.audio import SAMPLE_RATE  # noqa: E402
from speechssl.data.manifest import read_manifest, write_manifest  # noqa: E402
from speechssl.data.sampler import BatchSampler  # noqa: E402
from speechssl.errors import ConfigError  # noqa: E402
from speechssl.model.flops import FlopCounter  # noqa: E402
from speechssl.terminal import exit_on_error, print_status  # noqa: E402
from speechssl.train.log import read_log  # noqa: E402
from speechssl.train.pretrain import PretrainConfig, pretrain  # noqa: E402

NUM_DEV = 2  # utterances to evaluate on, which is not measured
NUM_COUNTED = 4  # updates whose FLOPs are counted, and with which the peak of memory is measured


# `speechssl`, and then the KiB of memory that it had at most. Not getrusage, in which a process begins with the peak of
# the one that starts it.
PEAK_PROGRAM = """
import re
from pathlib import Path
from speechssl.__main__ import app
app(standalone_mode=False)
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


class Measured:
    """A run of an objective that goes on by a few updates at a time."""

    def __init__(self, name: str, out: Path, work: Path) -> None:
        self.name = name
        self.folder = work / name
        self.num_steps = 0
        data = [f"data.train={out / 'data' / 'pretrain_train.tsv'}", f"data.dev={work / 'dev.tsv'}"]
        self.settings = [*settings_of(name), *set_all(*data, "schedule.on_extend=restart")]
        self.settings += set_all("data.num_workers=0", "trainer.device=cpu", "trainer.log_steps=1000000")
        files = [Path(setting) for setting in self.settings[: self.settings.index("--set")]]
        self._load = lambda steps: PretrainConfig.load(files, [*overrides(self.settings), f"trainer.num_steps={steps}"])
        config = self._load(1)
        lengths = read_manifest(config.data.train).num_output_samples
        sampler = BatchSampler(lengths, config.batches, config.seed, crop=True)
        self._sampler, self._microbatches = sampler, config.trainer.microbatches
        self.update_seconds = sampler.seconds_per_epoch / sampler.num_batches * config.trainer.microbatches  # of audio

    def advance(self, num_updates: int) -> float:
        """Do so many updates and return the seconds that the whole program took."""
        self.num_steps += num_updates
        started = time.perf_counter()
        pretrain(self._load(self.num_steps), self.folder)
        return time.perf_counter() - started

    def time_update(self, num_updates: int) -> float:
        """Do so many updates and return the seconds of one, as the log says."""
        self.advance(num_updates)
        train = [line for line in read_log(self.folder) if line["split"] == "train"]
        return self.update_seconds / float(train[-1]["audio_seconds_per_second"])

    def audio_seconds(self, num_updates: int) -> float:
        """Return the audio in the updates done last."""
        numbers = range((self.num_steps - num_updates) * self._microbatches, self.num_steps * self._microbatches)
        plans = [self._sampler[number] for number in numbers]
        return sum(len(plan.indices) * (plan.crop_samples or 0) for plan in plans) / SAMPLE_RATE

    def count_flops(self, num_updates: int) -> float:
        """Do so many updates and return their FLOPs."""
        with FlopCounter() as counter:
            self.advance(num_updates)
        return counter.flops


def set_all(*settings: str) -> list[str]:
    return [argument for setting in settings for argument in ("--set", setting)]


def overrides(arguments: list[str]) -> list[str]:
    return [value for flag, value in pairwise(arguments) if flag == "--set"]


def measure(name: str, reference: Measured, out: Path, work: Path, num_turns: int, num_updates: int) -> Cost:
    """Measure an objective beside the reference, whose run goes on."""
    run = reference if name == REFERENCE else Measured(name, out, work)
    first_seconds = run.advance(num_updates)
    turns = []
    for _ in range(num_turns + 1):
        turns.append((reference.time_update(num_updates), run.time_update(num_updates)))
    reference_seconds = median(of_reference for of_reference, _ in turns[1:])
    other_seconds = median([run.advance(num_updates) for _ in range(2)])
    flops = run.count_flops(NUM_COUNTED)
    return Cost(
        name,
        update_ratio=1.0 if name == REFERENCE else median(own / of_reference for of_reference, own in turns[1:]),
        prepare_updates=max(first_seconds - other_seconds, 0) / reference_seconds,
        gflop_per_second=flops / run.audio_seconds(NUM_COUNTED) / 1e9,
        peak_mib=peak_memory(run, work / f"{name}_memory"),
    )


def peak_memory(run: Measured, folder: Path) -> float:
    """Return the MiB that a process of its own takes to begin a run."""
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-c", PEAK_PROGRAM, "pretrain", *run.settings, "--output", str(folder)]
    command += set_all(f"trainer.num_steps={NUM_COUNTED}")
    log = folder.parent / "memory.log"
    with log.open("w") as errors:
        process = subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, check=False)
    if process.returncode:
        raise ConfigError(f"{run.name}: its pretraining failed; see {log}")
    return int(process.stdout) / 2**10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--updates", type=int, default=15, help="in a turn")
    arguments = parser.parse_intermixed_args()  # options may stand before names
    with exit_on_error():
        table = arguments.out / "costs.tsv"
        costs = read_costs(table)
        wanted = [name for name in arguments.names or objective_names() if name not in costs]
        if not wanted:
            return
        torch.set_num_threads(1)
        os.environ["OMP_NUM_THREADS"] = "1"  # of the process whose memory is measured
        work = arguments.out / "costs"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        manifest = read_manifest(arguments.out / "data" / "pretrain_dev.tsv")
        write_manifest(
            work / "dev.tsv", [manifest[number] for number in range(NUM_DEV)], manifest.path.parent.absolute()
        )
        with (work / "log").open("w", encoding="utf-8") as log:
            with redirect_stderr(log):
                reference = Measured(REFERENCE, arguments.out, work)
                if REFERENCE not in wanted:
                    reference.advance(arguments.updates)
            for name in wanted:
                with redirect_stderr(log):
                    cost = measure(name, reference, arguments.out, work, arguments.turns, arguments.updates)
                is_new = not table.exists()
                with table.open("a", encoding="utf-8", newline="") as rows:
                    writer = csv.writer(rows, delimiter="\t", lineterminator="\n")
                    if is_new:
                        writer.writerow([field.name for field in fields(Cost)])
                    writer.writerow([name, *(f"{value:.4g}" for value in astuple(cost)[1:])])
                print_status(f"{name}: an update takes {cost.update_ratio:.2f} times as long as the reference's")
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
