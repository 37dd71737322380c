"""A microbatch as tensors: packed tokens, places, routing, and which rows predict which targets for whom."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..kernels.routing import Routing, Segment, WantedTables
from ..kernels.upload import to_device
from ..planner.errors import JobError
from ..planner.jobs import Job, Sample
from ..planner.plan import Microbatch

Encoded = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Token ids and labels of one sample; labels unshifted (label i is token i), IGNORED where not learned."""
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

    @classmethod
    def of(cls, sample_lengths: Sequence[int], *, device: torch.device | str = "cpu") -> "PackedRows":
        """Rows of samples of these lengths."""
        lengths = tuple(int(length) for length in sample_lengths)
        position_ids, cumulative_lengths = to_device(
            (
                torch.from_numpy(np.concatenate([np.arange(length) for length in lengths]))[None],
                torch.from_numpy(np.cumsum([0, *lengths]).astype(np.int32)),
            ),
            device,
        )
        return cls(sample_lengths=lengths, position_ids=position_ids, cumulative_lengths=cumulative_lengths)

    @property
    def longest(self) -> int:
        return max(self.sample_lengths)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedBatch:
    """One microbatch on a device."""

    token_ids: Tensor
    """int64 `[1, T]`."""
    rows: PackedRows
    routing: Routing
    target_rows: Tensor
    """int64 `[targets]`: rows whose next token is learned."""
    target_ids: Tensor
    """int64 `[targets]`: that next token."""
    shares: tuple[TargetShare, ...]
    """Which of the targets, in order, belong to which adapter."""

    def to(self, device: torch.device | str) -> "PackedBatch":
        """The same on a device: one copy that nobody waits for."""
        rows = self.rows
        own = (self.token_ids, rows.position_ids, rows.cumulative_lengths, self.target_rows, self.target_ids)
        moved = to_device((*own, *self.routing.tensors()), device)
        token_ids, position_ids, cumulative_lengths, target_rows, target_ids, *routing = moved
        return replace(
            self,
            token_ids=token_ids,
            rows=replace(rows, position_ids=position_ids, cumulative_lengths=cumulative_lengths),
            routing=self.routing.with_tensors(routing),
            target_rows=target_rows,
            target_ids=target_ids,
        )

    def num_rows(self) -> int:
        """T."""
        return self.token_ids.shape[1]


class Packer:
    """Makes PackedBatches of a plan's microbatches."""

    def __init__(self, jobs: Sequence[Job], tokens: TokenSource, *, device: torch.device | str = "cpu") -> None:
        self._jobs = tuple(jobs)
        self._tokens = tokens
        self._device = device
        # What the layers want of one microbatch they want of the next: all but the first bring it along.
        self._wanted = WantedTables()
        self._offsets = {
            (adapter, index): offset
            for adapter, job in enumerate(self._jobs)
            for index, offset in _token_offsets(job).items()
        }

    def pack(self, microbatch: Microbatch) -> PackedBatch:
        """Raises JobError where tokens do not fit the plan's lengths."""
        samples = microbatch.samples
        rows = [self._rows(sample) for sample in samples]
        lengths = tuple(sample.num_tokens for sample in samples)
        first_rows = np.cumsum([0, *lengths[:-1]])
        targets = [np.flatnonzero(labels[1:] != IGNORED) for _, labels in rows]
        for sample, found in zip(samples, targets, strict=True):
            self._check_targets(sample, len(found))
        token_index = [np.arange(sample.num_tokens) + self._offsets[sample.adapter, sample.index] for sample in samples]
        on_host = PackedBatch(
            token_ids=_joined([ids for ids, _ in rows])[None],
            rows=PackedRows.of(lengths),
            routing=self._routing(microbatch, _joined(token_index)),
            target_rows=_joined([found + first for found, first in zip(targets, first_rows, strict=True)]),
            target_ids=_joined([labels[1:][found] for (_, labels), found in zip(rows, targets, strict=True)]),
            shares=tuple(self._shares(microbatch)),
        )
        return on_host.to(self._device)

    def _rows(self, sample: Sample) -> Encoded:
        ids, labels = self._tokens.tokens(sample)
        if len(ids) != sample.num_tokens:
            raise JobError(
                f"adapter '{self._jobs[sample.adapter].name}', sample {sample.index}: the data gives {len(ids)} tokens "
                f"where the plan says {sample.num_tokens}; make the plan anew"
            )
        return ids, labels

    def _check_targets(self, sample: Sample, num_targets: int) -> None:
        if num_targets != sample.num_target_tokens:
            raise JobError(
                f"adapter '{self._jobs[sample.adapter].name}', sample {sample.index}: the data gives {num_targets} "
                f"target tokens where the plan says {sample.num_target_tokens}; make the plan anew"
            )

    def _routing(self, microbatch: Microbatch, token_index: Tensor) -> Routing:
        current = dict(microbatch.global_batches())
        segments, row = [], 0
        for adapter, num_rows in microbatch.adapter_tokens():
            segments.append(Segment(first_row=row, num_rows=num_rows, adapter=adapter))
            row += num_rows
        return Routing.build(
            num_rows=row,
            segments=segments,
            scaling=[job.lora.scaling() for job in self._jobs],
            dropout=[job.lora.lora_dropout for job in self._jobs],
            seeds=[job.seed for job in self._jobs],
            global_batches=[current.get(adapter, 0) for adapter in range(len(self._jobs))],
            token_index=token_index,
            wanted=self._wanted,
        )

    def _shares(self, microbatch: Microbatch) -> Iterator[TargetShare]:
        for adapter, global_batch in microbatch.global_batches():
            yield TargetShare(
                adapter=adapter,
                global_batch=global_batch,
                num_targets=sum(sample.num_target_tokens for sample in microbatch.samples if sample.adapter == adapter),
                divisor=self._jobs[adapter].target_tokens(global_batch),
            )


def _joined(pieces: Sequence[NDArray[np.int64]]) -> Tensor:
    return torch.from_numpy(np.concatenate(pieces))


def _token_offsets(job: Job) -> Mapping[int, int]:
    # Tokens of its global batch that come before each sample, in data order: part of dropout's key.
    offsets = {}
    for batch in job.global_batches:
        offset = 0
        for sample in sorted(batch, key=lambda sample: sample.index):
            offsets[sample.index] = offset
            offset += sample.num_tokens
    return offsets
