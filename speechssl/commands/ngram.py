"""``speechssl ngram``."""

from pathlib import Path
from typing import Annotated

import typer

from speechssl.commands.options import Language, NormalizeTexts
from speechssl.errors import LanguageModelError
from speechssl.terminal import exit_on_error, print_status


def parse_thresholds(text: str) -> tuple[int, ...]:
    """Turn numbers with commas between, 0 and then none less than the one before it, into a tuple."""
    numbers = text.split(",")
    thresholds = tuple(int(number) for number in numbers if number.strip().isdecimal())
    if len(thresholds) < len(numbers) or thresholds[0] != 0 or list(thresholds) != sorted(thresholds):
        expected = "expected 0 and then numbers that do not fall, such as 0,1,2"
        raise typer.BadParameter(f"{expected}, found {text!r}", param_hint="--prune")
    return thresholds


def ngram(
    texts: Annotated[
        list[Path], typer.Argument(metavar="FILE", help="Manifests with texts (.tsv), or texts with a sentence a line.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE.arpa", help="The file to write.")],
    order: Annotated[int, typer.Option(min=1, max=9, metavar="N", help="Words in the longest n-gram.")] = 3,
    prune: Annotated[
        str,
        typer.Option(
            metavar="N,N,...",
            help="Drop n-grams that were seen no more often: a number for each length, the last for all longer ones "
            "too. 0,0,1 drops what has three words or more and was seen once.",
        ),
    ] = "0",
    letters: Annotated[
        bool,
        typer.Option(
            "--letters",
            help="Estimate a model of letters, for scripts without spaces and for words that no text has; --order 6 "
            "suits it.",
        ),
    ] = False,
    normalize: NormalizeTexts = False,
    language: Language = None,
) -> None:
    """Estimate an n-gram language model from texts, for --lm.

    By interpolated modified Kneser-Ney smoothing. The texts should be written as the model writes: the same
    letters and case, no punctuation that it does not know.
    """
    thresholds = parse_thresholds(prune)
    with exit_on_error():
        from speechssl.decode.arpa import write_arpa
        from speechssl.decode.kneser_ney import estimate_ngrams
        from speechssl.decode.texts import read_texts, spell_texts
        from speechssl.transcribe.outputs import prepare_file

        prepare_file(output)
        if output.exists() and any(path.exists() and path.samefile(output) for path in texts):
            raise LanguageModelError(f"{output}: expected another file than those with the texts")
        sentences = read_texts(texts, normalize, language)
        model = estimate_ngrams(spell_texts(sentences) if letters else sentences, order, thresholds)
        write_arpa(output, model)
        print_status(f"{output}: {len(model.words)} words, {len(model.entries)} n-grams")
