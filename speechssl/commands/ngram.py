"""``speechssl ngram``."""

from pathlib import Path
from typing import Annotated

import typer

from speechssl.commands.options import Language
from speechssl.errors import LanguageModelError
from speechssl.terminal import exit_on_error, print_status


def ngram(
    texts: Annotated[
        list[Path], typer.Argument(metavar="FILE", help="Manifests with texts (.tsv), or texts with a sentence a line.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE.arpa", help="The file to write.")],
    order: Annotated[int, typer.Option(min=1, max=9, metavar="N", help="Words in the longest n-gram.")] = 3,
    normalize: Annotated[
        bool,
        typer.Option(
            "--normalize",
            help="Reduce texts to lower-case words without punctuation, as recipes/own_data does with labels; those "
            "with digits are left out.",
        ),
    ] = False,
    language: Language = None,
) -> None:
    """Estimate an n-gram language model from texts, for --lm.

    By interpolated modified Kneser-Ney smoothing, with all n-grams of the
    texts. The texts should be written as the model writes: the same
    letters and case, no punctuation that it does not know.
    """
    with exit_on_error():
        from speechssl.decode.arpa import write_arpa
        from speechssl.decode.kneser_ney import estimate_ngrams
        from speechssl.decode.texts import read_texts
        from speechssl.transcribe.outputs import prepare_file

        prepare_file(output)
        if output.exists() and any(path.exists() and path.samefile(output) for path in texts):
            raise LanguageModelError(f"{output}: expected another file than those with the texts")
        model = estimate_ngrams(read_texts(texts, normalize, language), order)
        write_arpa(output, model)
        print_status(f"{output}: {len(model.words)} words, {len(model.entries)} n-grams")
