"""Time and memory of passes over microbatches, without making the device wait for the host."""

import gc
import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

_AHEAD = 2
"""Microbatches that the host may launch ahead of the device."""
_LEAST_PASSES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What passes over the same microbatches took, the warm-up left out."""

    tokens_per_s: float
    """Of the median pass; padding is not counted."""
    spread: float
    """(fastest - slowest pass) / median."""
    num_microbatches: int
    num_tokens: int


class Laps:
    """Call `lap` behind every microbatch and `turn` behind every pass, which says when `seconds` are measured.

    The first pass over the microbatches is the warm-up: kernels are compiled and loaded in it, and memory is taken.
    """

    def __init__(self, device: torch.device, *, seconds: float) -> None:
        self._device = device
        self._seconds = seconds
        self._marks: list[torch.cuda.Event | float] = [self._mark()]
        self._tokens: list[int] = []
        self._turns: list[int] = []
        self._warm_s = 0.0

    def lap(self, num_tokens: int) -> None:
        """Note that a microbatch of so many tokens has been launched."""
        self._marks.append(self._mark())
        self._tokens.append(num_tokens)
        if len(self._marks) > _AHEAD:
            _wait(self._marks[-1 - _AHEAD])

    def turn(self) -> bool:
        """Note that a pass has been launched. True once enough has been measured."""
        self._turns.append(len(self._tokens))
        if len(self._turns) == 1:
            _wait(self._marks[-1])
            self._warm_s = time.perf_counter()
        return len(self._turns) > _LEAST_PASSES and time.perf_counter() - self._warm_s >= self._seconds

    def measured(self) -> Measured:
        """The figures. Raises ValueError where nothing came behind the warm-up."""
        _wait(self._marks[-1])
        tokens = self._tokens[self._turns[0] :] if self._turns else []
        if not tokens:
            raise ValueError(f"{len(self._tokens)} microbatches are all warm-up: make one pass more over them")
        rates = [
            sum(self._tokens[first:end]) / _seconds_between(self._marks[first], self._marks[end])
            for first, end in itertools.pairwise(self._turns)
        ]
        usual = statistics.median(rates)
        return Measured(
            tokens_per_s=usual,
            spread=(max(rates) - min(rates)) / usual,
            num_microbatches=len(tokens),
            num_tokens=sum(tokens),
        )

    def _mark(self) -> "torch.cuda.Event | float":
        if self._device.type != "cuda":
            return time.perf_counter()
        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event  # type: ignore[no-any-return]


def _wait(mark: "torch.cuda.Event | float") -> None:
    if not isinstance(mark, float):
        mark.synchronize()


def _seconds_between(start: "torch.cuda.Event | float", end: "torch.cuda.Event | float") -> float:
    if isinstance(start, float) or isinstance(end, float):
        assert isinstance(start, float)
        assert isinstance(end, float)
        return end - start
    return float(start.elapsed_time(end)) / 1e3


def together(parts: Sequence[tuple[Measured, int]]) -> Measured:
    """One figure of several runs, each with the tokens it stands for: all tokens over the time all would take."""
    seconds = sum(num_tokens / part.tokens_per_s for part, num_tokens in parts)
    # One measurement may stand for several adapters; it was made once.
    made = {id(part): part for part, _ in parts}.values()
    return Measured(
        tokens_per_s=sum(num_tokens for _, num_tokens in parts) / seconds,
        spread=max(part.spread for part in made),
        num_microbatches=sum(part.num_microbatches for part in made),
        num_tokens=sum(part.num_tokens for part in made),
    )


def let_go() -> None:
    """Free what earlier work left behind, cycles too."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def start_counting_memory(device: torch.device) -> None:
    """From here on the peak is counted; what nobody uses any more is given back first."""
    let_go()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_gib(device: torch.device) -> tuple[float | None, float | None]:
    """(most allocated, most reserved) since then; None on a CPU, where nobody counts."""
    if device.type != "cuda":
        return None, None
    return (
        torch.cuda.max_memory_allocated(device) / 2**30,
        torch.cuda.max_memory_reserved(device) / 2**30,
    )
