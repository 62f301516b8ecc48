"""The rows of the comparison of objectives: which files each is made of, and how many updates its time allows.

    python recipes/prompts/budget.py names
    python recipes/prompts/budget.py arguments OUT NAME SECONDS UPDATE_SECONDS [REFERENCE_RUN]

The first prints the names of the objectives, the reference first. The second prints the arguments of `speechssl
pretrain` for one of them, one a line: its configuration and as many updates as cost SECONDS. UPDATE_SECONDS is what an
update of the reference is stated to take; what one of another objective takes beside it, costs.py measured and wrote
into OUT/costs.tsv.
"""

import argparse
import csv
import os
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path

from speechssl.errors import ConfigError
from speechssl.terminal import exit_on_error

RECIPE = Path(__file__).parent
REFERENCE = "masked_prediction"  # of pretrain.toml


@dataclass(frozen=True)
class Cost:
    """What an objective costs; a row of costs.tsv.

    Attributes:
        objective: Its name.
        update_ratio: The time of an update over that of the reference's, measured in turns.
        prepare_updates: The time before the first update, such as finding clusters, in updates of the reference.
        gflop_per_second: Of training on a second of audio.
        peak_mib: Resident memory of the process that trains.
    """

    objective: str
    update_ratio: float
    prepare_updates: float
    gflop_per_second: float
    peak_mib: float


def objective_names() -> list[str]:
    """Return the reference and the files of objectives."""
    return [REFERENCE, *sorted(file.stem for file in (RECIPE / "objectives").glob("*.toml"))]


def settings_of(name: str, reference_run: Path | None = None) -> list[str]:
    """Return the configuration of an objective as arguments of `speechssl pretrain`.

    Targets of a trained model (`objective.targets`) are those of the reference's run; without one, of the file's own.
    """
    if name not in objective_names():
        raise ConfigError(f"{name}: expected one of {' '.join(objective_names())}")
    arguments = [os.environ.get("ENCODER") or str(RECIPE / "encoder.toml"), str(RECIPE / "pretrain.toml")]
    if name != REFERENCE:
        file = RECIPE / "objectives" / f"{name}.toml"
        arguments.append(str(file))
        if reference_run is not None and "targets" in tomllib.loads(file.read_text("utf-8")).get("objective", {}):
            arguments += ["--set", f"objective.targets.model={reference_run}"]
    return arguments


def read_costs(file: Path) -> dict[str, Cost]:
    """Read costs.tsv, by objective; empty if there is none."""
    if not file.exists():
        return {}
    found = {}
    with file.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines, delimiter="\t"):
            try:
                values = [row[field.name] for field in fields(Cost)]
                found[values[0]] = Cost(values[0], *map(float, values[1:]))
            except (KeyError, TypeError, ValueError):
                expected = " ".join(field.name for field in fields(Cost))
                raise ConfigError(f"{file}: expected columns {expected}, as costs.py writes them") from None
    return found


def num_updates(cost: Cost, seconds: float, update_seconds: float) -> int:
    """Return how many updates of an objective take as long as the reference's in so many seconds."""
    found = int((seconds / update_seconds - cost.prepare_updates) / cost.update_ratio)
    if found < 1:
        raise ConfigError(f"{cost.objective}: {seconds:g} s are too few for an update, preparation included")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("names")
    arguments = commands.add_parser("arguments")
    arguments.add_argument("out", type=Path)
    arguments.add_argument("name")
    arguments.add_argument("seconds", type=float)
    arguments.add_argument("update_seconds", type=float)
    arguments.add_argument("reference_run", type=Path, nargs="?")
    given = parser.parse_args()
    with exit_on_error():
        if given.command == "names":
            print(*objective_names(), sep="\n")
            return
        costs = read_costs(given.out / "costs.tsv")
        if given.name not in costs:
            raise ConfigError(f"{given.out / 'costs.tsv'}: expected a row of {given.name}, found none; run costs.py")
        steps = num_updates(costs[given.name], given.seconds, given.update_seconds)
        settings = settings_of(given.name, given.reference_run)
        print(*settings, "--set", f"trainer.num_steps={steps}", sep="\n")


if __name__ == "__main__":
    main()
