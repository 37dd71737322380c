"""Checks of single fields that the parts of a point share."""

from collections.abc import Mapping
from typing import Any

from .errors import SimulationError


def table(given: Any, place: str, allowed: tuple[str, ...] | None = None) -> dict[str, Any]:
    """A table with no other fields than the allowed ones (None: any)."""
    if not isinstance(given, Mapping):
        raise SimulationError(f"{place}={given!r} must be a table")
    for name in given:
        if allowed is not None and name not in allowed:
            raise SimulationError(f"{place}.{name} is unknown; it may hold {', '.join(allowed)}")
    return dict(given)


def whole(value: Any, place: str, *, least: int = 1) -> int:
    """A whole number, not below `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise SimulationError(f"{place}={value!r} must be a whole number from {least} on")
    return value
