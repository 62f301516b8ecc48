import os
from pathlib import Path
from typing import Any

import pytest

from speechssl.data.scan import find_recordings, scan_folder
from speechssl.errors import ManifestError, SpeechSSLError


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    (tmp_path / "a.wav").touch()
    original = os.scandir

    def scandir(path: Any) -> Any:
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr(os, "scandir", scandir)  # root may read everything
    message = rf"^{closed}: expected a folder that may be read: Permission denied$"
    failures: list[SpeechSSLError] = []
    assert find_recordings(str(tmp_path), failures) == [tmp_path / "a.wav"]
    with pytest.raises(ManifestError, match=message):
        raise failures[0]
    with pytest.raises(ManifestError, match=message):
        find_recordings(tmp_path)
    assert next(str(failure) for failure in scan_folder(tmp_path)[1]) == str(failures[0])


def test_recordings_are_known_by_their_suffixes(tmp_path: Path) -> None:
    names = ["a.3gp", "b.M4B", "c.mp2", "d.mpga", "e.mpg", "f.ts", "g.wmv", "h.qta", "i.spx", "j.flv"]
    for name in (*names, "k.txt", "l"):
        (tmp_path / name).touch()
    assert [path.name for path in find_recordings(tmp_path)] == names
