"""`transcribe-audio --live`: words come while the pipe is open, stay, and the end is no error."""

import io
import os
import re
import select
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from planted import Say
from typer.testing import CliRunner, Result

from speechssl.checkpoint.saved_model import CTCCheckpoint
from speechssl.commands.transcribe import app
from speechssl.data.audio import Waveform
from speechssl.decode.words import Word
from speechssl.transcribe import live
from speechssl.transcribe.live import LiveSamples, Screen
from speechssl.transcribe.stream import PartialTranscript

ARGUMENTS = ["--model", "m", "--live", "--raw-rate", "16000", "-"]
SILENCE = np.zeros(16_000, np.float32)


@pytest.fixture
def loaded(checkpoint: CTCCheckpoint, monkeypatch: pytest.MonkeyPatch) -> CTCCheckpoint:
    """Any model folder holds the planted model."""
    monkeypatch.setattr("speechssl.transcribe.transcriber.load_ctc", lambda path, device, language: checkpoint)
    return checkpoint


def raw(*waves: Waveform) -> bytes:
    return (np.concatenate(waves) * 32768).round().astype("<i2").tobytes()


def run(content: bytes, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments], input=content)


def test_a_line_ends_with_each_pause(loaded: CTCCheckpoint, planted_waveform: Say) -> None:
    content = raw(planted_waveform("hello где"), SILENCE, SILENCE, planted_waveform("again"))
    result = run(content + b"\0", *ARGUMENTS)  # and half a sample
    assert (result.exit_code, result.stdout) == (0, "hello где\nagain\n")
    assert re.fullmatch(r"2\.\d s of audio on cpu x \d+, float32\n", result.stderr)
    result = run(raw(SILENCE, SILENCE), "--model", "m", "--live", "--raw-rate", "32000", "-")
    assert result.stderr.startswith("1.0 s of audio")
    result = run(b"", *ARGUMENTS, "--quiet")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--live", "-"], "expected --raw-rate and -, standard input"),
        (["--live", "--raw-rate", "16000", "-", "a.wav"], "expected --raw-rate and -, standard input"),
        ([*ARGUMENTS, "--lm", "lm.toml", "--words"], "expected no --words nor --lm beside it"),
        ([*ARGUMENTS, "--format", "json"], "expected no --format beside it"),
    ],
)
def test_what_needs_the_whole_recording_is_refused(arguments: Sequence[str], expected: str) -> None:
    result = run(b"", "--model", "m", *arguments)
    assert result.exit_code == 2
    assert expected in " ".join(re.sub("[│\n]", " ", result.stderr).split())


