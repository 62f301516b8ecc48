"""ELAN's and Praat's files, and which of their tiers is read."""

from pathlib import Path
from xml.sax.saxutils import escape

import pytest

from speechssl.data.labels.files import read_labels, read_labels_beside
from speechssl.errors import ManifestError

Tier = tuple[str, str, list[tuple[int, int, str]]]


def eaf(tiers: list[Tier], head: str = "", media: str = "") -> str:
    """An annotation file: of each tier what stands in its tag, and its annotations in milliseconds."""
    slots, rows = [], []
    for number, (name, attributes, spans) in enumerate(tiers):
        annotations = []
        for start, end, text in spans:
            first = len(slots)
            slots += [f'<TIME_SLOT TIME_SLOT_ID="ts{first + i}" TIME_VALUE="{t}"/>' for i, t in enumerate((start, end))]
            annotations.append(
                f'<ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a{number}.{first}" TIME_SLOT_REF1="ts{first}" '
                f'TIME_SLOT_REF2="ts{first + 1}"><ANNOTATION_VALUE>{escape(text)}</ANNOTATION_VALUE>'
                "</ALIGNABLE_ANNOTATION></ANNOTATION>"
            )
        rows.append(f'<TIER TIER_ID="{name}" {attributes}>{"".join(annotations)}</TIER>')
    header = f'<HEADER MEDIA_FILE="" TIME_UNITS="milliseconds">{media}</HEADER>'
    body = f"{header}<TIME_ORDER>{''.join(slots)}</TIME_ORDER>{''.join(rows)}"
    return f"{head}<ANNOTATION_DOCUMENT>{body}</ANNOTATION_DOCUMENT>"


def textgrid(tiers: list[Tier], is_short: bool = False, kind: str = "IntervalTier") -> str:
    """A TextGrid of intervals; times in milliseconds."""

    def line(words: str, value: object) -> str:
        return f"{value}\n" if is_short else f"    {words} = {value} \n"

    def quoted(text: str) -> str:
        return '"' + text.replace('"', '""') + '"'

    first = (
        'File type = "ooTextFile short"\n"TextGrid"\n'
        if is_short
        else 'File type = "ooTextFile"\nObject class = "TextGrid"\n'
    )
    text = first + "\n" + line("xmin", 0) + line("xmax", 10)
    text += f"<exists>\n{len(tiers)}\n" if is_short else f"tiers? <exists> \nsize = {len(tiers)} \nitem []: \n"
    for number, (name, _, spans) in enumerate(tiers, 1):
        text += (
            ("" if is_short else f"    item [{number}]:\n") + line("class", f'"{kind}"') + line("name", quoted(name))
        )
        text += line("xmin", 0) + line("xmax", 10) + line("intervals: size", len(spans))
        for n, (start, end, said) in enumerate(spans, 1):
            text += "" if is_short else f"        intervals [{n}]:\n"
            text += line("xmin", start / 1000) + (line("xmax", end / 1000) if kind == "IntervalTier" else "")
            text += line("text", quoted(said))
    return text


SPANS = [(0, 500, ""), (500, 1250, 'said "one" & 2 < 3'), (1250, 3000, "naïve\nзвук [1] 5 x = 7 ")]
EXPECTED = [(0.5, 1.25, 'said "one" & 2 < 3'), (1.25, 3.0, "naïve звук [1] 5 x = 7")]


def read(path: Path, *tiers: str) -> list[tuple[float, float | None, str]]:
    dropped: list[str] = []
    labels = read_labels(path, lambda reason, what: dropped.append(reason), tiers)
    assert not dropped
    return [(label.start, label.end, label.text) for label in labels]


@pytest.mark.parametrize("is_short", [False, True])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-be"])
def test_a_textgrid_in_every_form(tmp_path: Path, is_short: bool, encoding: str) -> None:
    (tmp_path / "a.TextGrid").write_text(textgrid([("said", "", SPANS)], is_short), encoding)
    assert read(tmp_path / "a.TextGrid") == EXPECTED


def test_annotations_of_elan(tmp_path: Path) -> None:
    descriptors = (
        '<MEDIA_DESCRIPTOR MEDIA_URL="file:///C:/My%20films/a.mp4" MIME_TYPE="video/mp4" TIME_ORIGIN="7000"/>'
        '<MEDIA_DESCRIPTOR MEDIA_URL="file:///home/me/a%20b.wav" RELATIVE_MEDIA_URL="./a%20b.wav" '
        'MIME_TYPE="audio/x-wav" TIME_ORIGIN="250"/>'
    )
    anna = ("said@Anna", 'LINGUISTIC_TYPE_REF="said"', SPANS)
    boris = ("said@B", 'LINGUISTIC_TYPE_REF="said" PARTICIPANT="Boris"', [(900, 1000, "no")])
    english = ("english", 'LINGUISTIC_TYPE_REF="english" PARENT_REF="said@Anna"', [(0, 900, "a translation")])
    (tmp_path / "x.eaf").write_text(eaf([anna, boris, english], media=descriptors), "utf-8")
    labels = read_labels(tmp_path / "x.eaf", lambda *_: pytest.fail(str(_)))
    shifted = [(start + 0.25, end + 0.25, text) for start, end, text in [*EXPECTED, (0.9, 1.0, "no")]]
    assert [(label.start, label.end, label.text) for label in labels] == shifted
    assert [label.speaker for label in labels] == ["Anna", "Anna", "Boris"]
    assert labels[0].paths == ("x", "a b.wav", "/home/me/a b.wav", "C:/My films/a.mp4", "a.mp4")
    assert read(tmp_path / "x.eaf", "english") == [(0.25, 1.15, "a translation")]


