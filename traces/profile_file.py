"""The file of a CostProfile: versioned JSON with the field names of costs.py; what holds its default may be left out.

```
{"format": "loraplex-profile", "version": 2, "name": "...", "origin": "measured", "source": "...", "num_layers": 32,
 "forward": {"linears": {"fused": {"fixed_ms": 0.1, "per_token_ms": 0.0005}}, "attention": {...}}, "backward": {...}}
```
`"graphs": {"max_tokens": 1536, "forward_floor_ms": 0.3, ...}` says up to how many tokens microbatches were replayed as
CUDA graphs, and the least that passes of them take; without it none were. No number may be negative or infinite; no
limit (bandwidth, memory) is said by leaving it out.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from .costs import CostProfile, GraphCosts
from .errors import TraceError
from .files import read_json, write_atomically

FORMAT = "loraplex-profile"
VERSION = 2
READABLE = (1, 2)
"""Version 1 knew fewer terms; what it leaves out holds its default."""


def save_profile(profile: CostProfile, path: Path | str) -> None:
    """Write a profile, checked; every number comes back bit for bit."""
    check_profile(profile, where=str(path))
    content = {"format": FORMAT, "version": VERSION, **_encode(profile)}
    write_atomically(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def load_profile_file(path: Path | str) -> CostProfile:
    """Read what `save_profile` wrote. Raises TraceError naming the file, the field and its value."""
    content = read_json(path, what="profile", writer="`loraplex profile`")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise TraceError(f"{path}: is no cost profile (it lacks format={FORMAT!r}); write it with `loraplex profile`")
    if content.get("version") not in READABLE:
        known = " and ".join(map(str, READABLE))
        raise TraceError(f"{path}: version={content.get('version')!r} is unknown; this loraplex reads {known}")
    content = {name: value for name, value in content.items() if name not in ("format", "version")}
    profile: CostProfile = _decode(CostProfile, content, str(path))
    check_profile(profile, where=str(path))
    return profile


def check_profile(profile: CostProfile, *, where: str = "profile") -> None:
    """Raise TraceError at the first value that breaks a rule, naming field and value."""
    _check_numbers(profile, where)
    if profile.num_layers < 1:
        raise TraceError(f"{where}: num_layers={profile.num_layers} must be at least 1")
    if profile.weight_share > 1:
        raise TraceError(
            f"{where}: weight_share={profile.weight_share} is a part of the backward; it must not exceed 1"
        )
    floors = replace(profile.graphs, max_tokens=0)
    if floors != GraphCosts() and not profile.graphs.max_tokens:
        raise TraceError(
            f"{where}: graphs.max_tokens=0 says that no microbatch is replayed, and yet there are floors of such ones; "
            "give the tokens of the largest, or leave graphs out"
        )
    kinds = sorted(profile.forward.linears)
    if not kinds or kinds != sorted(profile.backward.linears):
        raise TraceError(
            f"{where}: forward.linears has {kinds}, backward.linears {sorted(profile.backward.linears)}; both need the "
            "same kernels, at least one"
        )
    for name in ("name", "source"):
        if not getattr(profile, name).strip():
            raise TraceError(f"{where}: {name} is empty; say where the numbers come from")


def _check_numbers(value: Any, where: str) -> None:
    for entry in fields(value):
        held, place = getattr(value, entry.name), f"{where}: {entry.name}"
        if is_dataclass(held):
            _check_numbers(held, place)
        elif isinstance(held, Mapping):
            for key, terms in held.items():
                _check_numbers(terms, f"{place}.{key}")
        elif isinstance(held, int | float) and not isinstance(held, bool):
            unlimited = entry.default == math.inf and held == math.inf
            if not (unlimited or (math.isfinite(held) and held >= 0)):
                raise TraceError(f"{place}={held} must be a finite number, not below 0")


def _encode(value: Any) -> dict[str, Any]:
    content = {}
    for entry in fields(value):
        held = getattr(value, entry.name)
        default = entry.default if entry.default_factory is MISSING else entry.default_factory()
        if held == default:
            continue
        if is_dataclass(held):
            content[entry.name] = _encode(held)
        elif isinstance(held, Mapping):
            content[entry.name] = {key: _encode(terms) for key, terms in sorted(held.items())}
        else:
            content[entry.name] = held
    return content


def _decode(kind: Any, value: Any, where: str) -> Any:
    if is_dataclass(kind) and isinstance(kind, type):
        return _decode_fields(kind, value, where)
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise TraceError(f"{where}={value!r} is unknown; it must be one of {list(get_args(kind))}")
        return value
    if get_origin(kind) is UnionType:
        return None if value is None else _decode(get_args(kind)[0], value, where)
    if get_origin(kind) is not None:
        if not isinstance(value, dict):
            raise TraceError(f"{where}={value!r} must be a table")
        keys, held = get_args(kind)
        return {_decode(keys, key, where): _decode(held, terms, f"{where}.{key}") for key, terms in value.items()}
    allowed = (int, float) if kind is float else (kind,)
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
        raise TraceError(f"{where}={value!r} must be of type {kind.__name__}")
    return float(value) if kind is float else value


def _decode_fields(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise TraceError(f"{where}={value!r} must be a table")
    hints = get_type_hints(kind)
    separator = ": " if kind is CostProfile else "."
    unknown = sorted(set(value) - set(hints))
    if unknown:
        raise TraceError(f"{where}{separator}{unknown[0]} is unknown; it may hold {sorted(hints)}")
    for entry in fields(kind):
        if entry.name not in value and entry.default is MISSING and entry.default_factory is MISSING:
            raise TraceError(f"{where}{separator}{entry.name} is missing; give it")
    return kind(**{name: _decode(hints[name], held, f"{where}{separator}{name}") for name, held in value.items()})
