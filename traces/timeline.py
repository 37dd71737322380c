"""Timeline: what ran when, on which stage. The simulator and the engine write it, analysis reads it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from typing import Literal

import pandas as pd

from .errors import TraceError

Source = Literal["simulated", "measured"]
SpanKind = Literal["compute", "transfer", "wait"]


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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Timeline:
    """Spans of a whole run in columns (those of Span), ordered by replica, stage and start."""

    source: Source
    origin: str
    """The cost profile's name for a simulated timeline, the machine for a measured one."""
    num_stages: int
    num_replicas: int = 1
    frame: pd.DataFrame
    counters: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=["replica", "stage", "ms", "bytes"]))
    """Memory over time: at `ms`, `stage` of `replica` starts to hold `bytes`. Empty when not tracked."""

    @classmethod
    def from_spans(
        cls, spans: Iterable[Span], *, source: Source, origin: str, num_stages: int, num_replicas: int = 1
    ) -> "Timeline":
        """A Timeline of these spans, in canonical order."""
        rows = [tuple(getattr(span, name) for name in _COLUMNS) for span in spans]
        return cls.from_frame(
            pd.DataFrame.from_records(rows, columns=list(_COLUMNS)),
            source=source,
            origin=origin,
            num_stages=num_stages,
            num_replicas=num_replicas,
        )

    @classmethod
    def from_frame(
        cls, frame: pd.DataFrame, *, source: Source, origin: str, num_stages: int, num_replicas: int = 1
    ) -> "Timeline":
        """A Timeline from a DataFrame with Span's columns. Raises TraceError naming a missing column."""
        missing = [name for name in _COLUMNS if name not in frame.columns]
        if missing:
            raise TraceError(f"timeline columns {missing} are missing; it needs {list(_COLUMNS)}")
        ordered = frame.sort_values(["replica", "stage", "start_ms", "end_ms"], kind="stable", ignore_index=True)
        return cls(
            source=source,
            origin=origin,
            num_stages=num_stages,
            num_replicas=num_replicas,
            frame=ordered[list(_COLUMNS)],
        )

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
