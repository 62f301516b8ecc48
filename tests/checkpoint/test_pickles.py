import argparse
import io
import os
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import foreign
import numpy as np
import pytest
import torch

from speechssl.checkpoint.foreign import Names
from speechssl.checkpoint.pickles import Placeholder, plain_settings, read_pickle, read_tensors
from speechssl.checkpoint.reader import load_encoder, read_model
from speechssl.errors import CheckpointError, SpeechSSLError

Strange = Any


class Calls:
    """An object whose pickle calls a function when it is read."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> Any:
        return self.reduced


def save(contents: Any, path: Path, *, is_zip: bool = True) -> Path:
    torch.save(contents, path, _use_new_zipfile_serialization=is_zip)
    return path


def save_by_hand(opcodes: bytes, path: Path) -> Path:
    """An archive with a pickle of one's own."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("model/data.pkl", opcodes)
        archive.writestr("model/version", "3\n")
    return path


def one_line(error: BaseException) -> str:
    assert "\n" not in str(error)
    assert len(str(error)) < 1000
    return str(error)


@pytest.fixture
def proof(tmp_path: Path) -> Path:
    """A file that appears if a pickle runs anything."""
    return tmp_path / "ran"


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"model": {}, "cfg": x}, lambda x: argparse.Namespace(a=[x])])
def test_functions_are_refused_by_name_and_never_run(tmp_path: Path, proof: Path, is_zip: bool, wrap: Any) -> None:
    code = f"open({str(proof)!r}, 'w')"
    attempts = {
        "posix.system": Calls(os.system, f"touch {proof}"),
        "eval": Calls(eval, code),
        "exec": Calls(exec, code),
        "getattr": Calls(getattr, Calls(__import__, "os"), "system"),
        "__import__": Calls(__import__, "os"),
        "torch.serialization.load": Calls(torch.load, "x"),
        "numpy.load": Calls(np.load, "x"),
        "pickle._loads": Calls(pickle.loads, b"x"),
        "io.open": Calls(open, str(proof), "w"),
        "tests.Strange": type("Strange", (), {"__module__": "tests"})(),
    }
    sys.modules["tests"] = types.ModuleType("tests")
    sys.modules["tests"].Strange = type(attempts["tests.Strange"])  # type: ignore[attr-defined]
    for name, attempt in attempts.items():
        file = save(wrap(attempt), tmp_path / "hostile.pt", is_zip=is_zip)
        with pytest.raises(CheckpointError) as caught:
            read_pickle(file)
        assert str(caught.value).startswith(f"{file}: expected weights and settings, found ")
        assert "which is refused" in one_line(caught.value)
        if name not in ("numpy.load", "pickle._loads", "torch.serialization.load", "getattr"):  # whose names vary
            assert name in str(caught.value)
    assert not proof.exists()
    del sys.modules["tests"]


@pytest.mark.parametrize(
    "opcodes",
    [
        b"\x80\x02cos\nsystem\n(X\x04\x00\x00\x00lstqtR.",
        b"\x80\x02cargparse\nNamespace\n.",  # a class alone, which no file has
        b"\x80\x02cargparse\nNamespace\n)\x81(X\x07\x00\x00\x00originX\x01\x00\x00\x00xd.",
        b"\x80\x02cargparse\nNamespace.__new__\n.",
        b"\x80\x02cargparse\nNamespace\n)\x81}(X\x01\x00\x00\x00aK\x01ub)\x81.",  # calls an object
        b"\x80\x02cargparse\nNamespace\n)\x81X\x01\x00\x00\x00aK\x01s.",  # sets an item of one
        b"\x80\x02cargparse\nNamespace\n)\x81K\x01a.",  # appends to one
        b"\x80\x02h\x05.",  # what was never stored
        b"\x80\x02(((((.",
        b"\x80\x02K",
        b"\x80\x02X\xff\xff\xff\xffabc.",
        b"\x80\x05\x95\x00\x00\x00\x00\x00\x00\x00\x00.",
        b"\x80\x02R.",
        b"",
    ],
)
def test_pickles_by_hand_are_refused_in_a_line(tmp_path: Path, opcodes: bytes) -> None:
    file = save_by_hand(opcodes, tmp_path / "model.pt")
    with pytest.raises(CheckpointError) as caught:
        read_model(file)
    assert one_line(caught.value).startswith(f"{file}: expected ")
    assert "documentation" not in str(caught.value)


