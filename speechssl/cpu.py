"""The process's settings for training and inference on a CPU."""

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # from glibc's malloc.h


def tune_cpu() -> None:
    """Set up this process for tensors on a CPU; called by commands and loader workers, never by ``import speechssl``.

    * Freed memory stays in the process instead of each large tensor going back to the kernel: by default glibc maps
      and unmaps every large block, and zeroing the pages anew costs about half of a training step. Without glibc,
      nothing happens.
    * Threads that wait for each other spin for some microseconds only, then sleep: where a core is shared with any
      other process, spinning for as long as GNU OpenMP does by default makes a step several times slower. What the
      environment already says wins. Without effect once torch is imported.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
