"""Makes tensors of a plan's microbatches."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..kernels.host_routing import HostRouting, RoutedAdapters
from ..kernels.routing import Segment, WantedTables
from ..kernels.upload import HostArray, num_bytes, send, split
from ..planner.errors import JobError
from ..planner.jobs import Job, Sample
from ..planner.plan import Microbatch
from .batch import IGNORED, Encoded, Filled, LayerInput, PackedBatch, TargetShare, TokenSource, row_places
from .buckets import BatchBucket, GraphBuckets


class Packer:
    """Makes PackedBatches of a plan's microbatches."""

    def __init__(
        self,
        jobs: Sequence[Job],
        tokens: TokenSource,
        *,
        device: torch.device | str = "cpu",
        buckets: GraphBuckets | None = None,
    ) -> None:
        self._jobs = tuple(jobs)
        self._tokens = tokens
        self._device = torch.device(device)
        self._buckets = buckets
        # What the layers want of one microbatch they want of the next: all but the first bring it along.
        self._wanted = WantedTables()
        self._adapters = RoutedAdapters.of(
            scaling=[job.lora.scaling() for job in self._jobs],
            dropout=[job.lora.lora_dropout for job in self._jobs],
            seeds=[job.seed for job in self._jobs],
        )
        self._offsets = {
            (adapter, index): offset
            for adapter, job in enumerate(self._jobs)
            for index, offset in _token_offsets(job).items()
        }
        self._divisors = [[job.target_tokens(batch) for batch in range(len(job.global_batches))] for job in self._jobs]

    def pack(self, microbatch: Microbatch) -> PackedBatch:
        """On the packer's device by one copy that nobody waits for.

        Raises JobError where tokens do not fit the plan's lengths.
        """
        samples = microbatch.samples
        borders, positions = row_places([sample.num_tokens for sample in samples])
        ids, labels = self._encoded(samples)
        targets = self._targets(samples, labels, borders)
        buckets = self._buckets
        bucket = None if buckets is None else buckets.bucket_of(microbatch, dropout=self._adapters.dropout)
        layers = self._layers(microbatch, ids, positions, borders, bucket=bucket)
        arrays = (*layers.arrays, targets - 1, labels[targets])
        buffer = send(arrays, self._device)
        *read, target_rows, target_ids = split(buffer, arrays)
        token_ids, rows, routing = layers.on(read)
        filled = None
        if bucket is not None:
            filled = Filled(bucket=bucket, layers=layers, buffer=buffer[: num_bytes(layers.arrays)])
        return PackedBatch(
            num_rows=len(ids),
            token_ids=token_ids,
            rows=rows,
            routing=routing,
            target_rows=target_rows,
            target_ids=target_ids,
            shares=tuple(self._shares(microbatch)),
            filled=filled,
        )

    def _layers(
        self,
        microbatch: Microbatch,
        ids: NDArray[np.int64],
        positions: NDArray[np.int64],
        borders: NDArray[np.int64],
        *,
        bucket: BatchBucket | None,
    ) -> LayerInput:
        samples = microbatch.samples
        lengths = tuple(sample.num_tokens for sample in samples)
        offsets = np.array([self._offsets[sample.adapter, sample.index] for sample in samples], np.int32)
        token_index = positions.astype(np.int32) + offsets.repeat(lengths)
        longest = max(lengths)
        if bucket is not None:
            longest, padding = bucket.rows.num_rows, bucket.rows.num_rows - len(ids)
            ids, token_index = (np.concatenate((row, np.zeros(padding, row.dtype))) for row in (ids, token_index))
            positions = np.concatenate((positions, np.arange(padding)))
            borders = np.concatenate((borders, np.full(bucket.num_samples - len(lengths), longest)))
            lengths = (*lengths, padding) if padding else lengths
        routing = self._routing(microbatch, token_index, bucket=bucket)
        return LayerInput(
            arrays=(ids[None], positions[None], borders.astype(np.int32), *_of_host(routing)),
            sample_lengths=lengths,
            longest=longest,
            routing=routing,
        )

    def _encoded(self, samples: Sequence[Sample]) -> Encoded:
        """Those of all samples, one after another."""
        rows = [self._tokens.tokens(sample) for sample in samples]
        for sample, (ids, _) in zip(samples, rows, strict=True):
            if len(ids) != sample.num_tokens:
                raise self._misfit(sample, f"{len(ids)} tokens", sample.num_tokens)
        return np.concatenate([ids for ids, _ in rows]), np.concatenate([labels for _, labels in rows])

    def _targets(
        self, samples: Sequence[Sample], labels: NDArray[np.int64], borders: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """int64 `[targets]`: rows whose token is learned, which the row before predicts; a sample's first has none."""
        learned = labels != IGNORED
        learned[borders[:-1]] = False
        targets = np.flatnonzero(learned)
        places = targets.searchsorted(borders).tolist()
        for sample, first, end in zip(samples, places, places[1:], strict=False):
            if end - first != sample.num_target_tokens:
                raise self._misfit(sample, f"{end - first} target tokens", sample.num_target_tokens)
        return targets

    def _misfit(self, sample: Sample, given: str, planned: int) -> JobError:
        return JobError(
            f"adapter '{self._jobs[sample.adapter].name}', sample {sample.index}: the data gives {given} "
            f"where the plan says {planned}; make the plan anew"
        )

    def _routing(
        self, microbatch: Microbatch, token_index: NDArray[np.int32], *, bucket: BatchBucket | None
    ) -> HostRouting:
        current = dict(microbatch.global_batches())
        segments, row = [], 0
        for adapter, num_rows in microbatch.adapter_tokens():
            segments.append(Segment(first_row=row, num_rows=num_rows, adapter=adapter))
            row += num_rows
        return HostRouting.of(
            self._adapters,
            num_rows=len(token_index),
            segments=segments,
            global_batches=[current.get(adapter, 0) for adapter in range(len(self._jobs))],
            token_index=token_index,
            wanted=self._wanted if bucket is None or self._buckets is None else self._buckets.wanted(bucket),
            bucket=None if bucket is None else bucket.rows,
        )

    def _shares(self, microbatch: Microbatch) -> Iterator[TargetShare]:
        for adapter, global_batch in microbatch.global_batches():
            yield TargetShare(
                adapter=adapter,
                global_batch=global_batch,
                num_targets=sum(sample.num_target_tokens for sample in microbatch.samples if sample.adapter == adapter),
                divisor=self._divisors[adapter][global_batch],
            )


def _of_host(routing: HostRouting) -> Iterator[HostArray]:
    for array in routing.arrays():
        assert not isinstance(array, Tensor), "this packer's token indices are arrays"
        yield array


def _token_offsets(job: Job) -> Mapping[int, int]:
    # Tokens of its global batch that come before each sample, in data order: part of dropout's key.
    offsets = {}
    for batch in job.global_batches:
        offset = 0
        for sample in sorted(batch, key=lambda sample: sample.index):
            offsets[sample.index] = offset
            offset += sample.num_tokens
    return offsets
