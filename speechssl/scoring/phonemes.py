"""Phoneme error rates, and the 39 phones that TIMIT's 61 are folded into before they are compared."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from unicodedata import normalize

import jiwer

from speechssl.data.phonemes import JOINER
from speechssl.scoring.error_rates import ErrorCounts

_SAME = "iy ih eh ae ah uw uh aa ey ay oy aw ow l r y w er m n ng ch jh dh b d dx g p t k z v f th s sh hh"
_FOLDED = {
    "aa": "ao",
    "ah": "ax ax-h",
    "er": "axr",
    "hh": "hv",
    "ih": "ix",
    "l": "el",
    "m": "em",
    "n": "en nx",
    "ng": "eng",
    "sh": "zh",
    "sil": "pcl tcl kcl bcl dcl gcl h# pau epi sil",
    "uw": "ux",
}

TIMIT_39: Mapping[str, str | None] = MappingProxyType(
    {phone: phone for phone in _SAME.split()}
    | {phone: folded for folded, phones in _FOLDED.items() for phone in phones.split()}
    | {"q": None}
)
"""What each of TIMIT's phones counts as, None as nothing (Lee and Hon, 1989, https://doi.org/10.1109/29.46546)."""


def count_phonemes(
    references: Sequence[str], hypotheses: Sequence[str], folding: Mapping[str, str | None] | None = None
) -> list[ErrorCounts]:
    """Count the edits in phonemes that turn each reference into its hypothesis; case tells phonemes apart.

    Args:
        references: Phonemes between spaces, or slashes within a word.
        hypotheses: As many.
        folding: What each phoneme counts as, None as nothing; others stay as they are.
    """
    if len(references) != len(hypotheses):
        raise ValueError(f"expected as many hypotheses as references ({len(references)}), found {len(hypotheses)}")
    counts = []
    for pair in zip(references, hypotheses, strict=True):
        reference, hypothesis = (_phonemes(text, folding or {}) for text in pair)
        output = jiwer.process_words(" ".join(reference), " ".join(hypothesis))
        counts.append(ErrorCounts(output.substitutions, output.deletions, output.insertions, len(reference)))
    return counts


def _phonemes(text: str, folding: Mapping[str, str | None]) -> list[str]:
    folded = (folding.get(phoneme, phoneme) for phoneme in normalize("NFC", text).replace(JOINER, " ").split())
    return [phoneme for phoneme in folded if phoneme is not None]
