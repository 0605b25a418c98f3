"""Gives memory that is free inside the process back to the system.

The C library keeps what was freed for the next time. After something large that is
not needed for a while (the index behind a page) the host should have it instead.
"""

from __future__ import annotations

import ctypes
import gc


def give_back() -> None:
    """May take some tens of milliseconds, half of them without the interpreter's lock.
    The C library has its part where it is glibc (musl has no such call)."""
    gc.collect()  # also lets go of what the interpreter keeps for its next objects
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
