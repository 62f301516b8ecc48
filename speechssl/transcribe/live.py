"""What `transcribe-audio --live` does: samples in as they are recorded, words out as they become final."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from shutil import get_terminal_size
from threading import Thread
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
import numpy.typing as npt
from wcwidth import iter_graphemes, wcswidth

from speechssl.errors import AudioError
from speechssl.terminal import print_status
from speechssl.transcribe.outputs import open_stdout
from speechssl.transcribe.transcript import PAUSE_SECONDS

if TYPE_CHECKING:
    from speechssl.decode.words import Word
    from speechssl.transcribe.stream import PartialTranscript
    from speechssl.transcribe.transcriber import Transcriber

_CHUNK_SECONDS = 0.1
_CLEAR = "\r\x1b[K"  # go to the start of the line and erase it


def transcribe_live(load: Callable[[], "Transcriber"], sample_rate: int, is_quiet: bool = False) -> None:
    """Transcribe samples from standard input on stdout until they end or Ctrl-C is pressed, which is no error.

    Args:
        load: Called once samples are being read, so that none are lost meanwhile.
        sample_rate: Of the samples, which are of 16 bits, little-endian and mono.
        is_quiet: Whether no summary is shown.

    Raises:
        AudioError: standard input is closed or cannot be read.
        ConfigError: standard output is closed.
    """
    if sys.stdin is None:
        raise AudioError("<stdin>: expected samples, found it closed")
    samples = LiveSamples(sys.stdin.buffer, sample_rate)
    with samples.ended_by_interrupt():
        screen, transcriber, seconds = Screen(open_stdout()), load(), 0.0
        for result in transcriber.stream(samples, sample_rate):
            screen.show(result)
            seconds = result.seconds
        screen.finish()
    if not is_quiet:
        print_status(f"{seconds:.1f} s of audio on {transcriber.inference.describe()}")


class LiveSamples:
    """Samples of a pipe in chunks of a tenth of a second, read by a thread from the moment that this is made.

    While the model is loaded or is busy, they wait here: a pipe holds two seconds, and a recorder drops what does not
    fit.
    """

    def __init__(self, file: Any, sample_rate: int) -> None:
        # Without a buffer, whose lock the thread would hold when Python exits.
        self._file, self._num_bytes = getattr(file, "raw", file), 2 * max(1, round(_CHUNK_SECONDS * sample_rate))
        self._chunks: SimpleQueue[bytes | OSError] = SimpleQueue()
        Thread(target=self._read, daemon=True).start()

    def __iter__(self) -> Iterator[npt.NDArray[np.int16]]:
        """Yield chunks until the pipe is closed or the user interrupts; half a sample at the end is left out."""
        while chunk := self._chunks.get():
            if isinstance(chunk, OSError):
                raise AudioError(f"<stdin>: expected samples, found that it cannot be read: {chunk.strerror}")
            yield np.frombuffer(chunk[: len(chunk) // 2 * 2], "<i2").astype(np.int16)

    @contextmanager
    def ended_by_interrupt(self) -> Iterator[None]:
        """Let the first Ctrl-C end the samples, so that what was said before it is still transcribed."""

        def end(number: int, frame: FrameType | None) -> None:
            signal.signal(signal.SIGINT, before)  # a second one is not waited for
            self._chunks.put(b"")  # which is safe at any moment, as no other queue's

        before = signal.signal(signal.SIGINT, end)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _read(self) -> None:
        waiting = b""
        try:
            while block := self._file.read(self._num_bytes - len(waiting)):
                waiting += block
                if len(waiting) == self._num_bytes:
                    self._chunks.put(waiting)
                    waiting = b""
        except OSError as error:
            self._chunks.put(error)
            return
        if waiting:
            self._chunks.put(waiting)
        self._chunks.put(b"")


class Screen:
    """Final words on stdout at once, a line ended by each pause; on a terminal, what may follow them is rewritten."""

    def __init__(self, out: TextIO) -> None:
        self.out, self.is_terminal = out, out.isatty()
        self.line = ""  # final words
        self.end_seconds = 0.0  # of the last one

    def show(self, result: "PartialTranscript") -> None:
        """Show one more result of a stream."""
        text = _CLEAR + self.line if self.is_terminal else ""
        for word in result.words:
            text += self._add(word)
        if self.line and not result.partial and result.seconds - self.end_seconds >= PAUSE_SECONDS:
            text += self._end_line()
        if self.is_terminal:
            between = " " if self.line and result.partial else ""
            text += _cut(between + result.partial, self._columns - wcswidth(self.line))
        self.out.write(text)
        self.out.flush()

    def finish(self) -> None:
        """End the last line."""
        self.out.write(self._end_line() if self.line else "")
        self.out.flush()

    @property
    def _columns(self) -> int:
        return get_terminal_size().columns - 1  # in the last one some terminals begin a new line

    def _add(self, word: "Word") -> str:
        """Add a final word; return what is to be written, on a terminal after a new line where it is full."""
        added = word.text if word.is_joined or not self.line else f" {word.text}"
        self.end_seconds = word.end
        if self.is_terminal and self.line and wcswidth(self.line + added) > self._columns:
            self.line = word.text
            return f"\n{word.text}"
        self.line += added
        return added

    def _end_line(self) -> str:
        self.line = ""
        return "\n"


def _cut(text: str, columns: int) -> str:
    """Return the beginning of a text that fits."""
    shown = ""
    for cluster in iter_graphemes(text):
        if wcswidth(shown + cluster) > columns:
            break
        shown += cluster
    return shown
