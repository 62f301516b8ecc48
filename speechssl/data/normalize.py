"""Texts as people write them -> the letters that are spoken, for labels and for scoring."""

import re
from unicodedata import category, normalize

_APOSTROPHES = re.compile("[\u2018\u2019\u201b\u02bc\u02b9\uff07`\u00b4]")
# Not by \w, which marks are no part of: a word has letters, marks and digits, as `_spoken` leaves them.
_BORDER_APOSTROPHES = re.compile("(?<![^ '])'|'(?![^ '])")

_DOTTED_I = ("tr", "az")  # languages in which the capital of ı is I, and that of i is İ


def normalize_labels(text: str, language: str | None = None) -> str:
    """Reduce a text to lower-case letters, digits and the apostrophes inside words, with single spaces between words.

    Letters of any script stay, with their marks, in Unicode's composed form; punctuation and symbols separate words,
    and invisible formatting characters vanish. Digits stay because no rule knows how they are read: a recipe drops
    such texts or spells them out.

    Args:
        text: As written.
        language: Its code, for the capitals of Turkish and Azerbaijani; others are as Unicode has them.
    """
    composed = _APOSTROPHES.sub("'", normalize("NFC", text))
    if language in _DOTTED_I:
        composed = composed.replace("I", "ı").replace("İ", "i")
    kept = (_spoken(character) for character in normalize("NFC", composed.lower()))
    return " ".join(_BORDER_APOSTROPHES.sub(" ", "".join(kept)).split())


def has_digits(text: str) -> bool:
    """Tell whether a text has a digit of any script."""
    return any(category(character)[0] == "N" for character in text)


def _spoken(character: str) -> str:
    kind = category(character)
    if kind == "Cf":
        return ""
    return character if kind[0] in "LMN" or character == "'" else " "
