from pathlib import Path

import pytest

from speechssl.errors import SpeechSSLError
from speechssl.files import path_inside


@pytest.mark.parametrize("name", ["a.wav", "a/b.wav", "a/../b.wav", "..a/b..wav", "C:\\x.wav", "~/x", "é.wav"])
def test_names_inside(tmp_path: Path, name: str) -> None:
    path = path_inside(tmp_path / "new", name, "x:1")
    assert path == tmp_path / "new" / name
    assert (tmp_path / "new") in path.resolve().parents
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../a", "a/../..", "a/../../new2/x", "/etc/passwd", "link/x", "link/../x", "a\nb", "a\0b"]
)
def test_names_that_lead_elsewhere(tmp_path: Path, name: str) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "link").symlink_to(tmp_path)
    with pytest.raises(SpeechSSLError) as caught:
        path_inside(tmp_path / "new", name, "list.tsv:7")
    assert str(caught.value) == f"list.tsv:7: expected a name inside {tmp_path / 'new'}, found {name!r}"


def test_a_folder_behind_a_link_is_the_users_choice(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    assert path_inside(tmp_path / "out", "a.wav", "x:1") == tmp_path / "out" / "a.wav"