def test_states_are_stored_and_change_nothing(tmp_path: Path) -> None:
    """A state that a class would have used to change itself, and one that is no dictionary."""
    state = {"__class__": 1, "__setstate__": 2, "origin": "os.system", "arguments": [1], "a": 3}
    namespace = argparse.Namespace()
    namespace.__dict__.update(state)
    found = read_pickle(save({"args": namespace}, tmp_path / "model.pt"))["args"]
    assert isinstance(found, Placeholder)
    assert (found.origin, found.arguments, found.state) == ("argparse.Namespace", (), state)
    assert type(found).origin == "argparse.Namespace"
    assert plain_settings(found, tmp_path) == state
    opcodes = b"\x80\x02}X\x04\x00\x00\x00argscargparse\nNamespace\n)\x81(K\x01K\x02tbs."
    strange = read_pickle(save_by_hand(opcodes, tmp_path / "strange.pt"))["args"]
    assert strange.state == (1, 2)
    assert plain_settings(strange, tmp_path) == {}


def test_what_training_programs_leave_behind_is_harmless(tmp_path: Path) -> None:
    counts = defaultdict(int, {"a": 1})
    extra = {"best": np.float64(0.5), "counts": counts, "path": Path("/etc/passwd"), "args": argparse.Namespace(x=1)}
    for is_zip in (True, False):
        found = read_pickle(save({"extra_state": extra}, tmp_path / "model.pt", is_zip=is_zip))["extra_state"]
        assert found["counts"] == {"a": 1}
        assert plain_settings(found, tmp_path) == {
            "best": None, "counts": {"a": 1}, "path": None, "args": {"x": 1}
        }  # fmt: skip


def test_settings_that_are_circles_or_grow_without_end(tmp_path: Path) -> None:
    circle: dict[str, Any] = {}
    circle["again"] = circle
    laughs: Any = ["ha"]
    for _ in range(30):
        laughs = [laughs] * 10
    for settings in (circle, laughs):
        read = read_pickle(save(settings, tmp_path / "model.pt"))
        with pytest.raises(CheckpointError, match=r"expected settings, found more than 200000 values or a circle$"):
            plain_settings(read, tmp_path / "model.pt")


@pytest.mark.parametrize("is_zip", [True, False])
def test_cut_off_files(tmp_path: Path, is_zip: bool) -> None:
    file = save({"model": {"a": torch.randn(1000)}, "args": argparse.Namespace(x=1)}, tmp_path / "a.pt", is_zip=is_zip)
    whole = file.read_bytes()
    for length in (0, 1, 3, 20, 100, len(whole) // 2, len(whole) - 200, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(CheckpointError) as caught:
            read_model(file)
        assert one_line(caught.value).startswith(f"{file}: ")


def test_compressed_and_oversized_archives(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.pt"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data.pkl", b"\x80\x02" + b"K\x01" * 10_000_000)
    assert bomb.stat().st_size < 100_000
    with pytest.raises(CheckpointError, match=r"expected uncompressed weights, found model/data\.pkl compressed$"):
        read_pickle(bomb)
    file = save({"model": {"a": torch.zeros(10)}}, tmp_path / "large.pt")
    content = bytearray(file.read_bytes())
    start = content.index(b"PK\x01\x02")  # the directory: its first entry's sizes
    content[start + 20 : start + 28] = struct.pack("<II", 2**31, 2**31)
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"found entries larger than the file$"):
        read_pickle(file)


def legacy(tensor_opcodes: bytes) -> bytes:
    """A file of the older format whose weights are described by hand; their numbers are missing."""
    buffer = io.BytesIO()
    for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
        pickle.dump(value, buffer, 2)
    buffer.write(tensor_opcodes)
    pickle.dump([], buffer, 2)
    return buffer.getvalue()


def test_weights_that_claim_more_than_the_file_has(tmp_path: Path) -> None:
    """Views that repeat a number, and storages of the older format that nothing fills."""
    file = save({"a": torch.zeros(1).expand(2**20, 2**20)}, tmp_path / "view.pt")
    with pytest.raises(CheckpointError, match=r"a: expected a number for each element, found \(1048576, 1048576\)"):
        read_tensors(read_pickle(file), Names({}), file)
    buffer = io.BytesIO()

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            if isinstance(value, torch.storage.TypedStorage):
                return ("storage", torch.FloatStorage, "0", "cpu", 2**20, None)
            return None

    Pickler(buffer, 2).dump({"a": torch.zeros(2**20)})
    file = tmp_path / "unfilled.pt"
    file.write_bytes(legacy(buffer.getvalue()))
    with pytest.raises(CheckpointError, match=r"found weights larger than the file$"):
        read_tensors(read_pickle(file), Names({}), file)


@pytest.mark.parametrize(
    ("weights", "found"),
    [
        ({"a": torch.zeros(2, device="meta")}, "on meta"),
        ({"a": torch.eye(2).to_sparse()}, "sparse"),
        ({"a": torch.zeros(2, dtype=torch.int64)}, "int64"),
        ({"a": torch.zeros(2, dtype=torch.complex64)}, "complex64"),
        ({"a": [1, 2]}, "'a': list"),
        ({3: torch.zeros(2)}, "3: Tensor"),
        ({"a": argparse.Namespace()}, "'a': argparse.Namespace"),
        ([torch.zeros(2)], "found list"),
    ],
)
def test_only_named_dense_numbers_are_weights(tmp_path: Path, weights: Any, found: str) -> None:
    file = save(weights, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=found):
        read_tensors(read_pickle(file), Names({}), file)


