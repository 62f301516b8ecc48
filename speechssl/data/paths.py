"""Paths and URLs of recordings, as manifests write them: from a root on, or whole."""

import os
import re
from pathlib import Path

from speechssl.errors import ManifestError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # one letter would be a drive of Windows
_RANGE = re.compile(r"(.+):(\d+):(\d+)", re.DOTALL)


def is_url(path: str) -> bool:
    """Return whether it names an object behind a URL, such as ``s3://bucket/name``."""
    return "://" in path and _URL.match(path) is not None


def split_range(path: str) -> tuple[str, int, int] | None:
    """Return the archive, the first byte and the number of bytes of ``archive:offset:bytes``; None of another path."""
    found = _RANGE.fullmatch(path)
    return (found[1], int(found[2]), int(found[3])) if found else None


def real_path(path: str) -> str:
    """Return what a path leads to, however it is written; a URL as it is."""
    return path if is_url(path) else os.path.realpath(path)


def absolute_root(folder: Path, root: str | os.PathLike[str]) -> str:
    """Return the root that a manifest in a folder states, from where the program runs; a URL is kept."""
    return os.fspath(root) if is_url(os.fspath(root)) else str(folder / root)


def join_root(root: str, path: str) -> str:
    """Return where a recording is that a manifest names; a URL needs no root."""
    return path if is_url(path) else os.path.join(root, path)  # noqa: PTH118, which would spoil URLs


def path_below(root: str | os.PathLike[str], path: str, where: str) -> str:
    """Return how a manifest writes a recording: from the root on, or a URL that does not begin with the root as it is.

    Raises:
        ManifestError: a file is not below the root; the message begins with ``where``.
    """
    above = os.fspath(root).rstrip("/") + "/"
    if is_url(path):
        return path.removeprefix(above)
    # Unlike Path.resolve() it does not follow links out of the root.
    relative = Path(os.path.relpath(path, root))
    if is_url(above) or relative.parts[:1] in ((), (os.pardir,)):
        raise ManifestError(f"{where}: expected a recording below {root}, found {path}")
    return relative.as_posix()
