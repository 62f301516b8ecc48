"""A Python whose programs start at once, for tests that start dozens: importing is most of what small programs do."""

import atexit
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path


@cache
def warm_python() -> str:
    """Start the server of `warm_server.py` on first use; return the path of its Python, which lives as we do."""
    folder = tempfile.mkdtemp(prefix="warm-")  # the server removes it
    server = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("warm_server.py"), folder],
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # threads of OpenMP do not survive a fork
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # so that Ctrl-C is ours alone
    )
    atexit.register(server.communicate)  # closes its stdin and waits
    assert server.stdout
    return server.stdout.readline().decode().rstrip("\n")


def warm_environment() -> dict[str, str]:
    """Return variables by which tools/bootstrap.sh finds that Python."""
    return {"VIRTUAL_ENV": str(Path(warm_python()).parents[1]), "OMP_NUM_THREADS": "1"}
