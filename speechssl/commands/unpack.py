"""``speechssl unpack``."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from speechssl.terminal import exit_on_error, print_error


def unpack(
    manifests: Annotated[list[Path], typer.Argument(metavar="MANIFEST", help="Manifests of the recordings to decode.")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FOLDER", help="Where the copies and manifests of the same names go."),
    ],
) -> None:
    """Decode recordings once, to 16 kHz WAV, where training would do it in every epoch.

    Worth its disk space (115 MB an hour) for mp3, Opus, video and rates
    other than 16 kHz. Existing copies are kept unless the recording
    has changed. Recordings that cannot be read are named on stderr, the
    others are still written.
    """
    with exit_on_error():
        from speechssl.data.manifest import read_manifest
        from speechssl.data.unpack import unpack_manifests

        failures = unpack_manifests([read_manifest(path) for path in manifests], output)
        for failure in failures:
            print_error(failure)
        if failures:
            sys.exit(1)
