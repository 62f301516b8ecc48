import unicodedata

import pytest

from speechssl.data.normalize import has_digits, lower_case, normalize_labels


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("Don\u2019t stop\u2014 now!", "don't stop now"),
        ("'Tis the 'quoted' dogs' day", "tis the quoted dogs day"),
        ("Straße, ÉCOLE e\u0301te\u0301", "straße école été"),
        ("a\u200bb  \u00abc\u00bb\td_e", "ab c d e"),
        ("Ёлка — это… да?", "ёлка это да"),
        ("हिन्दी है।", "हिन्दी है"),
        ("ọ̀'kan 'ọ̀ ọ̀' कि’ष", "ọ̀'kan ọ̀ ọ̀ कि'ष"),  # after a combining mark
        ("a'1 2' b''c", "a'1 2 b c"),
        ("room 12", "room 12"),
        ("...", ""),
    ],
)
def test_letters_stay_and_punctuation_goes(written: str, spoken: str) -> None:
    assert normalize_labels(written) == spoken
    assert normalize_labels(spoken) == spoken


def test_turkish_has_two_letters_i() -> None:
    for language in ("tr", "TR", "tr-TR", "az_Latn_AZ", "tur"):
        assert normalize_labels("IŞIK İyi", language) == "ışık iyi"
        assert normalize_labels(unicodedata.normalize("NFD", "IŞIK İyi"), language) == "ışık iyi"
    assert normalize_labels("IS It", "en") == normalize_labels("IS It", "tru") == "is it"


@pytest.mark.parametrize("language", [None, "lt"])
def test_an_i_has_one_dot(language: str | None) -> None:
    assert lower_case("İstanbul", language) == "istanbul"
    # As Lithuanian dictionaries write it: the dot stays under the accent.
    assert lower_case("i\u0307\u0300 i\u0328\u0307\u0301 J\u0303", language) == lower_case(
        "Ì Į\u0301 j\u0307\u0303", language
    )
    assert lower_case("ė Ż", language) == "ė ż"  # whose dots are their own


def test_digits_of_any_script() -> None:
    assert has_digits("a 1")
    assert has_digits("५")
    assert not has_digits("one")
