from pathlib import Path

import pytest

from speechssl.data.labels.files import read_labels

Spans = list[tuple[float, float | None, str, str | None]]


def read(path: Path, content: str) -> tuple[Spans, list[tuple[str, str]]]:
    path.write_text(content, "utf-8")
    dropped: list[tuple[str, str]] = []
    labels = read_labels(path, lambda reason, what: dropped.append((reason, what.removeprefix(f"{path}:"))))
    assert all("talk" in label.paths for label in labels)
    return [(label.start, label.end, label.text, label.speaker) for label in labels], dropped


def test_srt(tmp_path: Path) -> None:
    content = """\ufeff1
00:00:01,000 --> 00:00:02,500  X1:40 X2:600
{\\an8}<i>one</i>
two &amp; three

2
1:00:00,5 --> 1:00:01,5
1984

3
00:00:xx,000 --> 00:00:03,000
lost

4
00:00:05,000 --> 00:00:05,000
no length

5
00:00:06,000 --> 00:00:07,000
a <font color="red">b</font>
6
00:00:08,000 --> 00:00:09,000
c

an orphan
"""
    found, dropped = read(tmp_path / "talk.en.srt", content)
    assert found == [
        (1.0, 2.5, "one two & three", None),
        (3600.5, 3601.5, "1984", None),
        (6.0, 7.0, "a b", None),
        (8, 9, "c", None),
    ]
    assert dropped == [
        *(("times that make no span", where) for where in ("11", "15")),
        ("text without times", "25: 'an orphan'"),
    ]


def test_vtt(tmp_path: Path) -> None:
    content = """WEBVTT - a title
Kind: captions

STYLE
::cue { color: red }

NOTE
a remark
of two lines

intro
00:01.000 --> 00:02.000 align:start
<v.loud Anna B>hello<00:01.500><c> there</c></v>

01:00:00.000 --> 01:00:01.000
<v Anna>a</v>
<v Boris>b &lt; c</v>
"""
    assert read(tmp_path / "talk.vtt", content) == (
        [(1.0, 2.0, "hello there", "Anna B"), (3600.0, 3601.0, "a b < c", None)],
        [],
    )


def test_audacity(tmp_path: Path) -> None:
    content = "0.5\t1.25\thello there\n\\\t100.0\t2000.0\n2,5\t3,5\ta\tb\n4.0\t4.0\tpoint\n5.0\t6.0\nfive\tsix\tx\n"
    assert read(tmp_path / "talk.txt", content) == (
        [(0.5, 1.25, "hello there", None), (2.5, 3.5, "a b", None), (5.0, 6.0, "", None)],
        [("times that make no span", "4"), ("line that cannot be parsed", "6: 'five\\tsix\\tx'")],
    )


@pytest.mark.parametrize("suffix", [".srt", ".vtt", ".txt"])
def test_a_folder_of_them(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "field").mkdir()
    (tmp_path / "field" / f"talk{suffix}").write_text("0.0\t1.0\ta\n" if suffix == ".txt" else "0:00 --> 0:01\na\n")
    (tmp_path / ".hidden.srt").write_text("0:00 --> 0:01\na\n")
    [label] = read_labels(tmp_path, lambda *_: pytest.fail(str(_)))
    assert (label.paths, label.start, label.end, label.text) == (("field/talk", "talk"), 0.0, 1.0, "a")
