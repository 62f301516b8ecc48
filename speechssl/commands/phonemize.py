"""``speechssl phonemize``."""

from pathlib import Path
from typing import Annotated

import typer

from speechssl.errors import ManifestError
from speechssl.terminal import exit_on_error, print_status


def phonemize(
    manifest: Annotated[Path, typer.Argument(metavar="MANIFEST", help="A manifest with texts.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE.tsv", help="The manifest to write.")],
    voice: Annotated[
        str, typer.Option(metavar="CODE", help="The language as espeak-ng calls it, such as en-us; see --voices there.")
    ],
) -> None:
    """Write a manifest again with phonemes (IPA) for texts, for `units = "phonemes"` in fine-tuning.

    By espeak-ng, a program, and the package phonemizer. The phonemes of a
    word are joined by slashes: h/ə/l/oʊ w/ɜː/l/d.
    """
    with exit_on_error():
        import os
        from dataclasses import replace

        from speechssl.data.manifest import read_manifest, write_manifest
        from speechssl.data.phonemizer import phonemize_texts
        from speechssl.transcribe.outputs import prepare_file

        prepare_file(output)
        found = read_manifest(manifest)
        if output.exists() and output.samefile(manifest):
            raise ManifestError(f"{output}: expected another file than the manifest that is read")
        if not any(utterance.text for utterance in found):
            raise ManifestError(f"{manifest}: expected transcripts in a column text, found none")
        texts = phonemize_texts([utterance.text or "" for utterance in found], voice)
        utterances = []
        for number, (utterance, text) in enumerate(zip(found, texts, strict=True)):
            if utterance.text and not text:
                raise ManifestError(f"{found.where(number)}: expected a text that is spoken, found {utterance.text!r}")
            path = os.path.abspath(utterance.path)  # noqa: PTH100, links stay
            utterances.append(replace(utterance, path=path, text=text or None))
        root = Path(os.path.abspath(found.root or "."))  # noqa: PTH100
        parent = output.parent.absolute()
        write_manifest(output, utterances, root.relative_to(parent) if root.is_relative_to(parent) else root)
        print_status(f"{output}: {len(utterances)} utterances in phonemes")
