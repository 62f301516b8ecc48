"""Turn the lines as written into the letters that are spoken."""

import re

from speechssl.data.normalize import has_digits, normalize_labels

_SPELLED = {"dr": "doctor", "id": "i d", "mr": "mister", "vs": "versus"}
_HESITATIONS = ((r"h+m{2,}", "hmm"), (r"u+m{2,}", "um"), (r"e+r{2,}", "er"))  # written with any number of letters
_WITHOUT_VOWELS = {"hmm", "hmph", "tsk", "shh", "psst"}


def spoken_text(line: str) -> tuple[str | None, str]:
    """Return the letters that are spoken, or None and the reason.

    A line may be a noise that no letters spell, such as `(sigh)`, `<koff>`, `Grrrrr!`, `Eeeeeep!` or `Frrblt`.
    """
    if re.search(r"[<>()&/]", line):
        return None, "a sign or a noise in brackets"
    if has_digits(line):
        return None, "digits"
    words = [_spelled(word) for word in normalize_labels(line).split()]
    if not words:
        return None, "no letters"
    if any(_is_noise(word) for word in words):
        return None, "a noise that no letters spell"
    return " ".join(words), ""


def _spelled(word: str) -> str:
    for pattern, spelling in _HESITATIONS:
        if re.fullmatch(pattern, word):
            return spelling
    return _SPELLED.get(word, word)


def _is_noise(word: str) -> bool:
    has_no_vowel = len(word) > 2 and not re.search(r"[^b-df-hj-np-tv-xz']", word) and word not in _WITHOUT_VOWELS
    return has_no_vowel or bool(re.search(r"(.)\1\1", word))
