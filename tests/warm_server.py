"""Run Python programs in forks of a process that has imported what they import: `python warm_server.py FOLDER`.

FOLDER/bin/python is the client. It takes the arguments of a Python, and the program gets its streams, environment,
folder and signals; if the client is killed, so is the program. The server ends when its stdin does.
"""

import atexit
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import shutil
import signal
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path

import speechssl

LATER = (  # what the package imports where it needs it
    "av",
    "numpy.ma",
    "rich.progress",
    "sklearn.cluster",
    "torch._dynamo",  # by the first optimizer
    "torch.distributed.run",
    "torchaudio.functional",
)
CLIENT = """#!{python} -IS
import json, os, signal, socket, sys

connection = socket.socket(socket.AF_UNIX)
connection.connect({address!r})
SIGNALS = signal.SIGINT, signal.SIGTERM
for number in SIGNALS:
    signal.signal(number, lambda number, _: connection.send(bytes([number])))
request = json.dumps([sys.argv, dict(os.environ), os.getcwd()]).encode()
socket.send_fds(connection, [len(request).to_bytes(8, "big")], [0, 1, 2])
connection.sendall(request)
status = int(connection.recv(16) or b"70")  # 70: the server has died
if status < 0:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
sys.exit(status)
"""


def serve(folder: Path) -> None:
    """Print the client's path, then fork a process for each client."""
    python, address = folder / "bin" / "python", folder / "socket"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(address))
    listener.listen(64)
    python.parent.mkdir()
    python.write_text(CLIENT.format(python=sys.executable, address=str(address)), "utf-8")
    python.chmod(0o755)
    print(python, flush=True)  # noqa: T201
    import_everything()
    gc.freeze()
    while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
        connection, _ = listener.accept()
        if not os.fork():
            listener.close()
            supervise(connection)
            return
        connection.close()
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:  # those that have ended
                pass
    shutil.rmtree(folder)


def import_everything() -> None:
    for module in pkgutil.walk_packages(speechssl.__path__, "speechssl."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in LATER:
        with suppress(ImportError):  # of an extra
            importlib.import_module(name)


def supervise(connection: socket.socket) -> None:
    """Fork a client's program, pass signals on, and tell the client how it ended."""
    head, descriptors, _, _ = socket.recv_fds(connection, 8, 3)
    with connection.makefile("rb") as file:
        request = json.loads(file.read(int.from_bytes(head, "big")))
    program = os.fork()
    if not program:
        connection.close()
        run(descriptors, *request)
        return
    for descriptor in descriptors:
        os.close(descriptor)
    threading.Thread(target=pass_signals_on, args=(connection, program), daemon=True).start()
    status = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
    with suppress(BrokenPipeError):
        connection.sendall(str(status).encode())
    os._exit(0)


def pass_signals_on(connection: socket.socket, program: int) -> None:
    with suppress(ProcessLookupError):
        while number := connection.recv(1):
            os.kill(program, number[0])
        os.kill(program, signal.SIGKILL)  # the client was killed


def run(descriptors: list[int], arguments: list[str], environment: dict[str, str], folder: str) -> None:
    """Be a Python that is started with these arguments."""
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.executable, *arguments = arguments
    sys.prefix = str(Path(sys.executable).parents[1])  # to tools/bootstrap.sh an environment that is not .venv
    is_alone = arguments[0] == "-P"  # does not look for modules beside it
    while arguments[0] in ("-P", "-u"):
        del arguments[0]
    kind, *sys.argv = arguments
    if not is_alone:
        sys.path.insert(0, folder if kind in ("-m", "-c", "-") else str(Path(kind).parent))
    try:
        run_main(kind)
        status = 0
    except SystemExit as leaving:
        if not isinstance(leaving.code, int | None):
            raise
        status = leaving.code or 0
    # What the interpreter does at its end, but for taking apart all that was imported, which takes a second.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def run_main(kind: str) -> None:
    """Run a module (-m), a text (-c, or - for stdin) or a file."""
    if kind == "-m":
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    elif kind in ("-c", "-"):
        program = sys.stdin.read() if kind == "-" else sys.argv.pop(0)
        sys.argv.insert(0, kind)
        exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv.insert(0, kind)
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    del sys.path[0]  # the tests' modules are not the programs'
    serve(Path(sys.argv[1]))
