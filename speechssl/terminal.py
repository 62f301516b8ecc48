"""What commands share: an option, one line on stderr for a known failure, and the exit status that goes with it."""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from speechssl.errors import SpeechSSLError, StoppedError

STOPPED_STATUS = 75
"""Exit status of a training that was asked to stop: EX_TEMPFAIL of sysexits.h, "run it again"."""


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
    except KeyboardInterrupt:
        print_status("interrupted")
        sys.exit(130)


def print_error(error: Exception) -> None:
    """Print an error as one line on stderr."""
    print_status(f"error: {' '.join(str(error).split())}")


def print_status(line: str) -> None:
    """Print a line of progress or advice on stderr; stdout is for results."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _show_warning(message: Warning | str, *_: Any) -> None:
    print_status(f"warning: {' '.join(str(message).split())}")
