"""One point of a sweep: from its fields to a plan, a Program, hardware, and the headline numbers."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..planner.assumed_costs import assumed_costs
from ..planner.build_program import build_program, choose_program, rival_schedules
from ..planner.graph import ProgramGraph, program_graph
from ..planner.make_plan import make_plan
from ..planner.plan import Plan
from ..planner.plan_file import load_plan
from ..traces.costs import CostProfile, RecomputeMode
from ..traces.errors import InputError
from ..traces.memory_costs import recompute_mode
from .cluster import Cluster
from .cluster_file import cluster_of
from .errors import SimulationError
from .outcome import Prepared, outcome_of
from .point_fields import table, whole
from .point_jobs import point_jobs
from .point_profile import point_profile
from .simulate import Hardware

_PLANNING = (
    "stages",
    "replicas",
    "microbatch_tokens",
    "pad_multiple",
    "strategy",
    "objective",
    "time_limit_s",
    "planned_for",
)
_VERSION = 2
"""Of what results follow from beside the fields: points of another version are run again."""
_RUNNING = ("schedule", "kernels", "layers_per_stage", "recompute")


def plan_key(content: Mapping[str, Any]) -> str:
    """What the plan of a point depends on: points of one key share it."""
    pipeline = content.get("pipeline") or {}
    planning = {name: pipeline[name] for name in _PLANNING if name in pipeline}
    source = {name: content[name] for name in ("job", "plan") if name in content}
    # Unasked, the job file's own schedule is planned for.
    return json.dumps([source, planning, pipeline.get("schedule") is None], sort_keys=True, default=str)


def point_key(content: Mapping[str, Any], *, files: Mapping[str, str]) -> str:
    """SHA-256 of everything a point depends on; `files` are digests of what it names."""
    text = json.dumps([_VERSION, content, dict(files)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digests(content: Any, *, folder: Path) -> dict[str, str]:
    """Digest of every file that a value of these fields names."""
    found: dict[str, str] = {}
    if isinstance(content, Mapping):
        for held in content.values():
            found |= file_digests(held, folder=folder)
    elif isinstance(content, list):
        for held in content:
            found |= file_digests(held, folder=folder)
    elif isinstance(content, str) and 0 < len(content) < 1_000 and "\n" not in content and (folder / content).is_file():
        found[content] = hashlib.sha256((folder / content).read_bytes()).hexdigest()
    return found


def run_points(contents: Sequence[Mapping[str, Any]], *, folder: Path) -> list[dict[str, Any]]:
    """The headline numbers of points that share a plan, or why each cannot be; files are looked for in `folder`."""
    try:
        plan = _plan(contents[0], folder)
        bench = _Bench(prepared=Prepared.of(plan))
    except InputError as error:
        return [{"error": str(error)}] * len(contents)
    results: list[dict[str, Any]] = []
    for content in contents:
        try:
            results.append(_outcome(content, bench, folder=folder))
        except InputError as error:
            results.append({"error": str(error)})
    return results


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bench:
    """A plan and the graphs of its Programs, made once."""

    prepared: Prepared
    graphs: dict[str, ProgramGraph] = field(default_factory=dict)

    def graph(self, schedule: str, profile: CostProfile | None) -> ProgramGraph:
        graphs = [self._graph(name) for name in rival_schedules(schedule)]
        return choose_program(graphs, self.prepared.plan, profile, loads=self.prepared.loads)

    def _graph(self, name: str) -> ProgramGraph:
        if name not in self.graphs:
            self.graphs[name] = program_graph(build_program(self.prepared.plan, schedule=name))
        return self.graphs[name]


def _outcome(content: Mapping[str, Any], bench: _Bench, *, folder: Path) -> dict[str, Any]:
    pipeline = table(content.get("pipeline") or {}, "pipeline", (*_PLANNING, *_RUNNING))
    profile, plan = point_profile(content["profile"], folder=folder), bench.prepared.plan
    hardware = Hardware(
        profile=profile,
        cluster=cluster_of(content["cluster"], where="cluster") if content.get("cluster") else Cluster(),
        kernels=pipeline.get("kernels"),
        layers_per_stage=tuple(pipeline["layers_per_stage"]) if pipeline.get("layers_per_stage") else None,
        recompute=_recompute(pipeline.get("recompute", False)),
    )
    asked = pipeline.get("schedule")
    # As in `loraplex simulate`: unasked, the Program that the engine makes of the plan.
    graph = bench.graph(str(asked or plan.schedule), profile if asked else None)
    outcome = outcome_of(graph, bench.prepared, hardware)
    return asdict(outcome) | {
        "num_microbatches": len(plan.microbatches),
        "program": graph.program.schedule,
    }


def _recompute(given: Any) -> RecomputeMode:
    # true and false are what sweep files said before there was anything between them.
    return recompute_mode({False: "none", True: "full"}[given] if isinstance(given, bool) else str(given))


def _plan(content: Mapping[str, Any], folder: Path) -> Plan:
    pipeline = table(content.get("pipeline") or {}, "pipeline", (*_PLANNING, *_RUNNING))
    asked = {name: pipeline[name] for name in _PLANNING if name in pipeline}
    if "plan" in content:
        if asked:
            raise SimulationError(f"pipeline.{next(iter(asked))} cannot be changed in a plan already made; give a job")
        return load_plan(folder / str(content["plan"]))
    jobs, defaults = point_jobs(content["job"], folder=folder)
    settings: dict[str, Any] = {"stages": 1, "replicas": 1, "microbatch_tokens": 8192, "pad_multiple": 1}
    settings |= defaults | asked
    num_stages = whole(settings["stages"], "pipeline.stages")
    num_replicas = whole(settings["replicas"], "pipeline.replicas")
    return make_plan(
        jobs,
        # A job file as `loraplex train` plans it; lengths, and `planned_for: null`, by slots.
        profile=assumed_costs(num_workers=num_stages * num_replicas)
        if defaults and "planned_for" not in asked
        else _planned_for(asked, folder),
        num_stages=num_stages,
        num_replicas=num_replicas,
        microbatch_tokens=whole(settings["microbatch_tokens"], "pipeline.microbatch_tokens"),
        pad_multiple=whole(settings["pad_multiple"], "pipeline.pad_multiple"),
        schedule="1f1b" if pipeline.get("schedule") is not None else str(settings.get("schedule", "1f1b")),
        strategy=str(settings.get("strategy", "auto")),
        objective=str(settings.get("objective", "makespan")),
        time_limit_s=float(settings.get("time_limit_s", 10.0)),
    )


def _planned_for(asked: Mapping[str, Any], folder: Path) -> CostProfile | None:
    given = asked.get("planned_for")
    return None if given is None else point_profile(given, folder=folder)
