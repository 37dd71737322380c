"""Small microbatches as CUDA graphs: the same training as launched one by one. Run with `pytest -m gpu`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from loraplex.engine.graphs import GRAPHS, LayerGraphs, layer_graphs
from loraplex.engine.stage import Stage, make_stage
from loraplex.engine.threads import run_in_threads
from loraplex.engine.tiny_model import write_tiny_model
from loraplex.planner.build_program import build_program
from loraplex.planner.plan import Plan
from loraplex.traces.errors import InputError

WIDE = {"hidden_size": 256, "intermediate_size": 384, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 4 layers, wide enough for every kernel."""
    return write_tiny_model(tmp_path_factory.mktemp("model"), changes=WIDE)


def stages_of(folder: Path, plan: Plan, **settings: Any) -> tuple[Stage, ...]:
    return tuple(
        make_stage(folder, plan.jobs, stage=stage, num_stages=plan.num_stages, **settings)
        for stage in range(plan.num_stages)
    )


@pytest.mark.gpu
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("num_stages", [1, 3])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_training_by_graphs_has_the_bits_of_training_kernel_by_kernel(
    folder: Path,
    tokens_of: Any,
    small_plan: Any,
    three_jobs: Any,
    num_stages: int,
    dropout: float,
    recompute: str,
) -> None:
    jobs = three_jobs(num_steps=8, dropout=dropout)
    plan = small_plan(jobs, num_stages=num_stages, microbatch_tokens=100)
    ends, losses = [], []
    for replayed in (True, False):
        stages = stages_of(folder, plan, dtype=torch.bfloat16, device="cuda", recompute=recompute)
        graphs = [stage.graphs for stage in stages if stage.graphs is not None]
        assert len(graphs) == num_stages
        if not replayed:
            for each in graphs:
                each.capture = False
        run = run_in_threads(stages, plan, build_program(plan), tokens_of(jobs))
        losses.append([(record.adapter, record.step, record.loss) for record in run.records])
        ends.append([dict(adapter.parameters) for stage in stages for adapter in stage.adapters])
        for stage, each in enumerate(graphs):
            # At most as many lanes as microbatches are in flight under 1F1B.
            assert replayed <= each.num_lanes() <= (num_stages - stage if replayed else 0)
            assert (each.num_replayed > 0) is replayed
    assert losses[0] == losses[1]
    for with_graphs, without in zip(*ends, strict=True):
        for name, weight in with_graphs.items():
            assert torch.equal(weight, without[name]), name


@pytest.mark.parametrize("num_stages", [1, 3])
def test_padding_alone_changes_no_loss(
    folder: Path, tokens_of: Any, small_plan: Any, three_jobs: Any, num_stages: int
) -> None:
    # What is filled up but not replayed, as the first of each bucket, here on a CPU.
    jobs = three_jobs(num_steps=3, dropout=0.1)
    plan = small_plan(jobs, num_stages=num_stages, microbatch_tokens=100)
    losses = []
    for padded in (False, True):
        stages = stages_of(folder, plan)
        if padded:
            stages = tuple(replace(stage, graphs=LayerGraphs(stage.model, stage.model)) for stage in stages)
            for stage in stages:
                assert stage.graphs is not None
                stage.graphs.capture = False
        run = run_in_threads(stages, plan, build_program(plan), tokens_of(jobs))
        losses.append({(record.adapter, record.step): record.loss for record in run.records})
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_a_cpu_has_none(folder: Path, small_plan: Any, three_jobs: Any) -> None:
    (stage,) = stages_of(folder, small_plan(three_jobs(num_steps=1), num_stages=1))
    assert stage.graphs is None
    assert stage.buckets is None
    assert not stage.replays(10)


def test_the_environment_is_asked_in_known_words(
    folder: Path, small_plan: Any, three_jobs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (stage,) = stages_of(folder, small_plan(three_jobs(num_steps=1), num_stages=1))
    monkeypatch.setenv(GRAPHS, "on")
    with pytest.raises(InputError, match="LORAPLEX_CUDA_GRAPHS=on is unknown; choose from auto, off"):
        layer_graphs(stage.model, recompute="none")
