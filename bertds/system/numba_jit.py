"""Compiles loops with numba, without the quarter of a second that its search for BLAS takes.

Before its first loop numba imports ``scipy.linalg`` for products of matrices, which no loop here
uses. The import takes 0.30 of the 0.62 s in which a process loads its loops (CPU time, Intel Xeon).
Every worker of the preparation and every rank of a run would pay for it.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import sys
from typing import Any

import numba

_BLAS = "scipy.linalg"


def _load_without_blas() -> None:
    """Load numba's array functions while ``scipy.linalg`` appears to be missing."""
    if _BLAS in sys.modules:
        return  # already imported: nothing to save
    modules: dict[str, Any] = sys.modules
    modules[_BLAS] = None  # makes its import raise ImportError, which numba handles
    try:
        import numba.np.arraymath  # noqa: F401
    finally:
        del modules[_BLAS]


_load_without_blas()


def compiled(function=None, **options):
    """Compile a loop on first use, and keep the machine code on disk for later processes.

    The code is stored next to the function's file, or in the user's cache folder if the first is
    read-only. If neither can be written, each process compiles for itself (some seconds).

    Args:
        function: the loop.
        options: options of ``numba.njit``, in addition to ``cache`` and ``nogil``, which are set.
    """
    if function is None:
        return lambda function: compiled(function, **options)
    try:
        return numba.njit(cache=True, nogil=True, **options)(function)
    except RuntimeError:  # "no locator available": numba found no folder to write to
        return numba.njit(nogil=True, **options)(function)