def test_annotations_without_times_have_those_of_their_parents(tmp_path: Path) -> None:
    words = "".join(
        f'<ANNOTATION><REF_ANNOTATION ANNOTATION_ID="{name}" ANNOTATION_REF="{parent}">'
        f"<ANNOTATION_VALUE>{text}</ANNOTATION_VALUE></REF_ANNOTATION></ANNOTATION>"
        for name, parent, text in (
            ("w1", "a0.0", "one"),
            ("w2", "a0.0", "two"),
            ("w3", "a0.2", "three"),
            ("w4", "w4", "x"),
        )
    )
    content = eaf([("ref", "", [(0, 1000, "001"), (2000, 3000, "002")])])
    tier = f'<TIER TIER_ID="tx" PARENT_REF="ref">{words}</TIER></ANNOTATION_DOCUMENT>'
    (tmp_path / "x.eaf").write_text(content.replace("</ANNOTATION_DOCUMENT>", tier), "utf-8")
    dropped: list[tuple[str, str]] = []
    labels = read_labels(tmp_path / "x.eaf", lambda *what: dropped.append(what), ["tx"])
    assert [(label.start, label.end, label.text) for label in labels] == [(0, 1, "one two"), (2, 3, "three")]
    assert dropped == [("times that make no span", f"{tmp_path}/x.eaf: w4 of tier 'tx'")]


@pytest.mark.parametrize(("suffix", "write"), [(".eaf", eaf), (".TextGrid", textgrid)])
def test_which_tier_is_meant_must_be_clear(tmp_path: Path, suffix: str, write) -> None:
    path = tmp_path / f"a{suffix}"
    one, two = ("words", 'LINGUISTIC_TYPE_REF="w"', SPANS), ("phones", 'LINGUISTIC_TYPE_REF="p"', SPANS[:2])
    path.write_text(write([one, two]), "utf-8")
    with pytest.raises(
        ManifestError, match=rf"a{suffix}: expected tiers of one kind, found 'words'.*, 'phones'.*TIER="
    ):
        read(path)
    assert read(path, "words", "other") == EXPECTED
    assert read(path, "words", "phones") == [*EXPECTED, EXPECTED[0]]
    path.write_text(write([one, ("empty", 'LINGUISTIC_TYPE_REF="p"', SPANS[:1])]), "utf-8")
    assert read(path) == EXPECTED
    dropped: list[tuple[str, str]] = []
    assert read_labels(path, lambda *what: dropped.append(what), ["sentences"]) == []
    assert [reason for reason, _ in dropped] == ["file without the tier asked for"]
    assert "'words'" in dropped[0][1]


def test_points_are_no_spans(tmp_path: Path) -> None:
    (tmp_path / "a.TextGrid").write_text(textgrid([("clicks", "", [(500, 0, "!")])], kind="TextTier"), "utf-8")
    assert read(tmp_path / "a.TextGrid") == []
    dropped: list[tuple[str, str]] = []
    read_labels(tmp_path / "a.TextGrid", lambda *what: dropped.append(what), ["clicks"])
    assert dropped == [("times that make no span", f"{tmp_path}/a.TextGrid:16")]


def test_entities_are_refused_at_once(tmp_path: Path) -> None:
    laughs = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10 if n else "ha"}">' for n in range(7))  # two million letters
    for doctype in (f"<!DOCTYPE x [{laughs}]>", '<!DOCTYPE x SYSTEM "file:///etc/passwd">'):
        content = eaf([("t", "", [(0, 1, "TEXT")])], head=doctype).replace("TEXT", "&l6;")
        for encoding in ("utf-8", "utf-16"):
            (tmp_path / "a.eaf").write_text(content, encoding)
            with pytest.raises(ManifestError, match=r"a\.eaf: expected ELAN's annotations: found a DOCTYPE"):
                read(tmp_path / "a.eaf")


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("a.eaf", "", "no element"),
        ("a.eaf", "<html/>", "found html"),
        ("a.eaf", eaf([("t", "", [(0, 1, "x")])])[:-30], "expected ELAN"),
        ("a.eaf", eaf([("t", "", [(0, 1, "x")])]).replace('"0"', '"zero"'), "invalid literal"),
        ("a.TextGrid", "", "another kind of file"),
        ("a.TextGrid", 'File type = "ooTextFile"\nObject class = "Pitch 1"\n', "another kind of object"),
        ("a.TextGrid", textgrid([("t", "", SPANS)])[:-40], "cut off"),
        ("a.TextGrid", textgrid([("t", "", SPANS)]).replace("0.5", "half", 1), "for a text in line|could not convert"),
    ],
)
def test_damaged_files_are_one_line(tmp_path: Path, name: str, content: str, found: str) -> None:
    (tmp_path / name).write_text(content, "utf-8")
    with pytest.raises(ManifestError, match=found) as caught:
        read(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_the_files_beside_recordings(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("all of it", "utf-8")
    (tmp_path / "a.srt").write_text("0:00 --> 0:01\npart\n", "utf-8")
    (tmp_path / "b.TEXTGRID").write_text(textgrid([("t", "", SPANS)]), "utf-8")
    (tmp_path / "c.eaf").write_text("<html/>", "utf-8")
    dropped: list[tuple[str, str]] = []
    recordings = [tmp_path / f"{name}.wav" for name in "abcd"]
    labels = read_labels_beside(recordings, lambda *what: dropped.append(what))
    assert [(label.paths, label.end, label.text) for label in labels] == [
        ((str(recordings[0]),), None, "all of it"),
        *(((str(recordings[1]),), end, text) for _, end, text in EXPECTED),
    ]
    assert [reason for reason, _ in dropped] == ["other labels of the same recording", "text that cannot be read"]
