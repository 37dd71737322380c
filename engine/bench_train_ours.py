"""Our own engine under measurement: a training run of one stage, over a plan that is run again and again."""

import itertools
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..planner.build_program import build_program
from ..planner.inputs.base_model import BaseModel
from ..planner.make_plan import make_plan
from ..planner.plan import Plan
from .bench_train_laps import Measured, start_counting_memory, synchronize
from .bench_train_spec import Point, Question
from .bench_train_work import adapter_data, bounded_jobs
from .errors import EngineError
from .execute import Executor
from .itinerary import Leg, itinerary
from .loopback import LoopbackTransport
from .message import Wire
from .packer import Packer
from .pool_tokens import PoolTokens
from .recorder import Recorder
from .stage import Stage, make_stage
from .weight_source import WeightSource

_NUM_MICROBATCHES = (8.0, 8.6, 9.6)
"""About so many in a plan, so that it mixes adapters and takes steps as a long one does."""
_LEAST_PASSES = 2
_FULL = (0.995, 0.985, 0.97)
"""How full the microbatches of a plan are wanted."""


def measure_ours(
    point: Point, question: Question, *, model: BaseModel, folder: Path, device: torch.device
) -> tuple[Measured, dict[str, Any]]:
    """Tokens per second of one stage that holds the whole model, and what its plan is like.

    Whole passes over one plan are timed, since a part of it may hold other data than the rest; the first pass is
    the warm-up.
    """
    plan = plan_of(point, question)
    num_tokens = sum(held.num_tokens() for held in plan.microbatches)
    stage = _stage(folder, plan, model, question, device)
    legs = itinerary(build_program(plan), plan, stage=0)
    start_counting_memory(device)
    _pass(stage, plan, legs, device)
    rates: list[float] = []
    began = time.perf_counter()
    while len(rates) < _LEAST_PASSES or time.perf_counter() - began < question.seconds:
        rates.append(num_tokens / _pass(stage, plan, legs, device))
    halted = [adapter.job.name for adapter in stage.adapters if not adapter.alive]
    if halted:
        raise EngineError(f"the losses of {', '.join(halted)} were not finite; no speed is told of that")
    count = len(plan.microbatches)
    usual = statistics.median(rates)
    measured = Measured(
        tokens_per_s=usual,
        spread=(max(rates) - min(rates)) / usual,
        num_microbatches=count * len(rates),
        num_tokens=num_tokens * len(rates),
    )
    mixed = sum(len({sample.adapter for sample in held.samples}) for held in plan.microbatches) / count
    return measured, {
        "adapters_per_microbatch": round(mixed, 2),
        "filled": round(num_tokens / count / point.microbatch_tokens, 4),
    }


def plan_of(point: Point, question: Question) -> Plan:
    """What is run again and again."""
    # How full the last microbatches of a short plan get is a matter of luck: the fullest of a few.
    data = adapter_data(point, question)
    plans = []
    for count, full in itertools.product(_NUM_MICROBATCHES, _FULL):
        jobs = bounded_jobs(data, point, question, num_microbatches=count, full=full)
        plans.append(make_plan(jobs, num_stages=1, microbatch_tokens=point.microbatch_tokens, time_limit_s=10.0))
    return max(plans, key=lambda plan: sum(job.num_tokens() for job in plan.jobs) / len(plan.microbatches))


def _stage(folder: Path, plan: Plan, model: BaseModel, question: Question, device: torch.device) -> Stage:
    return make_stage(
        folder,
        plan.jobs,
        stage=0,
        num_stages=1,
        weights=WeightSource.of(model),
        dtype=torch.bfloat16 if device.type == "cuda" else torch.float32,
        device=device,
        recompute=question.recompute,
    )


def _pass(stage: Stage, plan: Plan, legs: Sequence[Leg], device: torch.device) -> float:
    """Seconds that training through the whole plan takes."""
    stage.rewind()
    config = stage.model.config
    wire = Wire(hidden_size=config.hidden_size, dtype=next(stage.model.parameters()).dtype, device=device)
    executor = Executor(
        stage,
        plan,
        Packer(plan.jobs, PoolTokens(config.vocab_size), device=device, buckets=stage.buckets),
        LoopbackTransport(legs, wire, worker=0),
        recorder=Recorder(stage=0, device=device),
    )
    synchronize(device)
    began = time.perf_counter()
    executor.run(legs)
    synchronize(device)
    return time.perf_counter() - began
