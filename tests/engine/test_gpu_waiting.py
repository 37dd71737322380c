"""Training on a GPU with the GPU held up: whatever waits for it is seen. Run with `pytest -m gpu`."""

from pathlib import Path
from typing import Any

import pytest
import torch

from loraplex.engine.batch import TokenSource
from loraplex.engine.execute import Executor
from loraplex.engine.itinerary import Leg, itinerary
from loraplex.engine.loopback import LoopbackTransport
from loraplex.engine.message import Wire
from loraplex.engine.metrics import StepRecord
from loraplex.engine.packer import Packer
from loraplex.engine.recorder import Recorder
from loraplex.engine.stage import Stage, make_stage
from loraplex.engine.tiny_model import write_tiny_model
from loraplex.planner.build_program import build_program
from loraplex.planner.plan import Plan
from loraplex.traces.memory_costs import RecomputeMode

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 4 layers, wide enough for every kernel."""
    changes = {"hidden_size": 256, "intermediate_size": 384, "num_attention_heads": 4, "num_key_value_heads": 2}
    return write_tiny_model(tmp_path_factory.mktemp("model"), changes=changes)


@pytest.mark.parametrize(
    ("index", "num_stages", "recompute"), [(0, 1, "none"), (0, 2, "selective"), (1, 2, "full"), (1, 3, "none")]
)
def test_every_action_is_launched_while_the_gpu_is_busy_with_something_else(
    folder: Path,
    tokens_of: Any,
    small_plan: Any,
    three_jobs: Any,
    index: int,
    num_stages: int,
    recompute: RecomputeMode,
) -> None:
    jobs = three_jobs(num_steps=2, dropout=0.1)
    plan = small_plan(jobs, num_stages=num_stages, microbatch_tokens=100)
    stage = make_stage(
        folder,
        jobs,
        stage=index,
        num_stages=num_stages,
        dtype=torch.bfloat16,
        device="cuda",
        recompute=recompute,
    )
    # Once to compile and to fill caches, those of pinned memory too.
    launch_behind_stalls(stage, plan, tokens_of(jobs), on_wait="default")
    waited, records = launch_behind_stalls(stage, plan, tokens_of(jobs), on_wait="error")
    assert waited == []
    assert [record.state for record in records] == ["taken"] * (6 if stage.layout.is_last else 0)


def launch_behind_stalls(
    stage: Stage, plan: Plan, tokens: TokenSource, *, on_wait: str
) -> tuple[list[str], list[StepRecord]]:
    """(actions that were not launched while the GPU was still busy with something before them, steps).

    The stage's neighbours are made up, so that nothing but the GPU could be waited for. `on_wait` is PyTorch's debug
    mode for calls that wait, while the legs run.
    """
    device = stage.device
    for adapter in stage.adapters:
        adapter.version = 0
    legs = itinerary(build_program(plan), plan, stage=stage.layout.stage)
    wire = Wire(hidden_size=stage.model.config.hidden_size, dtype=torch.bfloat16, device=device)
    recorder = Recorder(stage=stage.layout.stage, device=device)
    recorder.mark()  # sets up its clock, for which it waits
    stalls: list[torch.cuda.Event] = []
    waited: list[str] = []
    heard: list[StepRecord] = []

    def stall(_leg: Leg) -> None:
        torch.cuda.synchronize()
        # 0.3 s; launching an action takes some milliseconds.
        torch.cuda._sleep(6 * 10**8)  # type: ignore[no-untyped-call]
        stalls.append(torch.cuda.Event())  # type: ignore[no-untyped-call]
        stalls[-1].record()

    def look(place: int) -> None:
        if stalls[-1].query():  # type: ignore[no-untyped-call]
            waited.append(legs[place].word)

    executor = Executor(
        stage,
        plan,
        Packer(plan.jobs, tokens, device=device),
        LoopbackTransport(legs, wire, worker=stage.layout.stage),
        recorder=recorder,
        on_step=heard.append,
        before_leg=stall,
        after_leg=look,
    )
    torch.cuda.set_sync_debug_mode(on_wait)
    try:
        executor.run(legs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return waited, heard
