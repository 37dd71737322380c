"""Training on a GPU: NaN stays with its adapter. Run with `pytest -m gpu`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from loraplex.engine.stage import Stage, make_stage
from loraplex.engine.threads import run_in_threads
from loraplex.engine.tiny_model import write_tiny_model
from loraplex.planner.build_program import build_program
from loraplex.planner.plan import Plan

pytestmark = pytest.mark.gpu
BAD = 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 4 layers, wide enough for every kernel."""
    changes = {"hidden_size": 256, "intermediate_size": 384, "num_attention_heads": 4, "num_key_value_heads": 2}
    return write_tiny_model(tmp_path_factory.mktemp("model"), changes=changes)


def stages_of(folder: Path, plan: Plan) -> tuple[Stage, ...]:
    return tuple(
        make_stage(folder, plan.jobs, stage=stage, num_stages=plan.num_stages, dtype=torch.bfloat16, device="cuda")
        for stage in range(plan.num_stages)
    )


@pytest.mark.parametrize("num_stages", [1, 2])
def test_an_adapter_that_breaks_leaves_the_others_their_bits(
    folder: Path, tokens_of: Any, small_plan: Any, three_jobs: Any, num_stages: int
) -> None:
    sane = three_jobs(num_steps=4, dropout=0.1)
    # The first step leaves weights that float32 and bfloat16 can still hold, and no product of them.
    wild = replace(sane[BAD], optimizer=replace(sane[BAD].optimizer, learning_rate=3e37, warmup_ratio=0.0))
    jobs = (sane[0], wild, sane[2])
    ends = []
    for force in (False, True):
        plan = small_plan(jobs, num_stages=num_stages, microbatch_tokens=100)
        stages = stages_of(folder, plan)
        starts = [[weight.detach().clone() for weight in stage.adapters[BAD].parameters.values()] for stage in stages]

        def halt(worker: int, place: int, stages: tuple[Stage, ...] = stages, force: bool = force) -> None:
            adapter = stages[worker].adapters[BAD]
            if force and adapter.version == 1:
                adapter.alive.fill_(False)

        run = run_in_threads(
            stages, plan, build_program(plan), tokens_of(jobs), on_nonfinite="quarantine", after_leg=halt
        )
        states = [(record.step, record.state) for record in run.records if record.adapter == wild.name]
        assert states == [(0, "taken"), (1, "quarantined")]
        ends.append([stage.adapters for stage in stages])
        for stage, start in zip(stages, starts, strict=True):
            found = list(stage.adapters[BAD].parameters.values())
            assert all(weight.isfinite().all() for weight in found)
            # Nobody measured anything with the weights behind its only step; who is halted by hand keeps them.
            assert all(map(torch.equal, found, start)) is not force
    for broken, forced in zip(*ends, strict=True):
        for adapter in (0, 2):
            others = forced[adapter].parameters
            assert all(torch.equal(weight, others[name]) for name, weight in broken[adapter].parameters.items())
