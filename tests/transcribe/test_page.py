"""What pages hold is read by a parser that knows nothing of the writer; test_page_in_browser.py uses them."""

import base64
import hashlib
import json
import os
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote_to_bytes, urljoin, urlsplit

import numpy as np
import pytest
import soundfile

from speechssl.checkpoint.saved_model import CTCCheckpoint
from speechssl.decode.words import Word
from speechssl.transcribe.formats import Format
from speechssl.transcribe.inputs import find_inputs
from speechssl.transcribe.job import transcribe_files
from speechssl.transcribe.outputs import BesideRecordings, OutputFolder, Printer
from speechssl.transcribe.page import read_page, render_page
from speechssl.transcribe.transcriber import Transcriber
from speechssl.transcribe.transcript import Transcript

INJECTION = "</script><script>alert(1)</script><!--<script>\"'&amp;"


class Elements(HTMLParser):
    """The elements of a page with their attributes, and the text in each by its name."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.is_open = False
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))
        self.texts.setdefault(tag, []).append("")
        self.is_open = True

    def handle_endtag(self, tag: str) -> None:
        self.is_open = False

    def handle_data(self, data: str) -> None:
        if self.is_open:
            self.texts[self.attributes[-1][0]][-1] += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.attributes if name == tag]

    @property
    def policy(self) -> dict[str, list[str]]:
        [content] = [meta["content"] or "" for meta in self.of("meta") if "http-equiv" in meta]
        parts = [part.split() for part in content.split(";")]
        return {name: sources for name, *sources in parts}


def say(text: str, *times: tuple[float, float], seconds: float = 10.0, confidence: float = 0.9) -> Transcript:
    words = [Word(word, *time, confidence) for word, time in zip(text.split(), times, strict=True)]
    return Transcript(text, seconds, tuple(words))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def transcribe(writer: OutputFolder | BesideRecordings, checkpoint: CTCCheckpoint, *paths: Path) -> bool:
    return transcribe_files(*find_inputs(paths), writer, lambda: Transcriber(checkpoint), is_quiet=True)


def test_a_page_holds_the_transcript_and_nothing_from_elsewhere(tmp_path: Path) -> None:
    transcript = say("one two", (1.0, 1.5), (1.6, 2.0))
    page = Elements(content := render_page("talk.wav", transcript, tmp_path))
    data = read_page(content)
    assert data is not None
    assert data.items() >= json.loads(transcript.to_json("talk.wav")).items()
    assert not [
        attributes for _, attributes in page.attributes if attributes.keys() & {"src", "href", "style", "onclick"}
    ]
    assert "http:" not in content
    assert "https:" not in content


def test_only_what_the_page_brings_along_may_run(tmp_path: Path) -> None:
    page = Elements(render_page("talk.wav", say("one", (1.0, 1.5)), tmp_path))

    def source(content: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"

    assert page.policy == {
        "default-src": ["'none'"],
        "style-src": [source(page.texts["style"][0])],
        "script-src": [source(page.texts["script"][1])],
        "media-src": ["'self'", "file:"],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
    }


def test_names_and_texts_stay_texts(tmp_path: Path) -> None:
    transcript = Transcript(INJECTION, 3.0, (Word(INJECTION, 1.0, 2.0, 0.5),))
    page = Elements(render_page(f"{INJECTION}.wav", transcript, tmp_path))
    assert page.of("script") == [{"type": "application/json", "id": "data"}, {}]
    data = json.loads(page.texts["script"][0])
    assert (data["path"], data["text"]) == (f"{INJECTION}.wav", INJECTION)
    assert page.texts["title"] == page.texts["h1"] == [f"{INJECTION}.wav"]


@pytest.mark.parametrize("name", ["talk.wav", "a b#c?d%20:e.wav", "ещё &lt;.wav", "\udcff.wav", "http:x.wav"])
@pytest.mark.parametrize("page_folder", ["rec", "out/sub", "."])
def test_a_page_finds_its_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, page_folder: str
) -> None:
    monkeypatch.chdir(tmp_path)
    data = read_page(render_page(f"rec/{name}", say("one", (1.0, 1.5)), Path(page_folder)))
    assert data is not None
    address = urlsplit(urljoin((tmp_path / page_folder / "page.html").as_uri(), data["audio"]))
    assert (address.scheme, address.query, address.fragment) == ("file", "", "")
    assert unquote_to_bytes(address.path) == os.fsencode(tmp_path / "rec" / name)


def test_segments_are_played_with_a_part_of_the_pauses_around_them(tmp_path: Path) -> None:
    # Pauses of 1 s and, in speech that is too long for a segment, of none.
    transcript = say("a b c d", (0.1, 1.0), (2.0, 12.0), (12.0, 23.0), (24.0, 24.9), seconds=25.0)
    data = read_page(render_page("talk.wav", transcript, tmp_path))
    assert data is not None
    assert data["spans"] == [[0.0, 1.25], [1.75, 12.0], [12.0, 23.25], [23.75, 25.0]]


def test_a_page_is_printed_too(checkpoint: CTCCheckpoint, plant, capsys: pytest.CaptureFixture[str]) -> None:
    printer = Printer(Format.HTML, words=False, letters=False, is_named=False)
    assert transcribe_files(*find_inputs([plant("one")]), printer, lambda: Transcriber(checkpoint), is_quiet=True)
    data = read_page(capsys.readouterr().out)
    assert data is not None
    assert data["text"] == "one"
    assert data["confidences"] == "uncalibrated"


class TestIndex:
    @staticmethod
    def writer(folder: Path, overwrite: bool = False, model: str = "m") -> OutputFolder:
        return OutputFolder(folder, [Format.HTML, Format.TXT], False, False, overwrite, {"model": model})

    @staticmethod
    def links(index: Path) -> list[str]:
        return [unquote_to_bytes(a["href"] or "").decode() for a in Elements(index.read_text("utf-8")).of("a")]

    def test_the_least_confident_come_first(self, tmp_path: Path, checkpoint: CTCCheckpoint) -> None:
        folder = tmp_path / "out"
        for name, confidence in (("sure", 0.9), ("doubtful", 0.3), ("<b>", 0.6), ("nothing", None)):
            soundfile.write(tmp_path / f"{name}.wav", np.zeros(1600), 16_000)
            [[file], _] = find_inputs([tmp_path / f"{name}.wav"])
            said = () if confidence is None else ((1.0, 1.5),)
            writer = self.writer(folder)  # a run of its own, whose index has the pages of those before
            writer.write(file, say("one" if said else "", *said, confidence=confidence or 0))
            assert writer.finish() == []
        index = folder / "index.html"
        assert self.links(index) == ["nothing.html", "doubtful.html", "<b>.html", "sure.html"]
        assert not {"script", "b"} & Elements(index.read_text("utf-8")).texts.keys()
        assert Elements(index.read_text("utf-8")).policy["default-src"] == ["'none'"]
        assert index.read_text("utf-8").count("no words") == 1

    def test_a_single_page_needs_none(self, tmp_path: Path, checkpoint: CTCCheckpoint, plant) -> None:
        assert transcribe(self.writer(tmp_path / "out"), checkpoint, plant("one", "a.wav"))
        assert names(tmp_path / "out") == ["a.html", "a.txt"]

    def test_a_resumed_run_has_the_pages_of_both(self, tmp_path: Path, checkpoint: CTCCheckpoint, plant) -> None:
        paths = [plant("one", "a.wav"), plant("two", "b.wav")]
        for number in (1, 2):
            assert transcribe(self.writer(tmp_path / "out"), checkpoint, *paths[:number])
        assert sorted(self.links(tmp_path / "out" / "index.html")) == ["a.html", "b.html"]
        assert transcribe(self.writer(tmp_path / "out", True, "another"), checkpoint, *paths, plant("six", "c.wav"))
        (tmp_path / "out" / "a.html").unlink()
        assert transcribe(self.writer(tmp_path / "out", False, "another"), checkpoint, *paths[1:])
        assert sorted(self.links(tmp_path / "out" / "index.html")) == ["b.html", "c.html"]

    def test_pages_of_another_model_are_not_listed(self, tmp_path: Path, checkpoint: CTCCheckpoint, plant) -> None:
        paths = [plant("one", "a.wav"), plant("two", "b.wav"), plant("six", "c.wav")]
        assert transcribe(self.writer(tmp_path / "out"), checkpoint, paths[0])
        assert transcribe(self.writer(tmp_path / "out", True, "another"), checkpoint, *paths[1:])
        assert sorted(self.links(tmp_path / "out" / "index.html")) == ["b.html", "c.html"]

    def test_another_file_of_its_name_is_kept(
        self, tmp_path: Path, checkpoint: CTCCheckpoint, plant, capsys: pytest.CaptureFixture[str]
    ) -> None:
        options = {"formats": [Format.HTML], "words": False, "letters": False, "overwrite": True, "settings": {}}
        (tmp_path / "index.html").write_text("my own")
        paths = [plant("one", "a.wav"), plant("two", "b.wav")]
        assert not transcribe(BesideRecordings(**options), checkpoint, *paths)
        message = f"error: {tmp_path}/index.html: already exists and is no index of pages; rename it\n"
        assert capsys.readouterr().err == message
        assert (tmp_path / "index.html").read_text() == "my own"
        (tmp_path / "index.html").unlink()
        assert transcribe(BesideRecordings(**options), checkpoint, *paths)
        assert self.links(tmp_path / "index.html") == ["a.html", "b.html"]
