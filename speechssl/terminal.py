"""What every command does on a terminal: errors in one line, exit statuses, progress, and numbers in words."""

import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from speechssl.errors import SpeechSSLError, StoppedError

STOPPED_STATUS = 75
"""Exit status of a training that was asked to stop: EX_TEMPFAIL of sysexits.h, "run it again"."""

_CONTROL = re.compile("[\1-\x1f\x7f-\x9f\u2028\u2029]")


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Turn a known error or a warning into one line on stderr; exit with status 1, or 130 after an interrupt."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning  # type: ignore[assignment]
            yield
        if sys.stdout is not None:  # closed by whoever called
            sys.stdout.flush()
    except StoppedError as error:
        print_status(str(error))
        sys.exit(STOPPED_STATUS)
    except SpeechSSLError as error:
        print_error(error)
        sys.exit(1)
    except BrokenPipeError:
        # The reader of stdout is gone (`| head`): nothing is left to say, and Python must not try at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.filename is None:  # none of a path that the user chose
            raise
        print_error(SpeechSSLError(f"{error.filename}: {error.strerror}"))
        sys.exit(1)
    except KeyboardInterrupt:
        print_status("interrupted")
        sys.exit(130)


def escaped(name: str) -> str:
    """Return a name without line breaks, tabs and what else would spoil a line, which become escape sequences."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), name)


def print_error(error: Exception) -> None:
    """Print an error as one line on stderr."""
    print_status(f"error: {' '.join(str(error).split())}")


def print_status(line: str) -> None:
    """Print a line of progress or advice on stderr; stdout is for results."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


@contextmanager
def progress(description: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a bar on stderr while something is done ``total`` times, if stderr is a terminal.

    Yields:
        A function to call each time.
    """
    with _bar(description, total) as bar:
        yield bar.advance


@contextmanager
def status_bar(description: str, total: int, done: int) -> Iterator["Bar | None"]:
    """Show a bar of work of which a part is done already, as `progress`; None if stderr is no terminal.

    The last state stays on the screen; what else is printed meanwhile stands above it.
    """
    with _bar(description, total, done, transient=False) as bar:
        yield bar if bar.is_shown else None


@dataclass(frozen=True)
class Bar:
    """A bar with lines of text above it.

    Attributes:
        advance: Moves it by one.
        show: Replaces the lines.
        is_shown: Whether there is a terminal.
    """

    advance: Callable[[], None]
    show: Callable[[Iterable[str]], None]
    is_shown: bool


@contextmanager
def _bar(description: str, total: int, done: int = 0, *, transient: bool = True) -> Iterator[Bar]:
    from rich.console import Console, RenderableType
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.text import Text

    text = Text()

    class LinesAndBar(Progress):
        def get_renderables(self) -> Iterator[RenderableType]:
            if text:
                yield text
            yield from super().get_renderables()

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    is_shown = sys.stderr is not None and sys.stderr.isatty()
    bar = LinesAndBar(
        *columns,
        console=Console(stderr=True),
        transient=transient,
        redirect_stdout=False,  # stdout is for results: the bar's console would print them on stderr
        disable=not is_shown,
    )

    def show(lines: Iterable[str]) -> None:
        text.plain = "\n".join(lines)

    with bar:
        task = bar.add_task(description, total=total, completed=done)
        yield Bar(lambda: bar.advance(task), show, is_shown)


def format_duration(seconds: float) -> str:
    """Return "1.53 hours", or "12.3 minutes" below an hour."""
    return f"{seconds / 3600:.2f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"


def count(number: int, noun: str) -> str:
    """Return "1 utterance", "2 utterances"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _show_warning(message: Warning | str, *_: Any) -> None:
    print_status(f"warning: {' '.join(str(message).split())}")
