"""Pages as a person uses them, in headless Chromium, and what they save as recipes/own_data reads it."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from speechssl.data.labels.files import read_labels
from speechssl.data.labels.names import RecordingNames
from speechssl.decode.words import Word
from speechssl.transcribe.page import render_page
from speechssl.transcribe.transcript import Transcript

api = pytest.importorskip("playwright.sync_api", reason="needs the extra browser")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")

# Two seconds a word, four words a segment, a second between segments.
TEXTS = ("one tow three four", "ещё одно слово тут", "שלום עולם זה מבחן")
Saved = list[tuple[str, float, float | None]]
Page = Any


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    (tmp_path / "rec").mkdir()
    path = tmp_path / "rec" / "a <script> talk №1.wav"
    soundfile.write(path, np.zeros(30 * 8000), 8000)
    return path


@pytest.fixture
def page(browser: Any, recording: Path) -> Iterator[Page]:
    """The page of the recording, from a browser that tolerates no error and no access to anything but files."""
    context = browser.new_context(viewport={"width": 390, "height": 700})
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: problems.append(request.url) if "file:" not in request.url[:10] else None)
    open_page(page, recording)
    yield page
    context.close()
    assert problems == []


def open_page(page: Page, recording: Path, texts: tuple[str, ...] = TEXTS) -> None:
    words = [
        Word(word, start := 9.0 * segment + 2.0 * place + 0.5, start + 2, 0.3 if word == "tow" else 0.95)
        for segment, text in enumerate(texts)
        for place, word in enumerate(text.split())
    ]
    file = recording.parents[1] / "talk.html"
    file.write_text(render_page(str(recording), Transcript(" ".join(texts), 30.0, tuple(words)), file.parent), "utf-8")
    page.goto(file.as_uri())
    wait_for(page, "audio.readyState > 0")


def wait_for(page: Page, condition: str) -> None:
    """Wait in Python: the page forbids what playwright itself would evaluate."""
    end = time.monotonic() + 20
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(20)


def save(page: Page, recording: Path, trigger: str = "Control+s") -> Saved:
    """Save by a key, or by a button, and read what was saved as labels."""
    with page.expect_download() as download:
        page.click(trigger) if trigger.startswith("#") else page.keyboard.press(trigger)
    assert download.value.suggested_filename.endswith(".corrected.tsv")
    return read_saved(Path(download.value.path()), recording)


def read_saved(table: Path, recording: Path) -> Saved:
    folder = recording.parents[1] / "labels"
    folder.mkdir(exist_ok=True)
    shutil.copy(table, folder / "talk.corrected.tsv")
    labels = read_labels(folder, lambda *dropped: pytest.fail(str(dropped)))
    found = RecordingNames([recording], [recording.parent, folder])
    assert {found.find(*label.paths) for label in labels} <= {recording}
    return [(label.text, label.start, label.end) for label in labels]


def word(page: Page, text: str) -> Any:
    return page.locator(".word", has_text=text).first


def texts(page: Page) -> list[str]:
    found: list[str] = page.locator(".text").all_text_contents()
    return found


def test_a_click_plays_an_edit_is_saved_and_read_as_labels(page: Page, recording: Path) -> None:
    word(page, "слово").click()
    assert 13.4 <= page.evaluate("audio.currentTime") < 15.5
    wait_for(page, "audio.currentTime > 13.5")
    assert not page.evaluate("audio.paused")
    page.keyboard.press("Space")
    assert page.evaluate("audio.paused")
    stopped = page.evaluate("audio.currentTime")
    page.keyboard.press("Space")
    wait_for(page, f"audio.currentTime > {stopped}")
    word(page, "tow").dblclick()
    page.keyboard.type('two, \t"zwei"')
    assert save(page, recording, "#save") == [('one two, "zwei" three four', 0.25, 8.75)]


def test_the_keyboard_alone_is_enough(page: Page, recording: Path) -> None:
    page.keyboard.press("Tab")
    page.locator(".text").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("now.textContent") == "tow"
    page.keyboard.press("Enter")
    page.keyboard.type("and ")
    page.keyboard.press("Enter")  # to the second, which is played as the first was
    wait_for(page, "audio.currentTime > 9.3")
    page.keyboard.press("Control+Enter")
    assert page.evaluate("audio.paused")
    page.keyboard.press("End")
    page.keyboard.type(" же")
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Shift+Enter")
    assert save(page, recording) == [
        ("one and tow three four", 0.25, 8.75),
        ("ещё одно слово тут же", 9.25, 17.75),
        ("שלום עולם זה מבחן", 18.25, 26.75),
    ]
    page.keyboard.press("Shift+Enter")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    page.keyboard.press("Control+a")
    page.keyboard.press("Delete")
    assert save(page, recording) == [("", 0.25, 8.75), ("ещё одно слово тут же", 9.25, 17.75)]


def test_a_text_that_is_edited_is_played_to_its_end_and_again(page: Page) -> None:
    word(page, "слово").dblclick()
    page.evaluate("audio.currentTime = 17.5")
    wait_for(page, "audio.paused")
    assert 17.75 <= page.evaluate("audio.currentTime") < 18.25
    page.keyboard.press("Control+Enter")
    wait_for(page, "!audio.paused && audio.currentTime > 9.25")
    assert page.evaluate("audio.currentTime") < 17


def test_scripts_run_in_their_direction(page: Page) -> None:
    directions = [page.evaluate(f"getComputedStyle(rows[{row}].area).direction") for row in range(3)]
    assert directions == ["ltr", "ltr", "rtl"]
    left, right = word(page, "מבחן").bounding_box(), word(page, "שלום").bounding_box()
    assert left["x"] < right["x"]
    page.locator(".text").last.focus()
    page.keyboard.press("ArrowLeft")  # forward
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("now.textContent") == "עולם"


def test_nothing_is_saved_that_nobody_checked(page: Page, recording: Path) -> None:
    assert page.locator("#save").is_disabled()
    page.keyboard.press("Control+s")
    page.locator("input").nth(1).check()
    assert save(page, recording) == [(TEXTS[1], 9.25, 17.75)]
    page.once("dialog", lambda dialog: dialog.dismiss())
    page.click("#check-all")
    assert [text for text, *_ in save(page, recording)] == [TEXTS[1]]
    page.once("dialog", lambda dialog: dialog.accept())
    page.click("#check-all")
    assert [text for text, *_ in save(page, recording)] == list(TEXTS)


def test_edits_survive_a_reload_and_leaving_warns(page: Page, recording: Path) -> None:
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.type), dialog.accept()))
    word(page, "tow").dblclick()
    page.keyboard.type("two")
    page.reload()
    assert dialogs == ["beforeunload"]
    assert texts(page) == ["one two three four", *TEXTS[1:]]
    assert save(page, recording) == [("one two three four", 0.25, 8.75)]
    page.reload()
    assert dialogs == ["beforeunload"]
    assert texts(page)[0] == "one two three four"
    page.locator("input").first.uncheck()
    page.locator("input").last.check()
    page.reload()
    assert texts(page)[0] == "one two three four"  # kept, though it is not saved
    assert save(page, recording) == [(TEXTS[2], 18.25, 26.75)]


def test_edits_of_an_earlier_transcript_can_still_be_saved(page: Page, recording: Path) -> None:
    page.on("dialog", lambda dialog: dialog.accept())
    word(page, "tow").dblclick()
    page.keyboard.type("two")
    open_page(page, recording, ("another transcript",))
    assert texts(page) == ["another transcript"]
    assert save(page, recording, "#notices button") == [("one two three four", 0.25, 8.75)]
    page.reload()
    assert page.locator("#notices button").count() == 0


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("one tow three four", [("one", ""), ("tow", "doubtful"), ("three", ""), ("four", "")]),
        ("one two three four", [("one", ""), ("two", "changed"), ("three", ""), ("four", "")]),
        ("one three four", [("one", ""), ("three", ""), ("four", "")]),
        ("one and tow three four", [("one", ""), ("and", "changed"), ("tow", "doubtful"), ("three", ""), ("four", "")]),
        ("ones tow three four", [("ones", "changed"), ("tow", "doubtful"), ("three", ""), ("four", "")]),
        ("oh one tow three four", [("oh", "changed"), ("one", ""), ("tow", "doubtful"), ("three", ""), ("four", "")]),
        ("one tow three fourteen !", [("one", ""), ("tow", "doubtful"), ("three", ""), ("fourteen !", "changed")]),
        ("ONE TOW", [("ONE TOW", "changed")]),
        ("", []),
    ],
)
def test_words_beside_a_change_keep_what_is_known(page: Page, text: str, shown: list[tuple[str, str]]) -> None:
    found = page.evaluate(
        "text => textNodes(data.segments[0], text, data.thresholds)"
        ".map(node => node.nodeType ? [node.textContent, node.className.replace(/^word ?/, '')] : node)",
        text,
    )
    assert "".join(node if isinstance(node, str) else node[0] for node in found) == text
    assert [tuple(node) for node in found if not isinstance(node, str)] == shown


def test_pasted_text_is_one_line_without_markup(page: Page, recording: Path) -> None:
    word(page, "tow").dblclick()
    page.evaluate(
        """() => {
          const blob = (text, type) => new Blob([text], { type });
          const html = blob("<p><b>two</b></p><p>lines</p>", "text/html");
          const item = { "text/plain": blob("two\\nlines", "text/plain"), "text/html": html };
          return navigator.clipboard.write([new ClipboardItem(item)]);
        }"""
    )
    page.keyboard.press("Control+v")
    assert page.locator(".text b").count() == 0
    assert save(page, recording) == [("one two lines three four", 0.25, 8.75)]


def test_lines_stay_apart_where_a_browser_breaks_them(page: Page, recording: Path) -> None:
    word(page, "tow").dblclick()
    page.evaluate("edited.area.append(document.createElement('br'), 'five')")
    page.keyboard.type("two")
    assert save(page, recording) == [("one two three four five", 0.25, 8.75)]


def test_a_recording_that_cannot_be_played_is_named(page: Page, recording: Path) -> None:
    recording.write_bytes(b"no audio")
    page.reload()
    wait_for(page, "document.getElementById('notices').textContent.includes('cannot play ./rec/')")


def test_it_fits_a_phone(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
