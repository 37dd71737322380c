"""The promise: adapters trained together end where each ends alone in stock transformers, peft and torch.

The other side is a plain loop, one sample at a time, that shares nothing with the engine but tokens and starting
weights. With dropout, peft's layers are given the engine's masks, so that those runs can be compared as well.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from loraplex.engine import execute, itinerary, linear_group
from loraplex.engine.batch import TargetShare
from loraplex.engine.metrics import StepRecord
from loraplex.engine.model import whole_linears
from loraplex.engine.stage import Stage
from loraplex.engine.targets import short_targets
from loraplex.engine.threads import run_in_threads
from loraplex.kernels.reference import dropout_mask, multi_lora_linears
from loraplex.planner.build_program import build_program
from loraplex.planner.jobs import Job
from loraplex.planner.plan import Plan

Weights = dict[tuple[int, str], Tensor]
NUM_STEPS = 10
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
LIMITS = {torch.float32: 1e-5, torch.float64: 1e-10}


def weights_of(stages: Sequence[Stage]) -> Weights:
    return {
        (index, name): parameter.detach().cpu().clone()
        for stage in stages
        for index, adapter in enumerate(stage.adapters)
        for name, parameter in adapter.parameters.items()
    }


def train_together(
    make_stages: Any, plan: Plan, tokens: Any, dtype: torch.dtype, *, device: str = "cpu"
) -> tuple[Weights, Weights, list[StepRecord]]:
    """Weights before and after, and the steps."""
    stages = make_stages(plan, dtype=dtype, device=device)
    start = weights_of(stages)
    run = run_in_threads(stages, plan, build_program(plan), tokens)
    return start, weights_of(stages), list(run.records)


SHARES_ITS_MASK_WITH = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
"""Linears with one input drop the same of it."""


class EngineDropout(nn.Module):
    """Dropout with the engine's mask, for one linear of a peft model."""

    def __init__(self, job: Job, target: int, place: dict[str, int]) -> None:
        super().__init__()
        self.job, self.target, self.place = job, target, place

    def forward(self, x: Tensor) -> Tensor:
        p = self.job.lora.lora_dropout
        keep = dropout_mask(
            seed=self.job.seed,
            global_batch=self.place["global_batch"],
            target=self.target,
            token_index=torch.arange(x.shape[1]) + self.place["offset"],
            num_features=x.shape[2],
            dropout=p,
        )
        return torch.where(keep, x, 0.0) / (1 - p)


