"""What the engine's tests share: a very small model on disk, synthetic texts, and runs in threads."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from loraplex.engine.batch import IGNORED
from loraplex.engine.stage import Stage, make_stage
from loraplex.engine.tiny_model import write_tiny_model
from loraplex.planner.jobs import Job, LoraSettings, OptimizerSettings, Sample, job_from_lengths
from loraplex.planner.plan import Microbatch, Plan, microbatch
from loraplex.tests.engine.runs import LORAPLEX, command, finish, start, write_job

VOCABULARY = 64
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 4 layers, hidden size 32 and 64 words, in several shards."""
    return write_tiny_model(tmp_path_factory.mktemp("model"), changes=SMALL, shard_bytes=30_000)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    """A run from start to end: its output folder and what --json said. Made once for all that look at it."""
    folder = tmp_path_factory.mktemp("trained")
    write_job(folder)
    code, out, err = finish(start(command(*LORAPLEX, "train", "jobs.yaml", "--json"), folder), seconds=120)
    assert code == 0, err
    return folder / "output", json.loads(out)


@dataclass(frozen=True, slots=True)
class SyntheticTokens:
    """Random tokens, drawn from adapter name and sample index; the second half of each sample is learned."""

    jobs: tuple[Job, ...]

    def tokens(self, sample: Sample) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        name = self.jobs[sample.adapter].name
        generator = np.random.default_rng([*name.encode(), sample.index])
        ids = generator.integers(3, VOCABULARY, size=sample.num_tokens)
        labels = ids.copy()
        labels[: sample.num_tokens - sample.num_target_tokens] = IGNORED
        return ids, labels


# Test files cannot import this one, so helpers come as fixtures.


@pytest.fixture
def tokens_of() -> Callable[[Sequence[Job]], SyntheticTokens]:
    return lambda jobs: SyntheticTokens(tuple(jobs))


@pytest.fixture
def alone() -> Callable[[Job], Job]:
    return _alone


@pytest.fixture
def three_jobs() -> Callable[..., tuple[Job, ...]]:
    return _three_jobs


@pytest.fixture
def small_plan() -> Callable[..., Plan]:
    return _small_plan


def _alone(job: Job) -> Job:
    """The same job as the only one of its plan."""
    batches = tuple(tuple(replace(sample, adapter=0) for sample in batch) for batch in job.global_batches)
    return replace(job, global_batches=batches)


def _three_jobs(*, num_steps: int = 10, dropout: float = 0.0) -> tuple[Job, ...]:
    """Three adapters that differ in everything: rank, alpha, targets, rate, schedule, decay, clipping, batch size."""
    settings = [
        (
            LoraSettings(r=4, lora_alpha=8.0, lora_dropout=dropout, target_modules=("all-linear",)),
            OptimizerSettings(learning_rate=1e-3, lr_scheduler="constant", max_grad_norm=0.5),
            4,
        ),
        (
            LoraSettings(r=8, lora_alpha=8.0, lora_dropout=dropout / 2, target_modules=("q_proj", "v_proj")),
            OptimizerSettings(learning_rate=2e-3, lr_scheduler="linear", warmup_ratio=0.1, max_grad_norm=None),
            3,
        ),
        (
            LoraSettings(r=2, lora_alpha=4.0, target_modules=("gate_proj", "down_proj", "o_proj"), use_rslora=True),
            OptimizerSettings(learning_rate=1.5e-3, lr_scheduler="cosine", weight_decay=0.1, max_grad_norm=1.0),
            2,
        ),
    ]
    generator = np.random.default_rng(7)
    jobs = []
    for adapter, (lora, optimizer, batch_size) in enumerate(settings):
        lengths = generator.integers(4, 24, size=num_steps * batch_size).tolist()
        jobs.append(
            job_from_lengths(
                adapter=adapter,
                name=f"job{adapter}",
                lengths=lengths,
                target_lengths=[length // 2 for length in lengths],
                global_batch_size=batch_size,
                lora=lora,
                optimizer=optimizer,
                seed=100 + adapter,
            )
        )
    return tuple(jobs)


MakeStages = Callable[..., tuple[Stage, ...]]


@pytest.fixture
def make_stages(model_folder: Path) -> MakeStages:
    """All stages of a plan, in worker order."""

    def make(plan: Plan, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> tuple[Stage, ...]:
        return tuple(
            make_stage(
                model_folder,
                plan.jobs,
                stage=stage,
                num_stages=plan.num_stages,
                replica=replica,
                dtype=dtype,
                device=device,
            )
            for replica in range(plan.num_replicas)
            for stage in range(plan.num_stages)
        )

    return make


def _small_plan(
    jobs: Sequence[Job], *, num_stages: int, microbatch_tokens: int = 48, num_replicas: int = 1, seed: int = 0
) -> Plan:
    """A random plan that mixes adapters: step after step, the samples of all adapters are dealt to microbatches."""
    generator = np.random.default_rng(seed)
    microbatches: list[Microbatch] = []
    for step in range(max(len(job.global_batches) for job in jobs)):
        samples = [sample for job in jobs if step < len(job.global_batches) for sample in job.global_batches[step]]
        dealt: list[list[Sample]] = [[]]
        for place in generator.permutation(len(samples)):
            if sum(sample.num_tokens for sample in dealt[-1]) + samples[place].num_tokens > microbatch_tokens:
                dealt.append([])
            dealt[-1].append(samples[place])
        microbatches += [microbatch(share) for share in dealt]
        microbatches += [Microbatch()] * (-len(microbatches) % num_replicas)
    return Plan(
        jobs=tuple(jobs),
        num_stages=num_stages,
        num_replicas=num_replicas,
        microbatch_tokens=microbatch_tokens,
        microbatches=tuple(microbatches),
    )
