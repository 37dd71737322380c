"""The raw measurements behind a profile: one row a piece of work and pass, as a table and as the file beside a profile.

A row is a microbatch (`condition`) run through a `piece` of the model:

- `stage`: so many `layers` with adapters, under a way of recomputing; `first` and `last`: the same with the embedding,
  with head and loss; `frozen`: without adapters;
- `steady`: `stage` again, in the midst of seconds of work without a rest;
- of one layer: `attention`, and its linears as `linears-frozen` and `linears-eager`;
- `step`: one adapter's optimizer step over so many layers.

`ms` is the median of `rounds` measurements, half of which lay between `low_ms` and `high_ms`; 0 and NaN where nobody
wrote them down. `closes` counts the adapters whose global batch ends with the backward, which then sets their gradients
aside; `replayed` says that the stage's layers were replayed as CUDA graphs; a table without these columns has neither.
`kept_bytes` is what the forward left for its backward, `passing_bytes` the most that the pass held beside that; NaN
where no device counts them.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .errors import TraceError
from .files import write_atomically
from .fit import CostPoints, Float
from .graph_tokens import filled_tokens

COLUMNS: Mapping[str, str] = {
    "piece": "str",
    "pass": "str",
    "recompute": "str",
    "layers": "int64",
    "condition": "int64",
    "tokens": "int64",
    "squares": "int64",
    "targets": "int64",
    "adapters": "int64",
    "dropped": "int64",
    "closes": "int64",
    "replayed": "bool",
    "ms": "float64",
    "rounds": "int64",
    "low_ms": "float64",
    "high_ms": "float64",
    "kept_bytes": "float64",
    "passing_bytes": "float64",
}
_LATER: Mapping[str, object] = {"closes": 0, "replayed": False, "rounds": 0, "low_ms": np.nan, "high_ms": np.nan}
"""Columns that older tables lack, and what they hold where nobody wrote them down."""
PIECES = ("stage", "first", "last", "steady", "frozen", "attention", "linears-frozen", "linears-eager", "step")
WHOLE = ("stage", "first", "last")
"""Pieces that are a stage as it runs in training."""
PASSES = ("forward", "backward", "step")


def points_table(rows: Sequence[Mapping[Any, object]]) -> pd.DataFrame:
    """A table of these rows; what a row leaves out is NaN. Raises TraceError for a piece or pass that is unknown."""
    table = pd.DataFrame([{**_LATER, **row} for row in rows], columns=list(COLUMNS)).astype(dict(COLUMNS))
    for column, known in (("piece", PIECES), ("pass", PASSES)):
        unknown = sorted(set(table[column]) - set(known))
        if unknown:
            raise TraceError(f"{column}={unknown[0]!r} is unknown; it must be one of {', '.join(known)}")
    return table


def cost_points(rows: pd.DataFrame) -> CostPoints:
    """What was measured of these rows, for fitting, by the tokens that were computed; with the work that the GPU had
    left where a column tells it."""
    names = ("squares", "adapters", "dropped", "closes", "replayed", "ms", "ahead_ms")
    return CostPoints.of(
        tokens=filled_tokens(rows["tokens"], replayed=rows["replayed"]),
        **{name: rows[name].to_numpy() for name in names if name in rows},
    )


def layers_of(rows: pd.DataFrame) -> Float:
    """How many layers each row is of."""
    return rows["layers"].to_numpy(dtype=np.float64)


def points_path(profile: Path) -> Path:
    """The file of raw points beside a profile's."""
    return profile.with_suffix(".points.csv")


def save_points(table: pd.DataFrame, path: Path, *, source: str) -> None:
    """Write the points as CSV; `source` (device, versions, date, command) stands above them in a comment."""
    text = io.StringIO()
    table.to_csv(text, index=False, float_format="%.6g")
    write_atomically(path, f"# {' '.join(source.split())}\n{text.getvalue()}")


def load_points(path: Path) -> pd.DataFrame:
    """Read what `save_points` wrote. Raises TraceError naming the file."""
    try:
        table = pd.read_csv(path, comment="#")
    except (OSError, ValueError) as error:
        raise TraceError(
            f"{path}: cannot be read as a table of points ({error}); write it with loraplex profile"
        ) from None
    missing = [column for column in COLUMNS if column not in table and column not in _LATER]
    if missing:
        raise TraceError(f"{path}: lacks the column {missing[0]}; write it with loraplex profile")
    return points_table(table.to_dict(orient="records"))
