"""``speechssl manifest``."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from speechssl.errors import ManifestError
from speechssl.terminal import exit_on_error, print_error, print_status


def manifest(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Recordings, in subfolders too.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE.tsv", help="The manifest to write.")],
) -> None:
    """Make a manifest of the recordings in a folder.

    The content of a .txt file with the same stem beside a recording
    becomes its text. Tar files are read where they are: recordings with
    .json or .txt of the same stem, as WebDataset has them, and the cuts of
    lhotse's Shar folders. Files that cannot be read are named on stderr, the
    others are still written. The manifest's root is relative if FOLDER
    lies beside or below it.
    """
    with exit_on_error():
        from speechssl.data.manifest import write_manifest
        from speechssl.data.scan import scan_folder
        from speechssl.transcribe.outputs import prepare_file

        prepare_file(output)
        found, failures = scan_folder(folder)
        for failure in failures:
            print_error(failure)
        if not found:
            raise ManifestError(f"{folder}: expected recordings that can be read, found none")
        root, parent = folder.resolve(), output.parent.resolve()
        utterances = [replace(item, path=str(root / Path(item.path).relative_to(folder))) for item in found]
        write_manifest(output, utterances, root.relative_to(parent) if root.is_relative_to(parent) else root)
        minutes = sum(utterance.seconds for utterance in utterances) / 60
        print_status(f"{output}: {len(utterances)} utterances, {minutes:.1f} minutes")
        if failures:
            sys.exit(1)
