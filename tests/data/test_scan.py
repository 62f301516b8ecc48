import os
from pathlib import Path
from typing import Any

import pytest

from speechssl.data.scan import find_recordings, read_text


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_the_text_beside_a_recording(tmp_path: Path, encoding: str) -> None:
    assert read_text(tmp_path / "a.txt") is None
    for content, expected in ((" \n", ""), (" später\nam Tag\n", "später am Tag")):
        (tmp_path / "a.txt").write_text(content, encoding)
        assert read_text(tmp_path / "a.txt") == expected


def test_a_folder_that_cannot_be_read_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    (tmp_path / "a.wav").touch()
    original = os.scandir

    def scandir(path: Any) -> Any:
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr(os, "scandir", scandir)  # root may read everything
    with pytest.warns(UserWarning, match=r"closed: Permission denied: what is in it is left out$"):
        assert find_recordings(str(tmp_path)) == [tmp_path / "a.wav"]
