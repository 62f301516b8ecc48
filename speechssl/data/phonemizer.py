"""Texts as words -> texts as phonemes, by espeak-ng through the package phonemizer."""

from collections.abc import Sequence

from speechssl.data.phonemes import JOINER
from speechssl.data.units import split_words
from speechssl.errors import ConfigError


def phonemize_texts(texts: Sequence[str], language: str) -> list[str]:
    """Return the phonemes of each text (IPA, without stress), those of a word joined as `Phonemes` has them.

    Args:
        texts: As written.
        language: A voice of espeak-ng, such as "en-us" or "fr-fr".

    Raises:
        ConfigError: the package or the program is missing, or there is no such voice.
    """
    try:
        from phonemizer import phonemize
        from phonemizer.separator import Separator
    except ImportError:
        raise ConfigError("phonemize needs the package phonemizer: pip install 'speechssl[phonemes]'") from None
    lines = [" ".join(split_words(text)) for text in texts]
    try:
        found = phonemize(
            lines,
            language=language,
            backend="espeak",
            separator=Separator(word=" ", phone=JOINER),
            strip=True,
            preserve_empty_lines=True,
            language_switch="remove-flags",  # of words that it reads in another language
        )
    except RuntimeError as error:
        expected = "expected espeak-ng on this machine and one of its voices (espeak-ng --voices) for the language"
        raise ConfigError(f"phonemize: {expected}, found {language!r}: {error}") from None
    assert len(found) == len(texts), "lines stay lines"
    return [" ".join(split_words(line)) for line in found]
