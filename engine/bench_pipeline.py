"""What `loraplex bench pipeline` is asked for, and how its processes are told. Importing this needs no torch."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..planner.errors import JobError
from ..planner.inputs.base_model import TINY, TINY_CONFIG
from ..planner.inputs.built_in_shapes import shape_config, shape_names
from ..planner.jobs import Job, job_from_lengths
from ..traces.workloads import sample_lengths

DATASETS = ("gsm8k", "dialogsum", "scitldr_a", "qmsum_span")
"""One adapter for each."""


THREAD_PERCENTAGES = (25.0, 20.0, 16.0, 12.0, 8.0)
"""Tried in turn for the largest at which neighbours make no difference."""
SLOWDOWN_GOAL = 1.01


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRequest:
    """What is to be run, as the command line says it."""

    model: str
    num_layers: int
    num_stages: int
    microbatch_tokens: int
    num_batches: int
    """Of each adapter."""
    global_batch_size: int
    device: str
    thread_percentage: str
    """A number, or auto."""
    profile_file: Path | None

    def write_model(self, folder: Path) -> Path:
        """A config.json with that many layers. Raises JobError for an unknown model, or fewer layers than stages."""
        if self.model != TINY and self.model not in shape_names():
            raise JobError(f"--model {self.model} is unknown; choose {TINY} or a shape: {', '.join(shape_names())}")
        if self.num_layers < self.num_stages:
            raise JobError(f"--layers {self.num_layers} are fewer than --stages {self.num_stages}; raise them")
        config = dict(TINY_CONFIG) if self.model == TINY else shape_config(self.model)
        path = folder / f"{self.model}.json"
        path.write_text(json.dumps({**config, "num_hidden_layers": self.num_layers}), encoding="utf-8")
        return path

    def jobs(self) -> tuple[Job, ...]:
        """An adapter for each data set, r = 16 on all linears, lengths as its own; the second half of a sample is
        learned."""
        jobs = []
        for adapter, dataset in enumerate(DATASETS):
            drawn = sample_lengths(dataset, num_samples=self.num_batches * self.global_batch_size, seed=adapter)
            lengths = [min(length, self.microbatch_tokens) for length in drawn]
            jobs.append(
                job_from_lengths(
                    adapter=adapter,
                    name=dataset,
                    lengths=lengths,
                    target_lengths=[length // 2 for length in lengths],
                    global_batch_size=self.global_batch_size,
                    seed=adapter,
                )
            )
        return tuple(jobs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """How long a stage takes for the same work while its neighbours idle and while they work."""

    alone_ms: tuple[float, ...]
    """By stage."""
    together_ms: tuple[float, ...]

    def slowdown(self) -> float:
        """The worst of any stage: 1 where neighbours make no difference."""
        return max(busy / idle for busy, idle in zip(self.together_ms, self.alone_ms, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What the processes are asked to do; a JSON file in their work folder."""

    model: str
    """A config.json, whose weights are drawn."""
    device: str
    num_stages: int
    schedules: tuple[str, ...]
    """Of plan-0.json, plan-1.json, ...; those without one are not run. The first is worked on to see what sharing
    costs."""

    def save(self, folder: Path) -> None:
        """Write it where the processes look for it."""
        (folder / "order.json").write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Order":
        """Read it again."""
        fields = json.loads((folder / "order.json").read_text(encoding="utf-8"))
        return cls(**{**fields, "schedules": tuple(fields["schedules"])})


def write_job_file(jobs: Sequence[Job], *, model: Path, num_stages: int, microbatch_tokens: int) -> Path:
    """A job file beside `model` that holds these jobs' lengths, for commands that take one."""
    lines = [
        f"base_model: ./{model.name}",
        "random_weights: true",
        f"sequence_len: {microbatch_tokens}",
        f"microbatch_tokens: {microbatch_tokens}",
        f"pipeline: {{stages: {num_stages}}}",
        "adapters:",
    ]
    for job in jobs:
        lengths = [sample.num_tokens for batch in job.global_batches for sample in batch]
        table = "\n".join(["num_tokens", *map(str, lengths)]) + "\n"
        (model.parent / f"{job.name}.csv").write_text(table, encoding="utf-8")
        lines += [
            f"  - name: {job.name}",
            f"    global_batch_size: {len(job.global_batches[0])}",
            f"    datasets: [{{path: {job.name}.csv, type: lengths}}]",
        ]
    path = model.parent / "jobs.yaml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def plan_path(folder: Path, number: int) -> Path:
    """Where a plan lies."""
    return folder / f"plan-{number}.json"


def spans_path(folder: Path, number: int, stage: int) -> Path:
    """Where a stage leaves its spans of a plan."""
    return folder / f"spans-{number}-{stage}.json"


def sharing_path(folder: Path) -> Path:
    """Where worker 0 leaves what sharing costs."""
    return folder / "sharing.json"