def train_in_peft(
    folder: Path, job: Job, adapter: int, tokens: Any, start: Weights, dtype: torch.dtype
) -> tuple[dict[str, Tensor], list[float]]:
    """The plain loop: stock model, stock adapter, stock AdamW, one sample at a time."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, get_scheduler

    lora, settings = job.lora, job.optimizer
    linears = whole_linears(folder)
    targets = list(short_targets(linears, lora.target_modules))
    config = LoraConfig(r=lora.r, lora_alpha=int(lora.lora_alpha), target_modules=targets, use_rslora=lora.use_rslora)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder, dtype=dtype), config, autocast_adapter_dtype=False
    )
    place = {"global_batch": 0, "offset": 0}
    for name, module in model.named_modules():
        if lora.lora_dropout and name.endswith("lora_dropout"):
            linear = name.removeprefix("base_model.model.").removesuffix(".lora_dropout")
            for later, first in SHARES_ITS_MASK_WITH.items():
                linear = linear.replace(later, first)
            module["default"] = EngineDropout(job, linears.index(linear), place)
    parameters = {n[17:].replace(".default", ""): p for n, p in model.named_parameters() if p.requires_grad}
    for name, parameter in parameters.items():
        parameter.data.copy_(start[adapter, name])
    optimizer = torch.optim.AdamW(parameters.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    name = {"constant": "constant_with_warmup"}.get(settings.lr_scheduler, settings.lr_scheduler)
    warmup = math.ceil(settings.warmup_ratio * len(job.global_batches))
    scheduler = get_scheduler(name, optimizer, warmup, len(job.global_batches))
    losses = []
    for step, batch in enumerate(job.global_batches):
        place["global_batch"], place["offset"], total = step, 0, torch.zeros((), dtype=dtype)
        num_targets = sum(sample.num_target_tokens for sample in batch)
        for sample in batch:
            ids, labels = map(torch.from_numpy, tokens.tokens(sample))
            logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
            loss = nn.functional.cross_entropy(logits, labels[1:], ignore_index=-100, reduction="sum") / num_targets
            torch.autograd.backward(loss)
            total, place["offset"] = total + loss.detach(), place["offset"] + len(ids)
        if settings.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters.values(), settings.max_grad_norm)
        optimizer.step(), scheduler.step(), optimizer.zero_grad()
        losses.append(total.item())
    return {name: parameter.detach() for name, parameter in parameters.items()}, losses


def distance(left: Weights, right: Weights) -> float:
    return max((left[key] - right[key]).abs().max().item() for key in left)


@pytest.fixture
def compare(
    model_folder: Path, make_stages: Any, tokens_of: Any, small_plan: Any
) -> Callable[..., list[tuple[float, float, float]]]:
    """(weight difference, loss difference, how far weights moved) of each adapter, together against peft alone."""

    def compare_all(
        jobs: tuple[Job, ...], num_stages: int, dtype: torch.dtype, device: str = "cpu"
    ) -> list[tuple[float, float, float]]:
        tokens = tokens_of(jobs)
        plan = small_plan(jobs, num_stages=num_stages)
        start, end, records = train_together(make_stages, plan, tokens, dtype, device=device)
        found = []
        for adapter, job in enumerate(jobs):
            alone, losses = train_in_peft(model_folder, job, adapter, tokens, start, dtype)
            mine = [record.loss for record in records if record.adapter == job.name]
            found.append(
                (
                    max((end[adapter, name] - weight).abs().max().item() for name, weight in alone.items()),
                    max(abs(a - b) for a, b in zip(mine, losses, strict=True)),
                    max((end[adapter, name] - start[adapter, name]).abs().max().item() for name in alone),
                )
            )
        return found

    return compare_all


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("num_stages", [1, 2, 4])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_together_equals_alone_in_peft(
    compare: Any, three_jobs: Any, num_stages: int, dtype: torch.dtype, dropout: float
) -> None:
    jobs = three_jobs(num_steps=NUM_STEPS, dropout=dropout)
    for weights, losses, moved in compare(jobs, num_stages, dtype):
        assert weights < LIMITS[dtype]
        assert losses < LIMITS[dtype]
        assert moved > 1e-3


@pytest.mark.gpu
@pytest.mark.parametrize("num_stages", [1, 4])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_together_on_a_gpu_equals_alone_in_peft(compare: Any, three_jobs: Any, num_stages: int, dropout: float) -> None:
    jobs = three_jobs(num_steps=NUM_STEPS, dropout=dropout)
    for weights, losses, moved in compare(jobs, num_stages, torch.float32, device="cuda"):
        assert weights < 1e-4
        assert losses < 1e-4
        assert moved > 1e-3


def test_the_jobs_differ_in_all_that_could_be_mixed_up(three_jobs: Any) -> None:
    jobs = three_jobs()
    assert all(job.optimizer.learning_rate >= 1e-3 and len(job.global_batches) == NUM_STEPS for job in jobs)
    for values in zip(
        *(
            (job.lora.r, job.lora.scaling(), job.lora.target_modules, job.optimizer, len(job.global_batches[0]))
            for job in jobs
        ),
        strict=True,
    ):
        assert len(set(values)) == 3


def pooled_losses(
    hidden: Tensor, head_weight: Tensor, target_ids: Tensor, shares: Sequence[TargetShare]
) -> tuple[Tensor, ...]:
    """Wrong: one mean over all adapters' targets."""
    logits = hidden @ head_weight.T
    losses = nn.functional.cross_entropy(logits, target_ids, reduction="none") / len(target_ids)
    return tuple(part.sum() for part in torch.split(losses, [share.num_targets for share in shares]))


