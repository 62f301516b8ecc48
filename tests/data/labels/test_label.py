from pathlib import Path

import pytest

from speechssl.data.labels.label import UnusableError, make_label, parse_seconds, read_content
from speechssl.errors import ManifestError


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("1.5", 1.5),
        (1.5, 1.5),
        (".5", 0.5),
        ("1e-3", 0.001),
        ("0:01:02.5", 62.5),
        ("01:02,5", 62.5),
        ("90:00", 5400),
        ("", None),
        (None, None),
    ],
)
def test_times_are_read_as_people_write_them(written: object, seconds: float | None) -> None:
    assert parse_seconds(written) == seconds


@pytest.mark.parametrize(
    "written", ["1,5", "x", "-1", "nan", "inf", True, "1:61", "0:60:00", "1_0", "1e10", 10**400, "1:2:3:4"]
)
def test_what_is_no_time_is_refused(written: object) -> None:
    with pytest.raises(UnusableError, match="times that make no span"):
        parse_seconds(written)


def test_a_decimal_comma_is_read_where_it_separates_no_columns() -> None:
    assert parse_seconds("1,5", has_decimal_comma=True) == 1.5
    with pytest.raises(UnusableError):
        parse_seconds("1.000,5", has_decimal_comma=True)


def test_a_row_has_its_names_in_any_letter_case_and_keeps_its_path() -> None:
    label = make_label(
        "f:1", {" Path ": " a  b.wav\u00a0", "SENTENCE": " a\u00a0 b", "Locale": "tr", "offset": 1, "duration": 2}
    )
    assert (label.paths, label.text, label.language, label.start, label.end) == (
        (" a  b.wav\u00a0",),
        "a b",
        "tr",
        1,
        3,
    )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("text", ["path;text\na.wav;später\n", "путь;текст\nа;что это\n" * 20])
def test_unicode_is_recognized(tmp_path: Path, encoding: str, text: str) -> None:
    (tmp_path / "labels.csv").write_bytes(text.encode(encoding))
    assert read_content(tmp_path / "labels.csv") == text


@pytest.mark.parametrize("encoding", ["cp1252", "cp1251", "utf-32-le"])
def test_another_encoding_is_refused_with_its_line(tmp_path: Path, encoding: str) -> None:
    text = "path;text\na.wav;später\n" if encoding != "cp1251" else "path;text\nа;что\n"
    (tmp_path / "labels.csv").write_bytes(text.encode(encoding))
    with pytest.raises(ManifestError, match=r"labels\.csv:[12]: expected UTF-8 or UTF-16, .*iconv|labels.csv"):
        assert read_content(tmp_path / "labels.csv") == text
