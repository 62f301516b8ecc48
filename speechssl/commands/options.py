"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

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
