"""The C allocator's settings for training and inference on a CPU."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # from glibc's malloc.h


def tune_allocator() -> None:
    """Keep freed memory in the process instead of returning each large tensor to the kernel.

    By default glibc maps and unmaps every large block, and zeroing the pages anew costs about half of a training step
    on a CPU. Called by commands and loader workers, never by ``import speechssl``. Does nothing where the C library
    is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
