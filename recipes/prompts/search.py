"""The search for the settings of each objective: as many trials for each, scored by the probe of letters.

    python recipes/prompts/search.py jobs [NAME...]         # a line a trial, for objectives.sh
    python recipes/prompts/search.py settings NAME NUMBER   # its settings as arguments of `speechssl pretrain`
    python recipes/prompts/search.py best OUT               # all trials as a table, into OUT/search/trials.md too

The trials are the rows of objectives/search.tsv: the objective, and settings after the tab, between spaces, which
differ from those of its file; "-" is the file as it is. Every objective that is searched has the same number.
"""

import argparse
import json
from pathlib import Path

from speechssl.errors import ConfigError
from speechssl.files import write_text_file
from speechssl.terminal import exit_on_error

TRIALS = Path(__file__).parent / "objectives" / "search.tsv"


def read_trials(file: Path = TRIALS) -> dict[str, list[list[str]]]:
    """Return by objective the settings of each trial.

    Raises:
        ConfigError: a row is malformed, or objectives have different numbers of trials.
    """
    trials: dict[str, list[list[str]]] = {}
    for number, line in enumerate(file.read_text("utf-8").splitlines()[1:], 2):
        name, _, settings = line.partition("\t")
        if not settings:
            raise ConfigError(f"{file}:{number}: expected an objective, a tab and settings, found {line!r}")
        trials.setdefault(name, []).append([] if settings == "-" else settings.split())
    counts = {name: len(settings) for name, settings in trials.items()}
    if len(set(counts.values())) > 1:
        raise ConfigError(f"{file}: expected as many trials of each objective, found {counts}")
    return trials


def best_layer(probes: Path) -> float:
    """Return the share of letters that is read from the best layer of a model."""
    (row,) = json.loads(probes.read_text("utf-8"))["rows"]
    return max(float(layer["letters"]) for layer in row["layers"])


def format_trials(out: Path) -> str:
    """Return a table of the finished trials; the best of each objective is bold."""
    lines = ["| objective | settings | letters read from the best layer, % |", "|---|---|---|"]
    for name, trials in read_trials().items():
        scores = {
            number: best_layer(probes)
            for number in range(len(trials))
            if (probes := out / "search" / f"{name}_{number}" / "probes.json").exists()
        }
        for number, score in scores.items():
            shown = f"{100 * score:.1f}"
            value = f"**{shown}**" if number == max(scores, key=lambda other: scores[other]) else shown
            settings = " ".join(f"`{setting}`" for setting in trials[number]) or "as in its file"
            lines.append(f"| {name} | {settings} | {value} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("jobs").add_argument("names", nargs="*")
    settings = commands.add_parser("settings")
    settings.add_argument("name")
    settings.add_argument("number", type=int)
    commands.add_parser("best").add_argument("out", type=Path)
    given = parser.parse_args()
    with exit_on_error():
        trials = read_trials()
        if given.command == "jobs":
            # All objectives' first trials come first.
            for number in range(max(map(len, trials.values()), default=0)):
                for name in given.names:
                    if name in trials:
                        print(f"trial {name} {number}")
        elif given.command == "settings":
            for setting in trials[given.name][given.number]:
                print("--set", setting, sep="\n")
        else:
            table = format_trials(given.out)
            write_text_file(given.out / "search" / "trials.md", table)
            print(table, end="")


if __name__ == "__main__":
    main()
