"""The file of a Timeline: versioned JSON, one array a column, words by number, so that 100,000 spans take a few MB.

```
{"format": "loraplex-timeline", "version": 1, "source": "simulated", "origin": "...", "num_stages": 2,
 "num_replicas": 1,
 "spans": {"stage": [0, 0], "kind": {"words": ["compute"], "codes": [0, 0]}, "action": ["0F0", "0F1"], ...},
 "counters": {"replica": [0], "stage": [0], "ms": [0.0], "bytes": [1024]}}
```
A column that holds its default everywhere (replica 0, bytes 0, no cause) is left out.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from .errors import TraceError
from .files import read_json, write_atomically
from .timeline import COUNTER_COLUMNS, Timeline, no_counters

_WRITERS = "loraplex train or loraplex simulate"
FORMAT = "loraplex-timeline"
VERSION = 1
_DEFAULTS: Mapping[str, int | str] = {"replica": 0, "bytes": 0, "microbatch": -1, "cause": "", "kind": "compute"}
_INTEGERS = ("replica", "stage", "microbatch", "bytes")
_WORDS = ("kind", "cause")
_TEXTS = ("action",)
_FLOATS = ("start_ms", "end_ms", "ms")


def save_timeline(timeline: Timeline, path: Path | str) -> None:
    """Write a Timeline; every number comes back bit for bit."""
    spans = {
        name: _encode(name, timeline.frame[name])
        for name in timeline.frame.columns
        if name not in _DEFAULTS or not (timeline.frame[name] == _DEFAULTS[name]).all()
    }
    content: dict[str, object] = {
        "format": FORMAT,
        "version": VERSION,
        "source": timeline.source,
        "origin": timeline.origin,
        "num_stages": timeline.num_stages,
        "num_replicas": timeline.num_replicas,
        "spans": spans,
    }
    if len(timeline.counters):
        content["counters"] = {name: _encode(name, timeline.counters[name]) for name in COUNTER_COLUMNS}
    write_atomically(path, json.dumps(content, separators=(",", ":"), allow_nan=False) + "\n")


def load_timeline(path: Path | str) -> Timeline:
    """Read what `save_timeline` wrote. Raises TraceError naming the file and the first value that breaks a rule."""
    content = read_json(path, what="timeline", writer=_WRITERS)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise TraceError(f"{path}: is no timeline (its 'format' must be '{FORMAT}'); write it with {_WRITERS}")
    if content.get("version") != VERSION:
        raise TraceError(f"{path}: version {content.get('version')!r} cannot be read, only {VERSION}; make it anew")
    try:
        return _decode(content).check()
    except TraceError as error:
        raise TraceError(f"{path}: {error}") from error


def _decode(content: dict[str, object]) -> Timeline:
    source, origin = content.get("source"), content.get("origin")
    if source != "simulated" and source != "measured":
        raise TraceError(f"source={source!r} must be 'simulated' or 'measured'")
    if not isinstance(origin, str):
        raise TraceError(f"origin={origin!r} must be a text")
    spans = _decode_table("spans", content.get("spans"), ("stage", "action", "start_ms", "end_ms"), _DEFAULTS)
    counters = content.get("counters")
    return Timeline.from_frame(
        spans,
        source=source,
        origin=origin,
        num_stages=_count(content, "num_stages"),
        num_replicas=_count(content, "num_replicas"),
        counters=no_counters() if counters is None else _decode_table("counters", counters, COUNTER_COLUMNS, {}),
    )


def _count(content: dict[str, object], name: str) -> int:
    value = content.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise TraceError(f"{name}={value!r} must be a whole number of at least 1")
    return value


def _encode(name: str, column: pd.Series) -> object:
    if name in _WORDS:
        codes, words = pd.factorize(column)
        return {"words": [str(word) for word in words], "codes": codes.tolist()}
    if name in _TEXTS:
        return [str(word) for word in column.tolist()]
    return column.astype(np.float64 if name in _FLOATS else np.int64).tolist()


def _decode_table(
    table: str, content: object, required: tuple[str, ...], defaults: Mapping[str, int | str]
) -> pd.DataFrame:
    if not isinstance(content, dict):
        raise TraceError(f"'{table}' must be an object of columns")
    missing = [name for name in required if name not in content]
    if missing:
        raise TraceError(f"'{table}' lacks the columns {missing}")
    unknown = [name for name in content if name not in required and name not in defaults]
    if unknown:
        raise TraceError(f"'{table}' has unknown columns {unknown}; it may hold {[*required, *defaults]}")
    columns = {name: _decode_column(table, name, value) for name, value in content.items()}
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise TraceError(f"the columns of '{table}' must have one length, not {lengths}")
    index = pd.RangeIndex(next(iter(lengths.values())))
    left_out = {name: value for name, value in defaults.items() if name not in columns}
    return pd.DataFrame({**columns, **{name: pd.Series(value, index=index) for name, value in left_out.items()}})


def _decode_column(table: str, name: str, value: object) -> pd.Series:
    if name in _WORDS:
        words, codes = (value.get("words"), value.get("codes")) if isinstance(value, dict) else (None, None)
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise TraceError(f"'{table}' column '{name}' must hold 'words', a list of texts, and 'codes'")
        numbers = _numbers(table, name, codes, (int,), np.int64)
        if not numbers.between(0, len(words) - 1).all():
            raise TraceError(f"'{table}' column '{name}' has codes outside its {len(words)} words")
        return pd.Series([words[code] for code in numbers.tolist()], dtype=str)
    if name in _TEXTS:
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
            raise TraceError(f"'{table}' column '{name}' must be a list of texts")
        return pd.Series(value, dtype=str)
    if name in _INTEGERS:
        return _numbers(table, name, value, (int,), np.int64)
    return _numbers(table, name, value, (int, float), np.float64)


def _numbers(table: str, name: str, value: object, types: tuple[type, ...], dtype: type[np.generic]) -> pd.Series:
    if not isinstance(value, list):
        raise TraceError(f"'{table}' column '{name}' must be a list of numbers")
    kind = "whole number" if types == (int,) else "number"
    for row, entry in enumerate(value):
        if type(entry) not in types:
            raise TraceError(f"'{table}' column '{name}' row {row}: {entry!r} must be a {kind}")
    try:
        return pd.Series(np.array(value, dtype=dtype))
    except OverflowError as error:
        raise TraceError(f"'{table}' column '{name}' holds a {kind} of more than 64 bits") from error
