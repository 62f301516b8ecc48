import pytest

from speechssl.data.normalize import has_digits, normalize_labels


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
    assert normalize_labels("IŞIK İyi", "tr") == "ışık iyi"
    assert normalize_labels("IS It", "en") == "is it"


def test_digits_of_any_script() -> None:
    assert has_digits("a 1")
    assert has_digits("५")
    assert not has_digits("one")
