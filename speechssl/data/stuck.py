"""Reading that never ends, such as from a file server that does not answer, ends the process instead."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

from speechssl.terminal import print_status

LONGEST_SECONDS = 120.0  # an object store that fails for a minute is waited for
_NUM_WAITS = 100  # that make it up: while the process is suspended, one of them ends, and not the time


@contextmanager
def ended_if_stuck(where: Callable[[], str]) -> Iterator[None]:
    """End the process with status 1 if the block takes too long, after a line that says ``where`` it reads.

    Nothing less ends it: neither a thread nor a worker process can be taken out of the system call that it waits in.
    """
    is_read = Event()

    def watch() -> None:
        if any(is_read.wait(LONGEST_SECONDS / _NUM_WAITS) for _ in range(_NUM_WAITS)):
            return
        print_status(f"error: {where()}: nothing was read for {LONGEST_SECONDS:g} seconds; does its storage answer?")
        os._exit(1)

    Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        is_read.set()