class Pipe:
    """Standard input and output of the command, of which a test holds the other ends."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        (read, self.write), (self.read, write) = os.pipe(), os.pipe()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(open(read, "rb")))  # noqa: PTH123, SIM115
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(open(write, "wb")))  # noqa: PTH123, SIM115
        monkeypatch.setattr(sys, "stderr", io.StringIO())

    def run_beside(self, talk: Callable[[], None]) -> list[BaseException]:
        """Run the command here, which signals reach, and in another thread who talks to it; return its errors."""
        errors: list[BaseException] = []

        def guarded() -> None:
            try:
                talk()
            except BaseException as error:
                errors.append(error)
                os.kill(os.getpid(), signal.SIGINT)  # so that the command ends

        thread = threading.Thread(target=guarded)
        thread.start()
        try:
            app(ARGUMENTS, standalone_mode=False)
        finally:
            thread.join(20)
        return errors

    def heard(self, text: str) -> None:
        """Wait until exactly this was said."""
        found = b""
        while len(found) < len(text.encode()):
            assert select.select([self.read], [], [], 20)[0], found
            found += os.read(self.read, len(text.encode()) - len(found))
        assert found.decode() == text


def test_words_come_before_the_pipe_is_closed(
    loaded: CTCCheckpoint, planted_waveform: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = Pipe(monkeypatch)

    def talk() -> None:
        os.write(pipe.write, raw(planted_waveform("one two "), SILENCE[:8000]))
        os.write(pipe.write, raw(SILENCE))
        pipe.heard("one two")
        os.write(pipe.write, raw(SILENCE))
        pipe.heard("\n")
        os.write(pipe.write, raw(planted_waveform("three"), SILENCE[:900])[:-1])
        os.close(pipe.write)

    assert pipe.run_beside(talk) == []
    pipe.heard("three\n")


def test_an_interrupt_ends_it_with_what_was_said_before(
    loaded: CTCCheckpoint, planted_waveform: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = Pipe(monkeypatch)
    before = signal.getsignal(signal.SIGINT)

    is_new = threading.Event()
    forward = loaded.model.forward

    def watched(waveforms: torch.Tensor, lengths: torch.Tensor | None) -> Any:
        if waveforms[0, -800:].any():
            is_new.set()
        return forward(waveforms, lengths)

    monkeypatch.setattr(loaded.model, "forward", watched)
    beginning = np.concatenate((planted_waveform("one two "), SILENCE, SILENCE))[:32_000]
    word = planted_waveform("abcdefgh" * 3)[:8000]  # under way, so that nothing of it is final

    def talk() -> None:
        os.write(pipe.write, raw(beginning))
        pipe.heard("one two\n")
        os.write(pipe.write, raw(word))
        assert is_new.wait(20)
        os.kill(os.getpid(), signal.SIGINT)

    assert pipe.run_beside(talk) == []  # nor was there a KeyboardInterrupt
    assert signal.getsignal(signal.SIGINT) == before
    pipe.heard("abcdefghabcdefgha\n")


@pytest.mark.parametrize("sample_rate", [16_000, 8_000])
def test_samples_wait_while_nobody_listens_and_chunks_do_not_depend_on_the_pipe(sample_rate: int) -> None:
    read, write = os.pipe()
    file = io.BufferedReader(io.FileIO(read))
    samples = LiveSamples(file, sample_rate)
    content = np.arange(-20_000, 20_700, dtype="<i2")  # of which the last 700 fill no chunk
    pieces = content.tobytes()
    for first in range(0, len(pieces), 7777):  # more than a pipe holds
        os.write(write, pieces[first : first + 7777])
    os.close(write)
    chunks = list(samples)
    assert [len(chunk) for chunk in chunks] == [sample_rate // 10] * (400_000 // sample_rate) + [700]
    assert np.array_equal(np.concatenate(chunks), content)


class Terminal(io.StringIO):
    """The lines that a terminal would show."""

    def isatty(self) -> bool:
        return True

    def rows(self) -> list[str]:
        shown = []
        for line in self.getvalue().split("\n"):
            shown.append(line.rpartition("\r\x1b[K")[2])
        return shown


def result(words: str, partial: str, seconds: float, end: float = 0.0) -> PartialTranscript:
    return PartialTranscript(tuple(Word(word, end, end, 1.0) for word in words.split()), partial, seconds)


def test_a_terminal_rewrites_what_is_not_final(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "get_terminal_size", lambda: os.terminal_size((20, 5)))
    out = Terminal()
    screen = Screen(out)
    for shown, rows in (
        (result("", "he", 0.5), ["he"]),
        (result("", "hello wo", 1.0), ["hello wo"]),
        (result("hello", "world is", 1.5, 0.9), ["hello world is"]),
        (result("", "world is wide and round", 2.0), ["hello world is wide"]),  # 19 of 20 columns
        (result("world is wide and", "round", 2.5, 2.2), ["hello world is wide", "and round"]),
        (result("", "", 2.6), ["hello world is wide", "and"]),
        (result("", "", 2.9), ["hello world is wide", "and", ""]),  # a pause
        (
            result("", "那是一個廣闊的世界嗎", 3.0),
            ["hello world is wide", "and", "那是一個廣闊的世界"],
        ),  # two columns each
    ):
        screen.show(shown)
        assert out.rows() == rows
    screen.finish()
    plain = io.StringIO()
    screen = Screen(plain)
    screen.show(result("hello", "world", 1.0, 0.9))
    assert plain.getvalue() == "hello"
    screen.show(PartialTranscript((Word("wor", 1, 1, 1.0), Word("ld", 1, 1.1, 1.0, is_joined=True)), "", 1.2))
    screen.finish()
    assert plain.getvalue() == "hello world\n"
