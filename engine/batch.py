"""A microbatch as tensors: packed tokens, places, routing, and which rows predict which targets for whom."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..kernels.host_routing import HostRouting
from ..kernels.routing import Routing
from ..kernels.upload import HostArray, to_device
from ..planner.jobs import Sample
from .buckets import BatchBucket

Encoded = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Token ids and labels; labels unshifted (label i is token i), IGNORED where not learned."""
IGNORED = -100
"""Label of a token that is not learned, as in transformers."""


class TokenSource(Protocol):
    """Where the tokens of a plan's samples come from."""

    def tokens(self, sample: Sample) -> Encoded:
        """Those of one sample."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetShare:
    """The target rows of one adapter in a microbatch."""

    adapter: int
    global_batch: int
    num_targets: int
    divisor: int
    """Target tokens of the whole global batch."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedRows:
    """Where the samples of a microbatch lie among its T rows, one after another."""

    sample_lengths: tuple[int, ...]
    """They add up to T."""
    position_ids: Tensor
    """int64 `[1, T]`, from 0 in each sample."""
    cumulative_lengths: Tensor
    """int32 `[samples + 1]`: first row of each sample, and T."""
    longest: int
    """No sample is longer."""

    @classmethod
    def of(cls, sample_lengths: Sequence[int], *, device: torch.device | str = "cpu") -> "PackedRows":
        """Rows of samples of these lengths."""
        lengths = tuple(int(length) for length in sample_lengths)
        borders, positions = row_places(lengths)
        position_ids, cumulative_lengths = to_device((positions[None], borders.astype(np.int32)), device)
        return cls(
            sample_lengths=lengths,
            position_ids=position_ids,
            cumulative_lengths=cumulative_lengths,
            longest=max(lengths),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerInput:
    """What the decoder layers read of a microbatch, on the host."""

    arrays: tuple[HostArray, ...]
    """Token ids, positions, borders of samples, and the routing's."""
    sample_lengths: tuple[int, ...]
    longest: int
    routing: HostRouting

    def on(self, tensors: Sequence[Tensor]) -> tuple[Tensor, PackedRows, Routing]:
        """(Token ids, rows, routing), where `tensors` are what became of `arrays` on a device."""
        token_ids, position_ids, cumulative_lengths, *rest = tensors
        rows = PackedRows(
            sample_lengths=self.sample_lengths,
            position_ids=position_ids,
            cumulative_lengths=cumulative_lengths,
            longest=self.longest,
        )
        return token_ids, rows, Routing.of(self.routing, rest)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Filled:
    """A microbatch filled up to a bucket."""

    bucket: BatchBucket
    layers: LayerInput
    buffer: Tensor
    """uint8, on the device: the arrays of `layers`, joined."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedBatch:
    """One microbatch on a device."""

    num_rows: int
    """Without padding."""
    token_ids: Tensor
    """int64 `[1, T]`, padding included."""
    rows: PackedRows
    routing: Routing
    target_rows: Tensor
    """int64 `[targets]`: rows whose next token is learned."""
    target_ids: Tensor
    """int64 `[targets]`: that next token."""
    shares: tuple[TargetShare, ...]
    """Which of the targets, in order, belong to which adapter."""
    filled: Filled | None = None
    """Where it was filled up: what takes a graph from one microbatch of its bucket to another."""


def row_places(lengths: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of samples one after another: their borders `[samples + 1]`, from 0, and each row's place in its own `[rows]`."""
    borders = np.cumsum((0, *lengths))
    return borders, np.arange(borders[-1]) - borders[:-1].repeat(lengths)
