"""Models by name, with the real client, from a server on this machine that speaks the hub's protocol."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import hf_models
import hub_server
import pytest
import safetensors.torch
import torch

from speechssl.checkpoint.hub import find_model
from speechssl.checkpoint.reader import read_model
from speechssl.errors import CheckpointError

constants = pytest.importorskip("huggingface_hub.constants")

NAME = "tester/tiny"
FILES = {
    "config.json": b'{"model_type": "wav2vec2"}',
    "README.md": b"---\nlicense: mit\n---\n",
    "model.safetensors": bytes(range(256)) * 2_000,
    "adapter.fra.safetensors": b"fra",
    "adapter.deu.safetensors": b"deu",
    "pytorch_model.bin": b"not wanted",
    "flax_model.msgpack": b"not wanted",
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[hub_server.Hub]:
    """A server with one repository, which the client takes for the hub, and an empty cache."""
    with hub_server.serve(hub_server.Hub(NAME, dict(FILES))) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.chdir(tmp_path)
        yield server


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def failure(name: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        find_model(name)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(name.partition("@")[0])
    return message


def test_what_a_model_needs_is_fetched_once(hub: hub_server.Hub) -> None:
    folder = find_model(NAME)
    assert names(folder) == ["README.md", "config.json", "model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    hub.requests.clear()
    assert find_model(NAME) == folder
    assert not [path for _, path, _ in hub.requests if "/resolve/" in path]


def test_a_language_brings_its_adapter(hub: hub_server.Hub) -> None:
    assert "adapter.fra.safetensors" in names(find_model(NAME, "fra"))


def test_files_of_the_cache_are_links_that_lead_out_of_their_folder(hub: hub_server.Hub, tmp_path: Path) -> None:
    model = hf_models.build("mms")
    symbols = {symbol: i for i, symbol in enumerate(hf_models.SYMBOLS)}
    folder = hf_models.save(model, tmp_path / "mms", vocabulary={"eng": symbols, "fra": symbols}, target_lang="eng")
    own = {name: -x for name, x in model.state_dict().items() if "adapter_layer" in name or "lm_head" in name}
    safetensors.torch.save_file(own, folder / "adapter.fra.safetensors")
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    hub.files = {path.name: path.read_bytes() for path in folder.iterdir()}
    head = read_model(NAME, "fra").weights["head.weight"]
    assert (find_model(NAME) / "model-00001-of-00007.safetensors").is_symlink()
    assert torch.equal(head, -model.lm_head.weight)


def test_pickles_are_fetched_where_there_is_nothing_else(hub: hub_server.Hub) -> None:
    del hub.files["model.safetensors"]
    assert names(find_model(NAME)) == ["README.md", "config.json", "pytorch_model.bin"]


def test_a_revision_is_a_part_of_the_name(hub: hub_server.Hub) -> None:
    assert find_model(f"{NAME}@v1") == find_model(f"{NAME}@{hub_server.COMMIT}")
    assert "has no revision 'v2' of it" in failure(f"{NAME}@v2")


def test_a_path_that_exists_wins(hub: hub_server.Hub) -> None:
    Path(NAME).mkdir(parents=True)
    assert find_model(NAME) == Path(NAME)
    assert hub.requests == []


@pytest.mark.parametrize("path", ["nowhere", "/a/b", "a/b/c", "../x", "a/b c"])
def test_what_is_no_name_is_not_asked_for(hub: hub_server.Hub, path: str) -> None:
    assert find_model(path) == Path(path)
    assert hub.requests == []


def test_a_repository_that_is_not_there_or_private(hub: hub_server.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    message = failure("tester/other")
    assert "no such model folder" in message
    assert "set HF_TOKEN" in message
    hub.private = True
    assert "set HF_TOKEN" in failure(NAME)
    monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
    assert "config.json" in names(find_model(NAME))


def test_without_a_network_the_cache_serves(hub: hub_server.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = find_model(NAME)
    for constant, value in (("ENDPOINT", "http://127.0.0.1:9"), ("HF_HUB_OFFLINE", True)):
        monkeypatch.setattr(constants, constant, value)
        assert find_model(NAME) == folder
        assert "nor complete in the cache" in failure("tester/other")


def test_a_download_that_was_cut_off_goes_on(hub: hub_server.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 65_536)
    hub.cut = 200_000
    content = FILES["model.safetensors"]
    for _ in range(2):
        with suppress(CheckpointError):
            find_model(NAME)
    assert (find_model(NAME) / "model.safetensors").read_bytes() == content
    starts = [start for _, path, start in hub.requests if path.endswith("model.safetensors") and start]
    assert any(start.startswith("bytes=") and not start.startswith("bytes=0-") for start in starts), starts


def test_a_damaged_download_is_refused_and_not_kept(hub: hub_server.Hub) -> None:
    hub.damaged = {"model.safetensors"}
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged on the way, and deleted again"):
        find_model(NAME)
    hub.damaged = set()
    assert (find_model(NAME) / "model.safetensors").read_bytes() == FILES["model.safetensors"]


def test_without_the_package_there_is_one_line(hub: hub_server.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install 'speechssl[hub]'" in failure(NAME)


def test_the_command_takes_a_name(hub: hub_server.Hub, tmp_path: Path) -> None:
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "speechssl", "inspect", NAME]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 1
    assert "transformers wav2vec2" in result.stdout
    assert "license mit" in result.stdout
    assert "tester/tiny" in result.stdout
    assert "expected a complete safetensors file" in result.stderr.splitlines()[-1]
