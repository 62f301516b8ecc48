"""Two processes of a run, in each of several ways to end: prints as JSON what both said, and their exit statuses."""

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from speechssl.errors import StoppedError, TrainingError
from speechssl.terminal import exit_on_error
from speechssl.train import watch
from speechssl.train.parallel import Ranks, joined_ranks

watch._MEETING_SECONDS, watch._GRACE_SECONDS = 0.2, 0.5


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    raise TrainingError("a recording of process 1")


def stop() -> None:
    raise StoppedError("stopped")


def wait_for_a_gpu() -> None:
    time.sleep(60)


def finish() -> None:
    pass


def finish_late() -> None:
    time.sleep(3 * watch._MEETING_SECONDS + watch._GRACE_SECONDS)


def meet(ranks: Ranks) -> None:
    ranks.any(True)


# What the first does, and the second.
WAYS: dict[str, tuple[Callable[[], None] | None, Callable[[], None]]] = {
    "killed while the other waits for it": (None, kill),
    "killed while the other computes": (wait_for_a_gpu, kill),
    "failed while the other computes": (wait_for_a_gpu, fail),
    "failed while the other waits for it": (None, fail),
    "stopped": (stop, stop),
    "finished": (finish, finish_late),
}


def run(rank: int, port: int, do: Callable[[], None] | None, stderr: Path) -> None:
    os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT), 2)
    with exit_on_error(), joined_ranks("cpu") as ranks:
        ranks.gather(None)
        meet(ranks) if do is None else do()


def main(folder: Path) -> None:
    processes = []
    for number, dos in enumerate(WAYS.values()):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for rank, do in enumerate(dos):
            child = os.fork()
            if not child:
                run(rank, port, do, folder / f"{number}.{rank}")
                sys.exit()
            processes.append(child)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in processes]
    said = {
        way: [(statuses[2 * number + rank], (folder / f"{number}.{rank}").read_text()) for rank in range(2)]
        for number, way in enumerate(WAYS)
    }
    json.dump(said, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
