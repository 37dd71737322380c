"""The profile of a point: by name or file, perhaps with fields set anew."""

from collections.abc import Mapping
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

from ..traces.costs import CostProfile
from ..traces.profile_file import check_profile
from ..traces.profiles import load_profile
from .errors import SimulationError


def point_profile(given: Any, *, folder: Path) -> CostProfile:
    """A profile; changed fields are checked like those of a file. Raises TraceError or SimulationError."""
    fields = dict(given) if isinstance(given, Mapping) else {"name": given}
    name = str(fields.pop("name", ""))
    profile = load_profile(name, folder=folder)
    for field, held in fields.items():
        profile = _with(profile, field, held, place=f"profile.{field}")
    check_profile(profile)
    return profile


def _with(holder: Any, field: str, held: Any, *, place: str) -> Any:
    if isinstance(holder, Mapping):
        if field not in holder:
            raise SimulationError(f"{place} is unknown; the profile has {sorted(holder)}")
        changed = holder[field]
        for name, value in held.items():
            changed = _with(changed, name, value, place=f"{place}.{name}")
        return {**holder, field: changed}
    if not is_dataclass(holder) or field not in holder.__dataclass_fields__:
        raise SimulationError(f"{place} is no field of a profile")
    if isinstance(held, Mapping):
        changed = getattr(holder, field)
        for name, value in held.items():
            changed = _with(changed, name, value, place=f"{place}.{name}")
        held = changed
    return replace(holder, **{field: held})  # type: ignore[type-var]
