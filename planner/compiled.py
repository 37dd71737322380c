"""Loops that numba compiles where it is installed, and that run as plain Python where it is not."""

from typing import Any


def compiled(function: Any) -> Any:
    """The function compiled by numba (an optional extra), or the function itself where numba is absent."""
    try:
        from numba import njit
    except ImportError:
        return function
    return njit(cache=True)(function)