def closing_early(actions: Any, plan: Plan) -> dict[int, tuple[tuple[int, int], ...]]:
    """Wrong: a batch counts as whole one microbatch before its last, where it has more than one."""
    found: dict[int, tuple[tuple[int, int], ...]] = dict.fromkeys(range(len(plan.microbatches)), ())
    places: dict[tuple[int, int], list[int]] = {}
    for place, held in enumerate(plan.microbatches):
        for batch in held.global_batches():
            places.setdefault(batch, []).append(place)
    for batch, own in sorted(places.items()):
        found[own[-2] if len(own) > 1 else own[-1]] += (batch,)
    return found


def dropping_the_base(x: Tensor, weights: Any, biases: Any, a: Any, b: Any, *, routing: Any, targets: Any) -> Tensor:
    """Wrong: the frozen linears see the input with dropout as well."""
    wet = x.clone()
    for segment in routing.segments:
        p = routing.dropout[segment.adapter]
        if p:
            rows = slice(segment.first_row, segment.end_row)
            wet[rows] = nn.functional.dropout(x[rows], p)
    whole = torch.cat(list(weights))
    base = nn.functional.linear(wet, whole) - nn.functional.linear(x, whole)
    return multi_lora_linears(x, weights, biases, a, b, routing=routing, targets=targets) + base


@pytest.mark.parametrize(
    ("module", "name", "wrong"),
    [
        (execute, "adapter_losses", pooled_losses),
        (itinerary, "_closing", closing_early),
        (linear_group, "multi_lora_linears", dropping_the_base),
    ],
    ids=["one pooled loss", "a step one microbatch early", "dropout on the base branch"],
)
def test_an_engine_with_a_known_fault_is_caught(
    compare: Any, three_jobs: Any, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, wrong: Any
) -> None:
    monkeypatch.setattr(module, name, wrong)
    found = compare(three_jobs(num_steps=NUM_STEPS, dropout=0.2), 2, torch.float64)
    assert max(weights for weights, _, _ in found) > 1e-4


@pytest.mark.parametrize(
    ("num_stages", "microbatch_tokens", "num_replicas", "seed"),
    [(1, 48, 1, 1), (2, 100, 1, 2), (4, 31, 1, 3), (2, 48, 3, 4)],
)
def test_with_dropout_together_equals_alone_whatever_the_cut(
    make_stages: Any,
    tokens_of: Any,
    small_plan: Any,
    three_jobs: Any,
    alone: Any,
    num_stages: int,
    microbatch_tokens: int,
    num_replicas: int,
    seed: int,
) -> None:
    jobs = three_jobs(num_steps=4, dropout=0.3)
    plan = small_plan(
        jobs, num_stages=num_stages, microbatch_tokens=microbatch_tokens, num_replicas=num_replicas, seed=seed
    )
    _, together, _ = train_together(make_stages, plan, tokens_of(jobs), torch.float64)
    for adapter, job in enumerate(jobs):
        own = (alone(job),)
        _, apart, _ = train_together(make_stages, small_plan(own, num_stages=1), tokens_of(own), torch.float64)
        mine = {(0, name): weight for (index, name), weight in together.items() if index == adapter}
        assert distance(apart, mine) < 1e-10


def test_the_cut_into_stages_changes_no_bit(make_stages: Any, tokens_of: Any, small_plan: Any, three_jobs: Any) -> None:
    jobs = three_jobs(num_steps=4, dropout=0.1)
    ends = [
        train_together(make_stages, small_plan(jobs, num_stages=stages), tokens_of(jobs), torch.float32)[1:]
        for stages in (1, 2, 3, 4)
    ]
    for weights, records in ends[1:]:
        assert distance(ends[0][0], weights) == 0.0
        assert sorted((r.adapter, r.step, r.loss, r.grad_norm, r.update_norm) for r in records) == sorted(
            (r.adapter, r.step, r.loss, r.grad_norm, r.update_norm) for r in ends[0][1]
        )
