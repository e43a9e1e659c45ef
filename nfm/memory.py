"""Memory of a process that computes the same again and again."""

import ctypes
from contextlib import suppress

# Of glibc's <malloc.h>.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Has glibc keep freed memory for the next tensors; another C library is left as it is.

    By itself it gives large blocks back to the system, which hands them out anew page by page and zeroed: on a CPU up
    to a fifth of the time of a training update.
    """
    with suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_MMAP_THRESHOLD, 32 * 2**20)  # the most that it takes
