"""Sentences from manifests and text files."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from speechssl.data.manifest import read_manifest
from speechssl.data.normalize import has_digits, normalize_labels
from speechssl.data.units import WORD_DELIMITER, split_words
from speechssl.decode.ngram import find_mark
from speechssl.errors import LanguageModelError


def read_texts(paths: Sequence[Path], normalize: bool = False, language: str | None = None) -> Iterator[str]:
    """Yield the texts of manifests (``.tsv``) and the lines of other files.

    With ``normalize`` they are reduced to their words by ``normalize_labels``, and those with digits are left out,
    which is a warning. The language is that of texts of which no manifest states it.

    Raises:
        SpeechSSLError: a file cannot be read, has no text, or has one with a mark such as ``<s>``.
    """
    for path in paths:
        num_texts = num_with_digits = 0
        for where, text, stated in _read(path):
            if mark := find_mark(text.split()):
                raise LanguageModelError(f"{where}: expected a text without {mark}, found {text.strip()!r:.80}")
            num_texts += bool(text.strip())
            if not normalize:
                yield text
            elif not has_digits(text):
                yield normalize_labels(text, stated or language)
            else:
                num_with_digits += 1
        if not num_texts:
            raise LanguageModelError(f"{path}: expected texts, found none")
        if num_with_digits:
            warnings.warn(f"{path}: {num_with_digits} of {num_texts} texts have digits and are left out", stacklevel=2)


def spell_texts(texts: Iterable[str]) -> Iterator[str]:
    """Yield texts with each letter as a word and `WORD_DELIMITER` after each word, for a language model of letters."""
    for text in texts:
        if WORD_DELIMITER in text:
            raise LanguageModelError(f"expected texts without '{WORD_DELIMITER}', found {text.strip()!r:.80}")
        yield " ".join(letter for word in split_words(text) for letter in (*word, WORD_DELIMITER))


def _read(path: Path) -> Iterator[tuple[str, str, str | None]]:
    """Yield where each text stands, the text, and its language if that is stated."""
    if path.suffix == ".tsv":
        manifest = read_manifest(path)
        for index, utterance in enumerate(manifest):
            if utterance.text is not None:
                yield manifest.where(index), utterance.text, utterance.language
        return
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                yield f"{path}:{number}", line, None
    except OSError as error:
        raise LanguageModelError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise LanguageModelError(f"{path}: expected UTF-8: {error}") from None
