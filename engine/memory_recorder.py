"""A Recorder that also notes what the GPU's allocator holds when an action begins and ends, and its peak between."""

from dataclasses import dataclass, field

import torch

from ..traces.timeline import SpanKind
from .recorder import Left, Mark, Recorder


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Bytes that tensors occupied."""

    before: int
    after: int
    peak: int

    def kept(self) -> int:
        """What the action left behind, less what it freed."""
        return self.after - self.before

    def passing(self) -> int:
        """What it held at its worst beyond what was there before or is there behind it."""
        return max(0, self.peak - max(self.before, self.after))


@dataclass(slots=True)
class MemoryRecorder(Recorder):
    """`held` has one entry an action, in order; nothing where the device is a CPU, whose memory nobody counts."""

    held: list[Held] = field(default_factory=list)
    _marks: list[tuple[int, int]] = field(default_factory=list)
    """(bytes held, peak since the mark before) at every mark since the last action."""

    def mark(self) -> Mark:
        if self.device.type == "cuda":
            # The allocator's books are the host's: they are right at once, however far behind the GPU is.
            self._marks.append((torch.cuda.memory_allocated(self.device), torch.cuda.max_memory_allocated(self.device)))
            torch.cuda.reset_peak_memory_stats(self.device)
        # Not super(): with slots, dataclass makes a second class, which the bare form does not know.
        return Recorder.mark(self)

    def add(
        self, kind: SpanKind, action: str, *, microbatch: int, start: Mark, end: Mark | Left, num_bytes: int = 0
    ) -> None:
        if kind == "compute" and self.device.type == "cuda":
            (before, _), (after, peak) = self._marks[-2:]
            self.held.append(Held(before=before, after=after, peak=peak))
            self._marks.clear()
        Recorder.add(self, kind, action, microbatch=microbatch, start=start, end=end, num_bytes=num_bytes)