def test_attributes_that_stand_before_methods(tmp_path: Path) -> None:
    """The restricted unpickler lets a pickle set attributes of dictionaries and of parameters."""
    methods = dict.fromkeys(("items", "get", "keys", "values", "numel", "detach", "float"), argparse.Namespace)

    class Attributed:
        def __init__(self, **values: Any) -> None:
            self.values = values

        def __reduce__(self) -> Any:
            return OrderedDict, (), methods, None, iter(self.values.items())

    file = save(Attributed(model=Attributed(a=torch.zeros(2)), args=Attributed(normalize=True)), tmp_path / "model.pt")
    found = read_pickle(file)
    assert list(read_tensors(found["model"], Names({}), file)) == ["a"]
    assert plain_settings({"deep": found["args"]}, file) == {"deep": {"normalize": True}}
    with pytest.raises(CheckpointError):
        read_model(file)
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.__dict__.update(methods)
    file = save({"a": parameter}, tmp_path / "parameter.pt")
    with pytest.raises(CheckpointError, match=r"'a': Parameter$"):
        read_tensors(read_pickle(file), Names({}), file)


def damaged(content: bytes, generator: np.random.Generator) -> bytes:
    """A file with some bytes changed, missing or moved."""
    changed = bytearray(content)
    for _ in range(int(generator.integers(1, 4))):
        place, length = (int(value) for value in generator.integers(0, (len(changed), 30)))
        match generator.integers(4):
            case 0:
                changed[place] = int(generator.integers(256))
            case 1:
                del changed[place : place + length]
            case 2:
                changed[place:place] = changed[place : place + length]
            case 3:
                changed[place : place + 1] = b"R)\x81.(tbs"[length % 9 : length % 9 + 1]
    return bytes(changed)


@pytest.mark.parametrize("is_zip", [True, False])
def test_damaged_files_are_an_error_of_one_line_or_as_they_were(tmp_path: Path, is_zip: bool) -> None:
    peer = foreign.make_peer()
    contents = {
        "args": argparse.Namespace(**foreign.fairseq_settings()),
        "model": foreign.fairseq_names(peer, "default"),
        "optimizer_history": [{"num_updates": 3}],
    }
    file = save(contents, tmp_path / "model.pt", is_zip=is_zip)
    whole = file.read_bytes()
    # The pickle, which is what there is to confuse: the numbers are most of the file.
    start, stop = (whole.index(mark) for mark in (b"optimizer_history", b"model"))
    start, stop = min(start, stop) - 4000, max(start, stop) + 4000
    generator = np.random.default_rng(0)
    messages = []
    for _ in range(150):
        middle = damaged(whole[max(start, 0) : stop], generator)
        file.write_bytes(whole[: max(start, 0)] + middle + whole[stop:])
        try:
            load_encoder(file, "cpu")
        except CheckpointError as error:
            messages.append(one_line(error))
    assert all(message.startswith(str(file)) for message in messages)
    assert len(messages) > 20


def test_names_that_are_paths_or_commands_stay_names(tmp_path: Path) -> None:
    """Entries of the archive, weights and their messages: nothing is written, and a message stays one line."""
    before = sorted(tmp_path.rglob("*"))
    names = ["../../../tmp/evil", "/etc/passwd", "a\nb\x1b[31m", "x" * 10_000]
    file = save({"model": {name: torch.zeros(1) for name in names}, "args": argparse.Namespace()}, tmp_path / "a.pt")
    with pytest.raises(SpeechSSLError) as caught:
        read_model(file)
    assert "\x1b" not in one_line(caught.value)
    with zipfile.ZipFile(tmp_path / "b.pt", "w") as archive:
        archive.writestr("../../evil", "x")
    with pytest.raises(CheckpointError):
        read_model(tmp_path / "b.pt")
    assert sorted(tmp_path.rglob("*")) == [*before, file, tmp_path / "b.pt"]


def test_files_of_another_kind(tmp_path: Path) -> None:
    for content in (b"RIFF0000WAVE", b'{"a": 1}', b"\x00" * 1000, b"PK\x03\x04", b"ustar"):
        (tmp_path / "model.pt").write_bytes(content)
        found = ": .+" if content.startswith(b"PK") else ", found another kind of file$"
        with pytest.raises(CheckpointError, match=rf"model\.pt: expected a complete PyTorch file{found}"):
            read_model(tmp_path / "model.pt")
