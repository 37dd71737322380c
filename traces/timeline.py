"""Timeline: what ran when, on which stage. The simulator and the engine write it, analysis reads it.

Its file format is in timeline_file.py.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd

from .errors import TraceError

Source = Literal["simulated", "measured"]
SpanKind = Literal["compute", "transfer", "wait"]
SOURCES: tuple[Source, ...] = get_args(Source)
SPAN_KINDS: tuple[SpanKind, ...] = get_args(SpanKind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One stretch of time of one stage. `action` is the Program's word for it, such as `0F3` or `1S2.5`."""

    replica: int = 0
    stage: int
    kind: SpanKind = "compute"
    """compute: the action runs; transfer: its product is under way; wait: the stage idles before it."""
    action: str
    microbatch: int = -1
    start_ms: float
    end_ms: float
    bytes: int = 0
    cause: str = ""
    """Why a stage waited: warmup, cooldown, imbalance, dependency or transfer."""


_COLUMNS = tuple(entry.name for entry in fields(Span))
_DTYPES = dict.fromkeys(("replica", "stage", "microbatch", "bytes"), "int64")
_DTYPES |= dict.fromkeys(("start_ms", "end_ms"), "float64") | dict.fromkeys(("kind", "action", "cause"), "str")
COUNTER_COLUMNS = ("replica", "stage", "ms", "bytes")


def no_counters() -> pd.DataFrame:
    """Counters of a run whose memory was not tracked: typed, without rows."""
    return pd.DataFrame({name: np.empty(0, np.float64 if name == "ms" else np.int64) for name in COUNTER_COLUMNS})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Timeline:
    """Spans of a whole run in columns (those of Span), ordered by replica, stage and start."""

    source: Source
    origin: str
    """The cost profile's name for a simulated timeline, the machine for a measured one."""
    num_stages: int
    num_replicas: int = 1
    frame: pd.DataFrame
    counters: pd.DataFrame = field(default_factory=no_counters)
    """Memory over time: at `ms`, `stage` of `replica` starts to hold `bytes`. Empty when not tracked."""

    @classmethod
    def from_spans(
        cls,
        spans: Iterable[Span],
        *,
        source: Source,
        origin: str,
        num_stages: int,
        num_replicas: int = 1,
        counters: pd.DataFrame | None = None,
    ) -> "Timeline":
        """A Timeline of these spans, in canonical order."""
        rows = [tuple(getattr(span, name) for name in _COLUMNS) for span in spans]
        return cls.from_frame(
            pd.DataFrame.from_records(rows, columns=list(_COLUMNS)).astype(_DTYPES),
            source=source,
            origin=origin,
            num_stages=num_stages,
            num_replicas=num_replicas,
            counters=counters,
        )

    @classmethod
    def from_frame(
        cls,
        frame: pd.DataFrame,
        *,
        source: Source,
        origin: str,
        num_stages: int,
        num_replicas: int = 1,
        counters: pd.DataFrame | None = None,
    ) -> "Timeline":
        """A Timeline from a DataFrame with Span's columns; raises TraceError naming a missing one."""
        memory = no_counters() if counters is None else counters
        for held, needed in ((frame, _COLUMNS), (memory, COUNTER_COLUMNS)):
            missing = [name for name in needed if name not in held.columns]
            if missing:
                raise TraceError(f"timeline columns {missing} are missing; it needs {list(needed)}")
        ordered = frame.sort_values(["replica", "stage", "start_ms", "end_ms"], kind="stable", ignore_index=True)
        return cls(
            source=source,
            origin=origin,
            num_stages=num_stages,
            num_replicas=num_replicas,
            frame=ordered[list(_COLUMNS)],
            counters=memory.sort_values(["replica", "stage", "ms"], kind="stable", ignore_index=True)[
                list(COUNTER_COLUMNS)
            ],
        )

    def save(self, path: Path | str) -> None:
        """Write it as JSON, atomically; every number comes back bit for bit."""
        from .timeline_file import save_timeline

        save_timeline(self, path)

    @classmethod
    def load(cls, path: Path | str) -> "Timeline":
        """Read what `save` wrote. Raises TraceError naming the file and the first value that breaks a rule."""
        from .timeline_file import load_timeline

        return load_timeline(path)

    def check(self) -> "Timeline":
        """Itself, if every value obeys its rule; raises TraceError naming table, row, column and value otherwise."""
        if self.source not in SOURCES:
            raise TraceError(f"source={self.source!r} must be one of {list(SOURCES)}")
        for name in ("num_stages", "num_replicas"):
            if getattr(self, name) < 1:
                raise TraceError(f"{name}={getattr(self, name)} must be at least 1")
        for table, held, times in (("spans", self.frame, ["start_ms", "end_ms"]), ("counters", self.counters, ["ms"])):
            for name, limit in (("replica", self.num_replicas), ("stage", self.num_stages)):
                _require(held[name].between(0, limit - 1), table, held[name], f"must lie between 0 and {limit - 1}")
            _require(held["bytes"] >= 0, table, held["bytes"], "must not be negative")
            for name in times:
                _require(np.isfinite(held[name]), table, held[name], "must be a finite number")
        frame = self.frame
        _require(frame["kind"].isin(SPAN_KINDS), "spans", frame["kind"], f"must be one of {list(SPAN_KINDS)}")
        _require(frame["end_ms"] >= frame["start_ms"], "spans", frame["end_ms"], "must not lie before its start_ms")
        return self

    def spans(self) -> Iterator[Span]:
        """The spans as objects, in canonical order."""
        for row in self.frame.itertuples(index=False, name=None):
            yield Span(**dict(zip(_COLUMNS, row, strict=True)))

    def compute(self) -> pd.DataFrame:
        """Only the rows in which a stage computes."""
        return self.frame[self.frame["kind"] == "compute"]

    def makespan_ms(self) -> float:
        """From the first start to the last end of any compute span."""
        compute = self.compute()
        return float(compute["end_ms"].max() - compute["start_ms"].min()) if len(compute) else 0.0


def _require(good: pd.Series, table: str, column: pd.Series, rule: str) -> None:
    if not good.all():
        row = int(np.argmin(good.to_numpy()))
        raise TraceError(f"{table} row {row}: {column.name}={column.iloc[row]} {rule}")
