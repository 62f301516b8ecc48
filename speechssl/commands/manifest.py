"""``speechssl manifest``."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from speechssl.commands.options import Device
from speechssl.cpu import tune_cpu
from speechssl.errors import ManifestError
from speechssl.terminal import exit_on_error, print_error, print_status

if TYPE_CHECKING:
    from speechssl.data.manifest import Utterance


def manifest(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Recordings, in subfolders too.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE.tsv", help="The manifest to write.")],
    from_long: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL",
            help="Cut long recordings with their texts into utterances, where this fine-tuned model, any that speaks "
            "CTC, hears that text and speech agree.",
        ),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(help="With --from-long: where the texts are, as for `align`. Default: beside the recordings."),
    ] = None,
    max_seconds: Annotated[float, typer.Option(min=1, help="With --from-long: the longest utterance.")] = 15.0,
    device: Device = None,
) -> None:
    """Make a manifest of the recordings in a folder.

    The content of a .txt file with the same stem beside a recording
    becomes its text. Tar files are read where they are: recordings with
    .json or .txt of the same stem, as WebDataset has them, and the cuts of
    lhotse's Shar folders. Files that cannot be read are named on stderr, the
    others are still written. The manifest's root is relative if FOLDER
    lies beside or below it.

    With --from-long an hour of an audiobook and its text become utterances
    with texts as they are written: cuts lie in pauses, and passages are
    left out whose text is not all that is said in them.
    """
    with exit_on_error():
        from speechssl.data.manifest import write_manifest
        from speechssl.data.scan import scan_folder
        from speechssl.transcribe.outputs import prepare_file

        prepare_file(output)
        if from_long is not None:
            found, is_fine = _cut(folder, text, from_long, max_seconds, device)
            if not found:
                raise ManifestError(f"{folder}: expected a passage in which text and speech agree, found none")
        elif text is not None:
            raise typer.BadParameter("expected --from-long beside it", param_hint="--text")
        else:
            found, failures = scan_folder(folder)
            for failure in failures:
                print_error(failure)
            if not found:
                raise ManifestError(f"{folder}: expected recordings that can be read, found none")
            is_fine = not failures
        folder = folder if folder.is_dir() else folder.parent
        root, parent = folder.resolve(), output.parent.resolve()
        utterances = [replace(item, path=str(root / Path(item.path).relative_to(folder))) for item in found]
        write_manifest(output, utterances, root.relative_to(parent) if root.is_relative_to(parent) else root)
        minutes = sum(utterance.seconds for utterance in utterances) / 60
        print_status(f"{output}: {len(utterances)} utterances, {minutes:.1f} minutes")
        if not is_fine:
            sys.exit(1)


def _cut(
    folder: Path, text: Path | None, model: Path, max_seconds: float, device: str | None
) -> tuple[Sequence["Utterance"], bool]:
    """Return the utterances of long recordings, and whether everything could be read."""
    tune_cpu()  # before torch is imported
    from speechssl.data.manifest import is_manifest
    from speechssl.transcribe.align_job import find_pairs
    from speechssl.transcribe.passages import cut_recordings
    from speechssl.transcribe.transcriber import Transcriber

    if not folder.exists():
        raise ManifestError(f"{folder}: expected a folder or a recording, found none")
    if folder.is_file() and is_manifest(folder):
        raise ManifestError(f"{folder}: expected a folder or a recording, found a manifest")
    pairs, failures = find_pairs(folder, text)
    for failure in failures:
        print_error(failure)
    if not pairs:
        return [], False
    utterances, is_fine = cut_recordings(Transcriber.load(model, device), pairs, max_seconds)
    return utterances, is_fine and not failures
