"""A microbatch as tensors, written out whole."""

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from loraplex.engine.batch import IGNORED, TargetShare
from loraplex.engine.buckets import GraphBuckets
from loraplex.engine.packer import Packer
from loraplex.kernels.routing import Segment
from loraplex.planner.errors import JobError
from loraplex.planner.jobs import Job, LoraSettings, Sample, job_from_lengths
from loraplex.planner.plan import microbatch
from loraplex.tests.kernels.copies import Copies


@dataclass(frozen=True, slots=True)
class Counting:
    """Sample i of adapter a has the tokens 100 a + 10 i, and so on; the last two are learned."""

    def tokens(self, sample: Sample) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        ids = np.arange(sample.num_tokens) + 100 * sample.adapter + 10 * sample.index
        labels = ids.copy()
        labels[:-2] = IGNORED
        return ids, labels


def jobs() -> tuple[Job, ...]:
    """Adapter 0: batches of samples of 3 and 4, 5 tokens; adapter 1: not in the microbatch; adapter 2: 4 tokens."""
    settings = {0: ([3, 4, 5], 2), 1: ([6], 1), 2: ([4], 1)}
    return tuple(
        job_from_lengths(
            adapter=adapter,
            name=f"job{adapter}",
            lengths=lengths,
            target_lengths=[2] * len(lengths),
            global_batch_size=size,
            lora=LoraSettings(r=4, lora_alpha=4.0 * (adapter + 1), lora_dropout=adapter / 10),
            seed=adapter,
        )
        for adapter, (lengths, size) in settings.items()
    )


def test_a_microbatch_of_two_adapters_one_in_its_second_batch() -> None:
    own = jobs()
    held = microbatch([*own[2].global_batches[0], *own[0].global_batches[1]])
    packed = Packer(own, Counting()).pack(held)
    assert packed.token_ids.tolist() == [[20, 21, 22, 23, 24, 200, 201, 202, 203]]
    assert packed.rows.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 3]]
    assert packed.rows.sample_lengths == (5, 4)
    assert packed.rows.cumulative_lengths.tolist() == [0, 5, 9]
    assert packed.rows.longest == 5
    # The row before a learned token predicts it.
    assert packed.target_rows.tolist() == [2, 3, 6, 7]
    assert packed.target_ids.tolist() == [23, 24, 202, 203]
    assert packed.shares == (
        TargetShare(adapter=0, global_batch=1, num_targets=2, divisor=2),
        TargetShare(adapter=2, global_batch=0, num_targets=2, divisor=2),
    )
    routing = packed.routing
    assert routing.segments == (
        Segment(first_row=0, num_rows=5, adapter=0),
        Segment(first_row=5, num_rows=4, adapter=2),
    )
    assert (routing.scaling, routing.dropout, routing.seeds) == ((1.0, 2.0, 3.0), (0.0, 0.1, 0.2), (0, 1, 2))


def test_dropout_counts_tokens_within_the_global_batch_in_data_order() -> None:
    own = jobs()
    # The second sample of batch 0 alone: three tokens of its batch come before it.
    packed = Packer(own, Counting()).pack(microbatch([own[0].global_batches[0][1]]))
    assert packed.routing.token_index.tolist() == [3, 4, 5, 6]
    assert packed.shares == (TargetShare(adapter=0, global_batch=0, num_targets=2, divisor=4),)


