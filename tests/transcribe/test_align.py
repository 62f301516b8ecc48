"""Alignment of given texts, with a model that reads planted answers: every border is known."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from speechssl.__main__ import app
from speechssl.checkpoint.saved_model import CTCCheckpoint
from speechssl.data.labels.textgrid import read_textgrid
from speechssl.data.manifest import Utterance, write_manifest
from speechssl.decode import gapped_alignment, long_alignment
from speechssl.decode.gapped_alignment import Placed, align_frames
from speechssl.decode.long_alignment import align_parts
from speechssl.errors import AudioError
from speechssl.transcribe.align import Alignment, Status
from speechssl.transcribe.alignment_formats import AlignmentFormat, format_alignment, to_transcript
from speechssl.transcribe.transcriber import Transcriber

FRAME_SECONDS = 0.01


@pytest.fixture
def transcriber(checkpoint: CTCCheckpoint) -> Transcriber:
    checkpoint.model.sureness = 7.0  # type: ignore[assignment]
    return Transcriber(checkpoint)


def statuses(found: Alignment) -> list[tuple[str, str]]:
    return [(word.text, str(word.status)) for word in found.words]


def test_words_and_letters_are_where_they_are_said(transcriber: Transcriber, planted_waveform: Any) -> None:
    found = transcriber.align(planted_waveform("hello где абв"), "hello где абв", 16_000)
    assert statuses(found) == [("hello", "said"), ("где", "said"), ("абв", "said")]
    assert [(word.start, word.end) for word in found.words] == [(0.0, 0.14), (0.18, 0.26), (0.3, 0.38)]
    letters = found.words[0].letters
    assert [letter.text for letter in letters] == list("hello"), "both l, which a blank parts"
    assert [letter.start for letter in letters] == pytest.approx([0, 0.03, 0.06, 0.09, 0.12])
    assert [letter.end for letter in letters] == pytest.approx([0.02, 0.05, 0.08, 0.11, 0.14])
    assert all(word.confidence == pytest.approx(found.words[0].confidence) for word in found.words)
    assert found.notes == ()


def test_what_is_said_alone_and_what_is_written_alone_moves_nothing_else(
    transcriber: Transcriber, planted_waveform: Any
) -> None:
    samples = planted_waveform("hello abcd where fedcb")
    expected = transcriber.align(samples, "hello abcd where fedcb", 16_000).words
    lacking = transcriber.align(samples, "hello where fedcb", 16_000)
    assert statuses(lacking) == [
        ("hello", "said"),
        ("abcd", "not in text"),
        ("where", "said"),
        ("fedcb", "said"),
    ]
    assert lacking.words[1].start == expected[1].start
    assert [word.end for word in lacking.words] == [word.end for word in expected]
    unsaid = transcriber.align(samples, "hello abcd xylofon mnop where fedcb", 16_000)
    assert statuses(unsaid)[2:4] == [("xylofon", "not said"), ("mnop", "not said")]
    kept = [word for word in unsaid.words if word.status is Status.SAID]
    assert [(word.text, word.start, word.end) for word in kept] == [(w.text, w.start, w.end) for w in expected]
    ends = transcriber.align(samples, "zzzzz hello abcd where", 16_000)
    assert statuses(ends) == [
        ("zzzzz", "not said"),
        ("hello", "said"),
        ("abcd", "said"),
        ("where", "said"),
        ("fedcb", "not in text"),
    ]


def test_a_badly_heard_word_is_said_all_the_same(transcriber: Transcriber, planted_waveform: Any) -> None:
    found = transcriber.align(planted_waveform("hello abxd where"), "hello abcd where", 16_000)
    assert statuses(found) == [("hello", "said"), ("abcd", "said"), ("where", "said")]
    assert (found.words[1].confidence or 1) < 0.3 < (found.words[0].confidence or 0)


def test_text_is_taken_as_it_is_written(transcriber: Transcriber, planted_waveform: Any) -> None:
    found = transcriber.align(planted_waveform("hello abcd fedcb where"), "“Hello,” — abcd 1984 Where?", 16_000)
    assert statuses(found) == [
        ("“Hello,” —", "said"),
        ("abcd", "said"),
        ("1984", "not spelled"),
        ("Where?", "said"),
    ]
    assert found.words[2].start == pytest.approx(0.33)
    assert found.words[2].end == pytest.approx(0.47)
    assert found.notes == (
        "word 4: '1984' is skipped over: no unit for '1' (U+0031), '4' (U+0034), '8' (U+0038), '9' (U+0039)",
    )


def test_silence_and_texts_without_words(transcriber: Transcriber, planted_waveform: Any) -> None:
    silence = np.zeros(1600, np.float32)
    assert statuses(transcriber.align(silence, "hello", 16_000)) == [("hello", "not said")]
    assert transcriber.align(silence, "", 16_000).words == ()
    assert statuses(transcriber.align(np.zeros(100, np.float32), "hello abc", 16_000)) == [
        ("hello", "not said"),
        ("abc", "not said"),
    ]
    assert statuses(transcriber.align(planted_waveform("hello"), " — ", 16_000))[0][0] in ("—", "hello")


def brute_force(log_probs: np.ndarray, words: Sequence[Sequence[int]]) -> float:
    """The best score of any CTC path through all letters, no word left out and no other sound."""
    labels = [0]
    for word in words:
        for label in word:
            labels += [label, 0]
    scores = np.full(len(labels), -np.inf)
    scores[:2] = log_probs[0, labels[:2]]
    for row in log_probs[1:]:
        new = scores.copy()
        for state in range(1, len(labels)):
            new[state] = max(new[state], scores[state - 1])
            if state > 1 and labels[state] and labels[state] != labels[state - 2]:
                new[state] = max(new[state], scores[state - 2])
        scores = new + row[labels]
    return float(scores[-2:].max())


def test_the_path_is_the_best_that_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """With other sounds and gaps forbidden, against the plain recursion over all states."""
    monkeypatch.setattr(gapped_alignment, "STAR_START", 1e6)
    monkeypatch.setattr(gapped_alignment, "SKIPS", ())
    generator = np.random.default_rng(0)
    for _ in range(30):
        logits = 3 * generator.standard_normal((20, 5))
        log_probs = (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).astype(np.float32)
        words = [list(generator.integers(1, 5, size=generator.integers(1, 4))) for _ in range(3)]
        graph = gapped_alignment._Graph(words, 0, None, 5)
        states = graph.best_path(log_probs, may_end_early=False)
        score = float(log_probs[np.arange(20), graph.columns[states]].sum())
        assert score == pytest.approx(brute_force(log_probs, words), abs=1e-3)


def certain(symbols: Sequence[int], num_units: int) -> np.ndarray:
    log_probs = np.full((len(symbols), num_units), np.log(1e-3), np.float32)
    log_probs[range(len(symbols)), symbols] = np.log(0.98)
    return log_probs


def test_any_length_is_aligned_window_by_window_as_it_is_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(1)
    words = [list(generator.integers(1, 8, size=generator.integers(2, 6))) for _ in range(400)]
    symbols = [symbol for word in words for label in word for symbol in (int(label), 0)]
    log_probs = certain(symbols, 8)
    at_once = align_frames(log_probs, words, 0, None, may_end_early=False)
    assert [item.word for item in at_once] == list(range(400))
    sizes: list[int] = []
    original = long_alignment.align_frames

    def watched(frames: np.ndarray, *arguments: Any, **options: Any) -> list[Placed]:
        sizes.append(len(frames))
        return original(frames, *arguments, **options)

    monkeypatch.setattr(long_alignment, "align_frames", watched)
    for part_frames in (37, 500, 5000):
        parts = (log_probs[first : first + part_frames] for first in range(0, len(log_probs), part_frames))
        assert list(align_parts(parts, words, 0, None, 200)) == at_once
    assert max(sizes) == 200
    # A long stretch that is no text, and one of text that is not said, cost only themselves.
    noise = [int(symbol) for symbol in generator.integers(1, 8, size=700)]
    half = len(symbols) // 2
    mixed = certain([*symbols[:half], *noise, *symbols[half:]], 8)
    more = [*words[:100], *[[7, 7, 7, 7]] * 60, *words[100:]]
    found = list(align_parts([mixed], more, 0, None, 200))
    said = [item.word for item in found if item.word is not None and item.tokens]
    assert sum(100 <= word < 160 for word in said) < 3
    assert len(said) > 390
    late = {item.word: item.tokens[0].first_frame for item in found if item.word is not None and item.tokens}
    assert late[459] == at_once[399].tokens[0].first_frame + 700


def test_formats(transcriber: Transcriber, planted_waveform: Any, tmp_path: Path) -> None:
    found = transcriber.align(planted_waveform('hello abcd "fed"'.replace('"', "")), 'Hello "fed"', 16_000)
    ctm = format_alignment(found, AlignmentFormat.CTM, "a b.wav", "a b")
    assert [line.split()[:5] for line in ctm.splitlines()] == [
        ["a_b", "1", "0.000", "0.140", "Hello"],
        ["a_b", "1", "0.330", "0.080", '"fed"'],
    ]
    grid = tmp_path / "a.TextGrid"
    grid.write_text(format_alignment(found, AlignmentFormat.TEXTGRID, "a.wav", "a"), "utf-8")
    tiers = {tier.name: [(span.text, span.start, span.end) for span in tier.spans] for tier in read_textgrid(grid)}
    assert [text for text, _, _ in tiers["words"] if text] == ["Hello", '"fed"']
    assert [text for text, _, _ in tiers["not in text"] if text] == ["abcd"]
    assert "".join(text for text, _, _ in tiers["letters"]) == "hellofed"
    assert "Hello" in format_alignment(found, AlignmentFormat.SRT, "a.wav", "a")
    assert to_transcript(found).text == 'Hello "fed"'
    values = json.loads(format_alignment(found, AlignmentFormat.JSON, "a.wav", "a"))
    assert [word["status"] for word in values["words"]] == ["said", "not in text", "said"]
    assert values["confidences"] == "uncalibrated"


def test_praat_reads_the_grid(transcriber: Transcriber, planted_waveform: Any, tmp_path: Path) -> None:
    textgrid = pytest.importorskip("praatio.textgrid")
    found = transcriber.align(planted_waveform("hello abcd fed"), "hello fed", 16_000)
    path = tmp_path / "a.TextGrid"
    path.write_text(format_alignment(found, AlignmentFormat.TEXTGRID, "a.wav", "a"), "utf-8")
    grid = textgrid.openTextgrid(str(path), includeEmptyIntervals=False, reportingMode="error")
    words = [(entry.label, entry.start, entry.end) for entry in grid.getTier("words").entries]
    assert words == [("hello", 0.0, 0.14), ("fed", 0.33, 0.41)]
    assert [entry.label for entry in grid.getTier("not in text").entries] == ["abcd"]


def test_it_takes_what_transcribe_takes(transcriber: Transcriber, plant: Any) -> None:
    path = plant("hello abc")
    expected = statuses(transcriber.align(path, "hello abc"))
    assert expected == [("hello", "said"), ("abc", "said")]
    assert statuses(transcriber.align(path.read_bytes(), "hello abc")) == expected
    with path.open("rb") as file:
        assert statuses(transcriber.align(file, "hello abc")) == expected
    with pytest.raises(AudioError, match=r"speech\.wav: expected no sample_rate beside a file, found 8000"):
        transcriber.align(path, "hello abc", sample_rate=8_000)


class TestCommand:
    def run(self, *arguments: Any) -> Any:
        return CliRunner().invoke(app, ["align", *map(str, arguments), "--device", "cpu"])

    def test_a_recording_and_its_text(self, model_folder: Path, plant: Any, tmp_path: Path) -> None:
        recording = plant("hello abc")
        (tmp_path / "said.txt").write_text("Hello, abc 7!", "utf-8")
        result = self.run(recording, tmp_path / "said.txt", "--model", model_folder)
        assert result.exit_code == 0, result.output
        values = json.loads(result.stdout)
        assert [word["text"] for word in values["words"] if word["status"] != "not in text"] == ["Hello,", "abc", "7!"]
        assert "said.txt" not in result.stderr
        assert "word 3: '7!' is skipped over" in result.stderr

    def test_a_folder_with_texts_beside(self, model_folder: Path, plant: Any, tmp_path: Path) -> None:
        for name in ("one", "two"):
            plant("hello abc", f"{name}.wav")
            (tmp_path / f"{name}.txt").write_text("hello abc", "utf-8")
        grids = ("--model", model_folder, "--format", "textgrid", "--output-dir", tmp_path / "out")
        result = self.run(tmp_path, *grids)
        assert result.exit_code == 0, result.output
        one, two = sorted((tmp_path / "out").iterdir())
        assert (one.name, two.name) == ("one.TextGrid", "two.TextGrid")
        made = one.read_text()
        one.write_text("by hand")
        two.unlink()
        result = self.run(tmp_path, *grids)
        assert (result.exit_code, one.read_text(), two.read_text()[:5]) == (1, "by hand", made[:5])
        assert f"{one}: already exists (use --overwrite)\n" in result.output
        assert self.run(tmp_path, *grids, "--overwrite").exit_code == 0
        assert one.read_text() == made
        soundfile.write(tmp_path / "one.flac", *soundfile.read(tmp_path / "two.wav"))
        result = self.run(tmp_path, *grids, "--overwrite")
        assert result.exit_code == 1
        assert (
            f"{tmp_path / 'one.wav'}: would overwrite the output of {tmp_path / 'one.flac'}; skipped" in result.output
        )
        refused = self.run(tmp_path, "--model", model_folder, "--format", "srt")
        assert refused.exit_code == 2
        assert "needs --output-dir" in refused.output

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda folder: ("none.wav", folder / "said.txt"), "none.wav"),
            (lambda folder: (folder / "speech.wav", folder / "lost.txt"), "lost.txt"),
            (lambda folder: (folder / "speech.wav",), "expected a text for"),
            (lambda folder: (folder / "none",), "none: expected an audio file, found none"),
        ],
    )
    def test_bad_input_is_one_line(
        self, make: Any, message: str, model_folder: Path, plant: Any, tmp_path: Path
    ) -> None:
        plant("hello abc")
        (tmp_path / "said.txt").write_text("hello abc", "utf-8")
        result = self.run(*make(tmp_path), "--model", model_folder)
        assert result.exit_code == 1
        (line,) = [line for line in result.stderr.splitlines() if line.startswith("error")]
        assert message in line

    def test_names_that_are_no_utf8_survive_whatever_the_locale(
        self, model_folder: Path, plant: Any, tmp_path: Path
    ) -> None:
        path = plant("где").rename(tmp_path / os.fsdecode(b"\xe9.wav"))
        path.with_suffix(".txt").write_text("№", "utf-8")
        command = ["align", str(tmp_path), "--model", str(model_folder), "--device", "cpu"]
        result = CliRunner(charset="ascii").invoke(app, command)
        assert json.loads(result.stdout_bytes)["path"] == str(path)
        ctm = CliRunner(charset="ascii").invoke(app, [*command, "--format", "ctm"])
        name, *_, word, _ = ctm.stdout_bytes.split()
        assert (name, word.decode()) == (b"\xe9", "№")

    def test_a_ctm_tells_recordings_apart(self, model_folder: Path, plant: Any, tmp_path: Path) -> None:
        for name in ("a b.wav", "a_b.wav", "c.flac", "c.wav", "d.wav"):
            plant("hello abc", name).with_suffix(".txt").write_text("hello abc")
        result = self.run(tmp_path, "--model", model_folder, "--format", "ctm")
        assert result.exit_code == 1
        assert {line.split()[0] for line in result.stdout.splitlines()} == {"a_b", "c", "d"}
        assert result.stderr.splitlines()[:2] == [
            f"error: {tmp_path / name}: would have the name of {tmp_path / owner} in the CTM; skipped"
            for name, owner in (("a_b.wav", "a b.wav"), ("c.wav", "c.flac"))
        ]
        assert self.run(tmp_path, "--model", model_folder).stdout.count('"path"') == 5

    def test_a_file_that_cannot_be_written_costs_that_recording_alone(
        self, model_folder: Path, plant: Any, tmp_path: Path
    ) -> None:
        long = "x" * 248
        for name in (long, "y"):
            plant("hello abc", f"{name}.wav").with_suffix(".txt").write_text("hello abc")
        result = self.run(tmp_path, "--model", model_folder, "--format", "textgrid", "--output-dir", tmp_path / "out")
        assert result.exit_code == 1
        assert f"error: {tmp_path / 'out' / long}.TextGrid: File name too long\n" in result.stderr
        assert "2 recordings, 1 failed; words: " in result.stderr
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["y.TextGrid"]

    def test_times_of_a_manifest_count_from_the_start_of_the_recording(
        self, model_folder: Path, planted_waveform: Any, tmp_path: Path
    ) -> None:
        """As those of `transcribe-audio --start`: the path that stands beside them is the recording's."""
        samples = planted_waveform("hello abc")
        soundfile.write(tmp_path / "a.wav", np.concatenate([samples, samples]), 16_000)
        utterances = [Utterance(str(tmp_path / "a.wav"), len(samples), start, text="№") for start in (0, len(samples))]
        write_manifest(tmp_path / "dev.tsv", utterances, ".")
        options = (tmp_path / "dev.tsv", "--model", model_folder)
        first, second = map(json.loads, self.run(*options).stdout.splitlines())
        offset = len(samples) / 16_000
        assert second["seconds"] == pytest.approx(first["seconds"] + offset, abs=2e-3)
        times = [[word["start"] for word in found["words"]] for found in (first, second)]
        assert times[1] == pytest.approx([time + offset for time in times[0]], abs=2e-3)
        lines = [line.split() for line in self.run(*options, "--format", "ctm").stdout.splitlines()]
        assert [line[0] for line in lines] == ["a", "a"]
        assert float(lines[1][2]) == pytest.approx(float(lines[0][2]) + offset, abs=2e-3)
        assert self.run(*options, "--format", "srt", "--output-dir", tmp_path / "out").exit_code == 0
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a_3.srt", "a_4.srt"]
