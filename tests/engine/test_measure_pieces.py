"""The parts of a layer that are measured by themselves compute what they are named for."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from loraplex.engine.batch import PackedBatch
from loraplex.engine.measure_pieces import (
    EagerLora,
    attention,
    eager_linears,
    frozen_linears,
    frozen_stage,
    time_pass,
)
from loraplex.engine.model import Layout, StageModel
from loraplex.engine.packer import Packer
from loraplex.engine.pool_tokens import PoolTokens
from loraplex.engine.profile_conditions import conditions_plan, draw_conditions
from loraplex.engine.recorder import Recorder
from loraplex.engine.stage import make_stage_of
from loraplex.planner.jobs import LoraSettings

LORAS = (LoraSettings(r=4), LoraSettings(r=2, lora_alpha=8.0))


@pytest.fixture
def model(model_folder: Path) -> StageModel:
    layout = Layout(stage=1, num_stages=3, first_layer=0, end_layer=2)
    return make_stage_of(model_folder, (), layout).model


@pytest.fixture
def packed() -> PackedBatch:
    conditions = draw_conditions(LORAS, capacity_tokens=600, count=12)
    plan = conditions_plan(conditions, LORAS, num_stages=3)
    owners = [len(batch.adapter_tokens()) for batch in plan.microbatches]
    return Packer(plan.jobs, PoolTokens(64)).pack(plan.microbatches[owners.index(2)])


def test_frozen_linears_are_the_layers_own(model: StageModel, packed: PackedBatch) -> None:
    torch.manual_seed(0)
    outputs = frozen_linears(model, packed)()
    groups = tuple(model.blocks()[0].groups())
    assert [output.shape[1] for output in outputs] == [one.out_features for group in groups for one in group.linears]
    assert {output.shape[0] for output in outputs} == {packed.routing.num_rows}


def test_eager_linears_add_every_adapters_branch_to_its_own_rows(model: StageModel, packed: PackedBatch) -> None:
    adapters = EagerLora.of(model, LORAS)
    torch.manual_seed(1)
    frozen = frozen_linears(model, packed)()
    torch.manual_seed(1)
    eager = eager_linears(model, packed, adapters)()
    # The same inputs again, to compute the branch of q_proj by hand.
    torch.manual_seed(1)
    x = 0.02 * torch.randn((packed.routing.num_rows, 32))
    assert len(packed.routing.segments) == 2
    for segment in packed.routing.segments:
        rows, lora = slice(segment.first_row, segment.end_row), LORAS[segment.adapter]
        a, b = adapters.pairs[0][0][segment.adapter]
        expected = frozen[0][rows] + lora.lora_alpha / lora.r * (x[rows] @ a.T @ b.T)
        assert_close(eager[0][rows], expected)
    torch.autograd.backward(eager, [torch.ones_like(output) for output in eager])
    assert all(matrix.grad is not None for group in adapters.pairs for one in group for pair in one for matrix in pair)


@pytest.mark.parametrize("piece", [frozen_stage, attention, frozen_linears])
def test_a_pass_is_two_spans(
    piece: Callable[..., Callable[[], list[torch.Tensor]]], model: StageModel, packed: PackedBatch
) -> None:
    recorder = Recorder(stage=1)
    time_pass(recorder, piece(model, packed))
    assert [row[1] for row in recorder.rows] == ["forward", "backward"]
    assert all(ms > 0 for ms in recorder.compute_ms())


def test_a_stage_without_adapters_runs_as_with_untrained_ones(model: StageModel, packed: PackedBatch) -> None:
    torch.manual_seed(2)
    (output,) = frozen_stage(model, packed)()
    torch.manual_seed(2)
    hidden = 0.02 * torch.randn((1, packed.routing.num_rows, 32))
    assert_close(output, model(hidden, rows=packed.rows))