def test_a_microbatch_goes_to_its_device_in_one_copy() -> None:
    own = jobs()
    held = microbatch([*own[2].global_batches[0], *own[0].global_batches[1]])
    packer = Packer(own, Counting(), device="meta")
    with Copies() as copies:
        packed = packer.pack(held)
    tensors = (
        packed.token_ids,
        packed.rows.position_ids,
        packed.rows.cumulative_lengths,
        packed.target_rows,
        packed.target_ids,
        *packed.routing.tensors(),
    )
    assert copies.num_bytes == [sum(-(-tensor.nbytes // 16) * 16 for tensor in tensors)]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    on_host = Packer(own, Counting()).pack(held)
    assert [tensor.shape for tensor in packed.routing.tensors()] == [t.shape for t in on_host.routing.tensors()]


def test_a_packer_makes_the_tables_that_earlier_microbatches_asked_for() -> None:
    own = jobs()
    packer = Packer(own, Counting(), device="meta")
    first = packer.pack(microbatch(own[0].global_batches[0]))
    first.routing.tiles(64)
    first.routing.blocks(128)
    with Copies() as copies:
        second = packer.pack(microbatch(own[0].global_batches[1]))
        second.routing.tiles(64)
        second.routing.blocks(128)
    assert len(copies.num_bytes) == 1


@dataclass(frozen=True, slots=True)
class Longer(Counting):
    """One token more than was planned."""

    def tokens(self, sample: Sample) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        ids, labels = Counting().tokens(sample)
        return np.append(ids, 1), np.append(labels, 1)


@dataclass(frozen=True, slots=True)
class AllLearned(Counting):
    """Every token is learned."""

    def tokens(self, sample: Sample) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        ids, _ = Counting().tokens(sample)
        return ids, ids


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Longer(), "adapter 'job2', sample 0: the data gives 5 tokens where the plan says 4; make the plan anew"),
        (AllLearned(), "adapter 'job2', sample 0: the data gives 3 target tokens where the plan says 2; make the plan"),
    ],
)
def test_tokens_that_do_not_fit_the_plan_are_told(source: Counting, message: str) -> None:
    own = jobs()
    with pytest.raises(JobError, match=message):
        Packer(own, source).pack(microbatch(own[2].global_batches[0]))


def test_a_small_microbatch_is_filled_up_to_its_bucket() -> None:
    own, buckets = jobs(), GraphBuckets()
    held = microbatch([*own[2].global_batches[0], *own[0].global_batches[1]])
    packed = Packer(own, Counting(), buckets=buckets).pack(held)
    plain = Packer(own, Counting()).pack(held)
    assert packed.num_rows == 9
    assert packed.token_ids.tolist() == [plain.token_ids[0].tolist() + [0] * 119]
    assert packed.rows.position_ids.tolist() == [plain.rows.position_ids[0].tolist() + list(range(119))]
    # The padding is a sample of its own, and samples without rows follow.
    assert packed.rows.sample_lengths == (5, 4, 119)
    assert packed.rows.cumulative_lengths.tolist() == [0, 5, 9, 128, 128, 128, 128, 128, 128]
    assert packed.rows.longest == 128
    assert packed.routing.num_rows == 128
    assert packed.routing.segments == plain.routing.segments
    assert packed.target_rows.tolist() == plain.target_rows.tolist()
    assert packed.target_ids.tolist() == plain.target_ids.tolist()
    assert packed.filled is not None
    other = Packer(own, Counting(), buckets=buckets).pack(microbatch(own[0].global_batches[0]))
    assert other.filled is not None
    # One adapter has a bucket of its own; in one bucket buffers lie alike.
    assert other.filled.bucket != packed.filled.bucket
    mixed = microbatch([own[0].global_batches[0][0], *own[1].global_batches[0]])
    again = Packer(own, Counting(), buckets=buckets).pack(mixed)
    assert again.filled is not None
    assert again.filled.bucket.has_dropout == packed.filled.bucket.has_dropout
    first, second = (each.filled.layers.arrays for each in (packed, again) if each.filled is not None)
    assert [array.shape for array in first] == [array.shape for array in second]
    assert again.filled.buffer.shape == packed.filled.buffer.shape


def test_large_microbatches_and_those_of_many_samples_have_no_bucket() -> None:
    buckets = GraphBuckets()
    fits = {"num_rows": 1536, "num_samples": 127, "num_segments": 16}
    found = buckets.bucket_for(has_dropout=False, **fits)
    assert found is not None
    assert (found.rows.num_rows, found.num_samples, found.rows.most_segments) == (1536, 128, 16)
    for more in ({"num_rows": 1537}, {"num_samples": 128}, {"num_segments": 17}):
        assert buckets.bucket_for(has_dropout=False, **(fits | more)) is None
