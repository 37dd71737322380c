"""Random tokens: what the packer wants of them, and that they cost no more than those of a text."""

import numpy as np
import pytest

from loraplex.engine.batch import IGNORED
from loraplex.engine.packer import Packer
from loraplex.engine.pool_tokens import PoolTokens
from loraplex.engine.profile_conditions import DEFAULT_LORAS, conditions_plan, draw_conditions
from loraplex.planner.jobs import Sample


def test_tokens_are_those_the_packer_wants() -> None:
    conditions = draw_conditions(DEFAULT_LORAS, capacity_tokens=300, count=6)
    plan = conditions_plan(conditions, DEFAULT_LORAS, num_stages=3)
    source = PoolTokens(64)
    packer = Packer(plan.jobs, source)
    for batch in plan.microbatches:
        assert len(packer.pack(batch).target_ids) == batch.num_target_tokens()
        for sample in batch.samples:
            ids, labels = source.tokens(sample)
            assert ids.max() < 64
            learned = labels != IGNORED
            assert (labels[learned] == ids[learned]).all()


@pytest.mark.parametrize("index", [0, 70, 12_345])
def test_a_sample_is_a_piece_of_the_pool_and_not_a_copy(index: int) -> None:
    source = PoolTokens(64)
    ids, _ = source.tokens(Sample(adapter=1, global_batch=0, index=index, num_tokens=8192, num_target_tokens=4096))
    assert np.shares_memory(ids, source.pool)
    assert len(ids) == 8192


def test_a_sample_longer_than_the_pool_repeats_it() -> None:
    source = PoolTokens(64)
    ids, labels = source.tokens(Sample(adapter=0, global_batch=0, index=0, num_tokens=300_000, num_target_tokens=7))
    assert (ids == np.resize(source.pool, 300_000)).all()
    assert (labels != IGNORED).sum() == 7
