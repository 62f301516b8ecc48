from pathlib import Path

import pytest

from speechssl.data.labels.files import read_labels
from speechssl.errors import ManifestError


def read(path: Path, content: str) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    path.write_text(content, "utf-8", newline="")
    dropped: list[tuple[str, str]] = []
    labels = read_labels(path, lambda reason, what: dropped.append((reason, what)))
    return [(*label.paths, label.text) for label in labels], dropped


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_an_open_quotation_mark_costs_its_own_line(tmp_path: Path, newline: str) -> None:
    lines = ["path,text", 'a.wav,"open', "b.wav,b", 'c.wav,"said ""c"""', 'd.wav,"d" e', 'e.wav,5" nail', ""]
    labels, dropped = read(tmp_path / "labels.csv", newline.join(lines))
    assert labels == [("b.wav", "b"), ("c.wav", 'said "c"'), ("e.wav", '5" nail')]
    assert [reason for reason, _ in dropped] == [
        "quotation mark that is not closed in its line",
        "line that cannot be parsed",
    ]
    assert [what.split(": ")[0] for _, what in dropped] == [f"{tmp_path}/labels.csv:{n}" for n in (2, 5)]


def test_tables_without_a_header(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert read(tmp_path / "m.csv", "LJ1|In 1455, a|in a\nLJ2|b|\n")[0] == [("LJ1", "in a"), ("LJ2", "")]
    assert "m.csv: no header: column 1 is taken for the recording, column 3 for the text\n" in capsys.readouterr().err
    assert read(tmp_path / "m.tsv", 'a\t"b, c"\n\nd\te\tf\n') == (
        [("a", '"b, c"')],
        [("row with more or fewer cells than the first", f"{tmp_path}/m.tsv:3: 3 for 2")],
    )
    assert read(tmp_path / "m.csv", 'a.wav,"b, c"\n')[0] == [("a.wav", "b, c")]
    for content in ("id\ttext\n1\ta\n", "a,b\nc,d\n", "a.wav b\n", "a|b|c|d\n"):
        with pytest.raises(ManifestError, match="expected labels"):
            read(tmp_path / "m.csv", content)


def test_decimal_commas_where_semicolons_separate(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("path;start;end;text\na.wav;1,5;0:00:02,25;a, b\n", "utf-8")
    [label] = read_labels(tmp_path / "l.csv", lambda *_: pytest.fail(str(_)))
    assert (label.start, label.end, label.text) == (1.5, 2.25, "a, b")


@pytest.mark.parametrize("form", ["[{}]", "{}"])
def test_a_number_that_is_none_is_no_word(tmp_path: Path, form: str) -> None:
    row = '{"path": "a.wav", "text": NaN, "duration": NaN, "speaker": "NaN"}'
    (tmp_path / "l.json").write_text(form.format(row), "utf-8")
    [label] = read_labels(tmp_path / "l.json", lambda *_: pytest.fail(str(_)))
    assert (label.text, label.end, label.speaker) == ("", None, "NaN")


def test_an_array_names_its_objects(tmp_path: Path) -> None:
    labels, dropped = read(tmp_path / "l.json", '[{"path": "a", "text": "b"},\n 5, {"text": "c"}]')
    assert labels == [("a", "b")]
    assert dropped == [
        ("line that is no JSON object", f"{tmp_path}/l.json: object 2: '5'"),
        ("row without a recording", f"{tmp_path}/l.json: object 3"),
    ]


def test_a_folder_of_tables_with_headers(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    tables = {
        "labels/old.csv": "file,text\na.wav,a\n",
        "labels/b.corrected.tsv": 'path\tstart\tend\ttext\nrec/b.wav\t1.5\t2.25\t"b" said\n',
        "labels/c.srt": "0:00 --> 0:01\nc\n",
        "labels/manifest.tsv": ".\npath\tnum_samples\td.wav\t1600\n",
        "labels/without.tsv": "e.wav\te\n",
    }
    for name, content in tables.items():
        (tmp_path / name).write_text(content, "utf-8")
    dropped: list[tuple[str, str]] = []
    labels = read_labels(tmp_path / "labels", lambda reason, what: dropped.append((reason, what)))
    assert [(label.paths[0], label.start, label.end, label.text) for label in labels] == [
        ("rec/b.wav", 1.5, 2.25, '"b" said'),
        ("c", 0.0, 1.0, "c"),
        ("a.wav", 0.0, None, "a"),
    ]
    reason = "table without columns of recordings and texts"
    assert dropped == [(reason, f"{tmp_path}/labels/{name}.tsv") for name in ("manifest", "without")]
