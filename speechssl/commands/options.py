"""Options that several commands share, and how commands print their help."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from speechssl import __version__


def make_app(**settings: Any) -> typer.Typer:
    """Make a command line whose help is printed as it is written: rich would take [brackets] for markup."""
    return typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, **settings)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"speechssl {__version__}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
]

Recordings = Annotated[
    list[str],
    typer.Argument(
        metavar="FILE",
        help="Recordings in any common format; folders, searched with their subfolders; patterns; - for stdin.",
    ),
]

_SOURCES = "a model folder (ours or Hugging Face's), a run folder, or a name on the Hugging Face Hub"

AnyModel = Annotated[Path, typer.Argument(metavar="MODEL", help=f"{_SOURCES[0].upper()}{_SOURCES[1:]}.")]

FinetunedModel = Annotated[Path, typer.Argument(metavar="MODEL", help=f"A fine-tuned model: {_SOURCES}.")]

Device = Annotated[
    str | None,
    typer.Option(
        "--device", metavar="NAME", help="A torch device such as cpu or cuda:1. Default: the GPU if there is one."
    ),
]

InferencePrecision = Annotated[
    Literal["float32", "bfloat16", "float16"] | None,
    typer.Option("--precision", help="How the model computes. Default: float32 on a CPU, 16 bits on a GPU."),
]

LanguageModelFile = Annotated[
    Path | None,
    typer.Option(
        "--lm",
        metavar="FILE.arpa|FILE.toml",
        help="Decode with a language model: an ARPA file, a binary of KenLM, or what tune-lm wrote. Default: greedy "
        "decoding.",
    ),
]

HotwordsFile = Annotated[
    Path | None,
    typer.Option(
        "--hotwords",
        metavar="FILE.tsv",
        help="Listen for the phrases of a table, such as names: a phrase a line; with tabs between, how much it counts "
        "(nats a letter; default 1.5) and what to write for it. Everything else stays as it is.",
    ),
]

WordsOnly = Annotated[
    bool,
    typer.Option(
        "--normalize",
        help="Score words alone: punctuation and the kind of apostrophe are no errors. Letter case never is one.",
    ),
]

Language = Annotated[
    str | None,
    typer.Option(
        "--language",
        metavar="CODE",
        help="What is spoken, such as fra or tr: the adapter of a model of many languages (MMS), and in texts the "
        "capitals of tr and az, İ and I.",
    ),
]

Configurations = Annotated[
    list[Path], typer.Argument(metavar="CONFIG.toml", help="Settings that differ from the defaults; later files win.")
]

RunFolder = Annotated[
    Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where the run lives; it is resumed if it exists.")
]

Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a setting; TOML syntax.")
]

NormalizeTexts = Annotated[
    bool,
    typer.Option(
        "--normalize",
        help="Reduce texts to lower-case words without punctuation, as recipes/own_data does with labels; those "
        "with digits are left out.",
    ),
]
