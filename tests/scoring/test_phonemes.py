import pytest

from speechssl.scoring.error_rates import ErrorCounts
from speechssl.scoring.phonemes import TIMIT_39, count_phonemes

# As the corpus documents them: vowels, semivowels, nasals, fricatives, affricates, stops, closures, others.
VOWELS = "iy ih eh ey ae aa aw ay ah ao oy ow uh uw ux er ax ix axr ax-h"
CONSONANTS = "l r w y hh hv el m n ng em en eng nx s sh z zh f th v dh jh ch b d g p t k dx q"
TIMIT_61 = f"{VOWELS} {CONSONANTS} bcl dcl gcl pcl tcl kcl pau epi h#".split()


def test_phonemes_are_counted_between_spaces_and_slashes() -> None:
    counts = count_phonemes(["t/ʃ a", "", "S s"], ["tʃ a", "a", "s s"])
    assert counts == [ErrorCounts(1, 1, 0, 3), ErrorCounts(0, 0, 1, 0), ErrorCounts(1, 0, 0, 2)]
    assert [count.total for count in count_phonemes(["h/ə/l/oʊ w/ɜː"], ["h ə l oʊ w ɜː"])] == [0]
    with pytest.raises(ValueError, match=r"as many hypotheses as references \(1\), found 2"):
        count_phonemes(["a"], ["a", "b"])


def test_timit_has_61_phones_that_count_as_39() -> None:
    assert len(TIMIT_61) == len({*TIMIT_61}) == 61
    assert {*TIMIT_61, "sil"} == TIMIT_39.keys()
    kept = {folded for folded in TIMIT_39.values() if folded is not None}
    assert len(kept) == 39
    assert all(TIMIT_39[folded] == folded for folded in kept)
    classes = [{phone for phone in TIMIT_61 if TIMIT_39[phone] == folded} for folded in kept]
    joined = {frozenset(found) for found in classes if len(found) > 1}
    assert joined == {
        frozenset(found.split())
        for found in (
            "aa ao",
            "ah ax ax-h",
            "er axr",
            "hh hv",
            "ih ix",
            "l el",
            "m em",
            "n en nx",
            "ng eng",
            "sh zh",
            "uw ux",
            "pcl tcl kcl bcl dcl gcl h# pau epi",
        )
    }
    assert [phone for phone, folded in TIMIT_39.items() if folded is None] == ["q"]


def test_phones_that_count_as_one_are_no_errors() -> None:
    reference, hypothesis = "h# sh ix hv eh dcl q", "pau zh ih hh eh bcl"
    [plain], [folded] = (count_phonemes([reference], [hypothesis], folding) for folding in (None, TIMIT_39))
    assert (plain.total, plain.reference_length) == (6, 7)
    assert (folded.total, folded.reference_length) == (0, 6)
