import ctypes
import subprocess
import sys

import pytest
import torch

from speechssl import cpu
from speechssl.cpu import tune_cpu

HAS_GLIBC = sys.platform.startswith("linux") and hasattr(ctypes.CDLL(None), "mallinfo2")
COUNT_MAPPED_BLOCKS = """
import ctypes
from speechssl.cpu import tune_cpu

class MallInfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd a b c d e".split()]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = MallInfo
libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p

def mapped_by_a_large_block():
    before = libc.mallinfo2().hblks
    libc.malloc(64 * 2**20)
    return libc.mallinfo2().hblks - before

print(mapped_by_a_large_block())
tune_cpu()
print(mapped_by_a_large_block())
"""


def test_changes_no_result_and_may_be_called_again() -> None:
    def compute() -> torch.Tensor:
        torch.manual_seed(0)
        return (torch.randn(300, 400) @ torch.randn(400, 500)).softmax(dim=1)

    expected = compute()
    tune_cpu()
    assert torch.equal(compute(), expected)
    tune_cpu()
    assert torch.equal(compute(), expected)


@pytest.mark.skipif(not HAS_GLIBC, reason="needs a glibc that counts its mapped blocks")
def test_large_blocks_are_no_longer_mapped() -> None:
    result = subprocess.run([sys.executable, "-c", COUNT_MAPPED_BLOCKS], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["1", "0"]


@pytest.mark.parametrize(("platform", "opened"), [("linux", [None]), ("darwin", []), ("win32", [])])
def test_without_glibc_nothing_is_called(platform: str, opened: list[None], monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[str | None] = []
    monkeypatch.setattr(cpu.sys, "platform", platform)
    monkeypatch.setattr(cpu.ctypes, "CDLL", found.append)  # returns None, which has no mallopt
    tune_cpu()
    assert found == opened
