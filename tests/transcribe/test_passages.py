"""Long recordings cut into utterances, by a model that reads planted answers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from planted import planted_speech
from typer.testing import CliRunner

from speechssl.__main__ import app
from speechssl.checkpoint.saved_model import CTCCheckpoint
from speechssl.data.labels.files import read_labels
from speechssl.data.manifest import read_manifest, read_utterance
from speechssl.transcribe.align import Alignment
from speechssl.transcribe.passages import MARGIN_SECONDS, find_passages, join_passages
from speechssl.transcribe.transcriber import Transcriber

RATE = 16_000


def say(*parts: str | float) -> np.ndarray:
    """Texts, and pauses in seconds between them."""
    return np.concatenate(
        [planted_speech(part) if isinstance(part, str) else np.zeros(round(part * RATE), np.float32) for part in parts]
    )


@pytest.fixture
def transcriber(checkpoint: CTCCheckpoint) -> Transcriber:
    checkpoint.model.sureness = 7.0  # type: ignore[assignment]
    return Transcriber(checkpoint)


def cut(alignment: Alignment, max_seconds: float = 15.0) -> list[tuple[str, bool]]:
    return [(passage.text, passage.agrees) for passage in join_passages(find_passages(alignment), max_seconds)]


def test_cuts_lie_in_pauses_and_share_them(transcriber: Transcriber) -> None:
    samples = say(0.5, "hello abcd", 0.3, "where fedcb", 1.4, "hello", 0.2)
    found = transcriber.align(samples, "Hello, abcd! Where fedcb? Hello", RATE)
    passages = find_passages(found)
    assert [passage.text for passage in passages] == ["Hello, abcd!", "Where fedcb?", "Hello"]
    times = [(word.start or 0.0, word.end or 0.0) for word in found.words]
    first, second, third = passages
    assert first.start == pytest.approx(0.5 - MARGIN_SECONDS, abs=0.01)
    assert first.end == second.start == pytest.approx((times[1][1] + times[2][0]) / 2)
    assert second.end == pytest.approx(times[3][1] + MARGIN_SECONDS)
    assert third.start == pytest.approx(times[4][0] - MARGIN_SECONDS)
    assert third.end == pytest.approx(found.seconds)
    assert cut(found) == [("Hello, abcd! Where fedcb?", True), ("Hello", True)]
    assert cut(found, 1.0) == [("Hello, abcd!", True), ("Where fedcb?", True), ("Hello", True)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hello where hello abcd", [("hello abcd", False), ("where hello abcd", True)]),
        ("hello abcd xylofon where hello abcd", [("hello abcd xylofon where", False), ("hello abcd", True)]),
        ("hello abcd 1984 hello abcd", [("hello abcd", True), ("1984", False), ("hello abcd", True)]),
    ],
    ids=["said alone", "written alone", "not spelled"],
)
def test_where_text_and_speech_differ_nothing_is_taken(
    text: str, expected: list[tuple[str, bool]], transcriber: Transcriber
) -> None:
    samples = say("hello abcd", 0.4, "where", 0.4, "hello abcd")
    assert cut(transcriber.align(samples, text, RATE)) == expected


def test_an_audiobook_becomes_a_corpus(
    transcriber: Transcriber, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the recording's own rate, with what is said where a manifest and `own_data` read it."""
    monkeypatch.setattr(Transcriber, "load", lambda *_: transcriber)
    folder = tmp_path / "book"
    folder.mkdir()
    samples = np.abs(say("hello abcd", 1.2, "where", 1.2, "fedcb hello"))  # which survives resampling
    soundfile.write(folder / "one.wav", np.repeat(samples, 2), 2 * RATE)
    (folder / "one.txt").write_text("Hello abcd!\n\nFedcb, hello.", "utf-8")
    output = tmp_path / "labels" / "cut.tsv"
    result = CliRunner().invoke(app, ["manifest", str(folder), "-o", str(output), "--from-long", "model"])
    assert result.exit_code == 0, result.output
    assert (
        "left out: 0.0 where text and speech differ, 0.0 where no pause comes in time, 0.0 of pauses" in result.stderr
    )
    manifest = read_manifest(output)
    assert [utterance.text for utterance in manifest] == ["Hello abcd!", "Fedcb, hello."]
    assert manifest[1].sample_rate == 2 * RATE
    said = transcriber.transcribe(read_utterance(manifest[1]), RATE)
    assert said.text == "fedcb hello"
    labels = read_labels(output, lambda reason, where: pytest.fail(f"{reason}: {where}"))
    assert labels == read_labels(output.parent, lambda reason, where: pytest.fail(f"{reason}: {where}"))
    assert [label.text for label in labels] == ["Hello abcd!", "Fedcb, hello."]
    assert labels[1].start == pytest.approx(manifest[1].start / (2 * RATE))
    assert labels[1].end == pytest.approx((manifest[1].start + manifest[1].num_samples) / (2 * RATE))
    assert Path(labels[1].paths[0]).samefile(folder / "one.wav")


def test_a_name_that_no_manifest_holds_costs_that_recording_alone(
    transcriber: Transcriber, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Transcriber, "load", lambda *_: transcriber)
    for name in ("a\nb", "c"):
        soundfile.write(tmp_path / f"{name}.wav", say("hello abcd"), RATE)
        (tmp_path / f"{name}.txt").write_text("hello abcd", "utf-8")
    output = tmp_path / "cut.tsv"
    result = CliRunner().invoke(app, ["manifest", str(tmp_path), "-o", str(output), "--from-long", "model"])
    assert result.exit_code == 1
    assert "b.wav': expected a path in UTF-8 without tabs and line breaks" in result.stderr
    assert [utterance.text for utterance in read_manifest(output)] == ["hello abcd"]


def test_what_cannot_be_cut_is_said(transcriber: Transcriber, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Transcriber, "load", lambda *_: transcriber)
    folder = tmp_path / "book"
    folder.mkdir()
    soundfile.write(folder / "one.wav", say("hello abcd"), RATE)
    (folder / "one.txt").write_text("xylofon mnop", "utf-8")

    def run(*arguments: Any) -> Any:
        return CliRunner().invoke(app, ["manifest", str(folder), "-o", str(tmp_path / "cut.tsv"), *arguments])

    result = run("--from-long", "model")
    assert result.exit_code == 1
    assert "expected a passage in which text and speech agree, found none" in result.stderr
    assert not (tmp_path / "cut.tsv").exists()
    manifest = tmp_path / "book.tsv"
    manifest.write_text("book\npath\tnum_samples\ttext\none.wav\t100\thello\n")
    for what, found in ((manifest, "a manifest"), (tmp_path / "lost", "none")):
        command = ["manifest", str(what), "-o", str(tmp_path / "cut.tsv"), "--from-long", "model"]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 1
        assert result.stderr == f"error: {what}: expected a folder or a recording, found {found}\n"
    refused = run("--text", "texts")
    assert refused.exit_code == 2
    assert "--from-long" in refused.output
