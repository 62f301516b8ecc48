"""Options that several commands share, and how commands print their help."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from speechssl import __version__


class Precision(StrEnum):
    """The type of matrix products and convolutions."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


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

Language = Annotated[
    str | None,
    typer.Option("--language", metavar="CODE", help="Of a model with adapters for languages (MMS), such as fra."),
]

Device = Annotated[
    str | None,
    typer.Option(
        "--device", metavar="NAME", help="A torch device such as cpu or cuda:1. Default: the GPU if there is one."
    ),
]

InferencePrecision = Annotated[
    Precision | None,
    typer.Option("--precision", help="How the model computes. Default: float32 on a CPU, 16 bits on a GPU."),
]

LanguageModelFile = Annotated[
    Path | None,
    typer.Option(
        "--lm",
        metavar="FILE.arpa|FILE.toml",
        help="Decode with a language model: an ARPA file, or what tune-lm wrote. Default: greedy decoding.",
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
