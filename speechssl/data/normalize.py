"""Texts as people write them -> the letters that are spoken, for labels and for scoring."""

import re
from unicodedata import category, normalize

_APOSTROPHES = re.compile("[\u2018\u2019\u201b\u02bc\u02b9\uff07`\u00b4]")
# Not by \w, which marks are no part of: a word has letters, marks and digits, as `_spoken` leaves them.
_BORDER_APOSTROPHES = re.compile("(?<![^ '])'|'(?![^ '])")

_DOTTED_I = ("tr", "tur", "az", "aze", "azj", "crh", "gag")  # languages whose capital of ı is I, and that of i is İ
# The dot above an i, after marks below it. Lithuanian keeps it under an accent, and lower-case İ has one everywhere but
# in those languages; the letter is the same without it.
_SECOND_DOT = re.compile("([ij][\u0316-\u0333]*)\u0307")


def lower_case(text: str, language: str | None = None) -> str:
    """Return a text in lower case and Unicode's composed form.

    Args:
        text: As written.
        language: Its code, such as "tr" or "az-Latn", for the dotted and dotless I of Turkish and its relatives.
    """
    text = normalize("NFC", text)
    if language and re.split("[-_]", language.lower())[0] in _DOTTED_I:
        text = text.replace("I", "ı").replace("İ", "i")
    return normalize("NFC", _SECOND_DOT.sub(r"\1", normalize("NFD", text.lower())))


def normalize_labels(text: str, language: str | None = None) -> str:
    """Reduce a text to lower-case letters, digits and the apostrophes inside words, with single spaces between words.

    Letters of any script stay, with their marks; punctuation and symbols separate words, and invisible formatting
    characters vanish. Digits stay because no rule knows how they are read: a recipe drops such texts or spells them
    out. ``language`` is as for `lower_case`.
    """
    kept = (_spoken(character) for character in lower_case(_APOSTROPHES.sub("'", text), language))
    return " ".join(_BORDER_APOSTROPHES.sub(" ", "".join(kept)).split())


def has_digits(text: str) -> bool:
    """Tell whether a text has a digit of any script."""
    return any(category(character)[0] == "N" for character in text)


def _spoken(character: str) -> str:
    kind = category(character)
    if kind == "Cf":
        return ""
    return character if kind[0] in "LMN" or character == "'" else " "
