"""``speechssl shard``."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from speechssl.errors import ConfigError, ManifestError
from speechssl.terminal import count, exit_on_error, print_error, print_status


def shard(
    manifest: Annotated[Path, typer.Argument(metavar="MANIFEST", help="The utterances to write, in this order.")],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FOLDER|URL", help="Where the shards go, such as s3://bucket/name.")
    ],
    new_manifest: Annotated[
        Path | None,
        typer.Option(
            "--manifest",
            metavar="FILE.tsv",
            help="The manifest of the shards to write. Default: of MANIFEST's name, in FOLDER.",
        ),
    ] = None,
    encode: Annotated[
        Literal["copy", "flac", "opus"],
        typer.Option(
            help="copy: recordings as they are, spans of them as FLAC; flac: all of it as FLAC; opus: as 16 kHz Opus."
        ),
    ] = "copy",
    shard_mib: Annotated[
        float, typer.Option("--shard-mib", min=0.01, metavar="SIZE", help="The size of a shard in MiB, at most.")
    ] = 512,
) -> None:
    """Write utterances into tar files, so that millions of them are a few thousand files.

    Each utterance becomes a clip of its own, beside JSON with its text,
    speaker and language: WebDataset's convention. The manifest that is
    written names each clip by its range of bytes in a shard: every command
    takes it, and reads no more than that, from a disk or an object store.
    Finished shards are kept unless something has changed. Recordings that
    cannot be read are named on stderr, the others are still written.
    """
    with exit_on_error():
        from speechssl.data.manifest import read_manifest, write_manifest
        from speechssl.data.paths import is_url
        from speechssl.data.shards import ShardConfig, write_shards
        from speechssl.data.stores import Folder, Prefix
        from speechssl.terminal import progress

        if new_manifest is None and is_url(output):
            raise ConfigError(f"{output}: expected --manifest FILE.tsv, a local file, beside a URL; found none")
        target = new_manifest or Path(output, manifest.with_suffix(".tsv").name)
        source = read_manifest(manifest)
        if target.exists() and target.samefile(manifest):
            raise ManifestError(f"{target}: expected another manifest to write than the one that is read")
        store = Prefix(output) if is_url(output) else Folder(str(Path(output).absolute()))
        with progress("writing shards", len(source)) as advance:
            shards = write_shards(source, store, ShardConfig(int(shard_mib * 2**20), encode), advance)
        for failure in shards.failures:
            print_error(failure)
        if not shards.utterances:
            raise ManifestError(f"{manifest}: expected recordings that can be read, found none")
        place, parent = Path(store.place), target.parent.absolute()
        is_beside = not is_url(output) and place.is_relative_to(parent)
        write_manifest(target, shards.utterances, place.relative_to(parent) if is_beside else store.place)
        kept = f" ({shards.num_kept} kept)" if shards.num_kept else ""
        size = f"{count(shards.num_shards, 'shard')}{kept} of {shards.num_bytes / 2**20:.1f} MiB"
        minutes = sum(utterance.seconds for utterance in shards.utterances) / 60
        print_status(f"{target}: {count(len(shards.utterances), 'utterance')}, {minutes:.1f} minutes, {size}")
        if shards.failures:
            sys.exit(1)
