"""Spans of what one worker did, on its own monotonic clock; merged into one Timeline after the run."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ..traces.timeline import Span, SpanKind, Timeline


def now_ns() -> int:
    """The clock of all spans: monotonic, one for all processes of a machine."""
    return time.perf_counter_ns()


@dataclass(slots=True)
class Recorder:
    """Collects one worker's spans; cheap enough to be always on (one tuple each)."""

    stage: int
    replica: int = 0
    clock_offset_ns: int = 0
    """What to add to this worker's clock to get that of worker 0 (clock.py)."""
    rows: list[tuple[SpanKind, str, int, int, int, int]] = field(default_factory=list)

    def add(
        self, kind: SpanKind, action: str, *, microbatch: int, start_ns: int, end_ns: int, num_bytes: int = 0
    ) -> None:
        """Note a span on the local clock."""
        self.rows.append((kind, action, microbatch, start_ns, end_ns, num_bytes))

    def spans(self, *, origin_ns: int) -> tuple[Span, ...]:
        """The spans on worker 0's clock, in milliseconds after `origin_ns` of it."""
        shift = self.clock_offset_ns - origin_ns
        return tuple(
            Span(
                replica=self.replica,
                stage=self.stage,
                kind=kind,
                action=action,
                microbatch=microbatch,
                start_ms=(start_ns + shift) / 1e6,
                end_ms=(end_ns + shift) / 1e6,
                bytes=num_bytes,
            )
            for kind, action, microbatch, start_ns, end_ns, num_bytes in self.rows
        )


def measured_timeline(
    spans: Iterable[Sequence[Span]], *, machine: str, num_stages: int, num_replicas: int = 1
) -> Timeline:
    """One Timeline of all workers' spans."""
    return Timeline.from_spans(
        (span for worker in spans for span in worker),
        source="measured",
        origin=machine,
        num_stages=num_stages,
        num_replicas=num_replicas,
    )
