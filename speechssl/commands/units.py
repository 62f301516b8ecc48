"""``speechssl units``."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from speechssl.commands.options import Language, NormalizeTexts
from speechssl.terminal import exit_on_error, print_status


def units(
    texts: Annotated[
        list[Path], typer.Argument(metavar="FILE", help="Manifests with texts (.tsv), or texts with a sentence a line.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE.json", help="The file to write.")],
    kind: Annotated[
        Literal["letters", "pieces", "phonemes"],
        typer.Option(help="pieces: parts of words, found by sentencepiece. phonemes: h/ə/l/oʊ w/ɜː/l/d or hh ax l ow."),
    ] = "pieces",
    size: Annotated[
        int | None, typer.Option(min=3, metavar="N", help="How many pieces, CTC's blank among them. Default: 500.")
    ] = None,
    normalize: NormalizeTexts = False,
    language: Language = None,
) -> None:
    """Choose what the outputs of a model stand for, for `units = FILE` in fine-tuning.

    Texts in the training and dev manifests may have no other characters,
    or phonemes, than those here. The file is part of the model afterwards.
    """
    with exit_on_error():
        from speechssl.data.phonemes import Phonemes
        from speechssl.data.pieces import train_pieces
        from speechssl.data.units import Letters, Units
        from speechssl.decode.texts import read_texts
        from speechssl.errors import ConfigError
        from speechssl.transcribe.outputs import prepare_file

        if kind != "pieces" and (size is not None or (kind == "phonemes" and normalize)):
            raise ConfigError(f"--kind {kind}: expected neither --size nor, for phonemes, --normalize")
        prepare_file(output)
        if output.exists() and any(path.exists() and path.samefile(output) for path in texts):
            raise ConfigError(f"{output}: expected another file than those with the texts")
        lines = list(read_texts(texts, normalize, language))
        makers: dict[str, Callable[[list[str]], Units]] = {
            "letters": Letters.from_texts,
            "pieces": partial(train_pieces, size=size or 500),
            "phonemes": Phonemes.from_texts,
        }
        vocabulary = makers[kind](lines)
        vocabulary.save(output)
        print_status(f"{output}: {len(vocabulary)} {kind}")
