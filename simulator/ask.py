"""A what-if question as the command line puts it, and its answer."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from ..planner.build_program import build_program, num_chunks_of
from ..planner.check_program import check_program
from ..planner.plan import Plan
from ..planner.plan_file import load_plan
from ..planner.program import Program
from ..planner.systems import sequential_packed
from ..traces.costs import CostProfile, Kernels
from ..traces.memory_costs import recompute_mode
from ..traces.profiles import load_profile
from .cluster import Cluster
from .cluster_file import load_cluster
from .errors import SimulationError
from .simulate import METHODS, Hardware, Method, Simulation, simulate, simulated_makespan_ms
from .systems import SystemResult, compare_systems
from .textbook import parse_uniform, textbook_plan

Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What to replay, on what. Words are those of `loraplex simulate`."""

    plan: Path | None = None
    profile: str | None = None
    uniform: str | None = None
    cluster: Path | None = None
    schedule: str | None = None
    program: Path | None = None
    """A Program as text, to be replayed instead of a schedule's."""
    kernels: str | None = None
    layers: str | None = None
    recompute: str = "none"
    method: str = "auto"
    compare_systems: bool = False
    num_stages: int = 4
    num_microbatches: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answer:
    """What was replayed, and how it went."""

    plan: Plan
    program: Program
    hardware: Hardware
    simulation: Simulation
    alone_ms: dict[str, float]
    """By adapter name: its makespan if it had the same stages to itself. Empty for a single adapter."""
    systems: tuple[SystemResult, ...] = ()


def answer(question: Question, *, progress: Progress) -> Answer:
    """Answer a question. Raises PlanError, TraceError or SimulationError; `progress` is told what runs, and how far."""
    plan = _plan(question)
    given = _given_program(question, plan)
    num_chunks = given.num_chunks if given else num_chunks_of(question.schedule or plan.schedule)
    profile = _profile(question, num_stages=plan.num_stages, num_chunks=num_chunks)
    hardware = Hardware(
        profile=profile,
        cluster=load_cluster(question.cluster) if question.cluster else Cluster(),
        kernels=_kernels(question.kernels),
        layers_per_stage=_layers(question.layers),
        recompute=recompute_mode(question.recompute),
    )
    method = _method(question.method)
    progress("building the program", 0.0)
    # Unasked, the very Program that the engine makes of the plan; a schedule asked for is chosen for this profile.
    chosen_for = profile if question.schedule else None
    program = given or build_program(plan, schedule=question.schedule, profile=chosen_for)
    # What could be run by posting receives early enough is simulated, whatever today's engine posts.
    check_program(program, plan, ahead=plan.num_stages + 1)
    progress("replaying it", 0.2)
    simulation = simulate(program, plan, hardware, method=method)
    progress("replaying each adapter alone", 0.5)
    alone = _alone_ms(plan, hardware, method=method) if len(plan.jobs) > 1 else {}
    systems: tuple[SystemResult, ...] = ()
    if question.compare_systems:
        systems = compare_systems(plan, hardware, method=method, progress=progress)
    progress("done", 1.0)
    return Answer(plan=plan, program=program, hardware=hardware, simulation=simulation, alone_ms=alone, systems=systems)


def _plan(question: Question) -> Plan:
    if question.plan is not None:
        if question.num_microbatches is not None:
            raise SimulationError(f"both a plan ({question.plan}) and --microbatches were given; drop one of them")
        return load_plan(question.plan)
    if question.num_microbatches is None or question.uniform is None:
        raise SimulationError("no plan was given; give a plan.json, or --uniform F,B with --microbatches and --stages")
    return textbook_plan(num_stages=question.num_stages, num_microbatches=question.num_microbatches)


def _given_program(question: Question, plan: Plan) -> Program | None:
    if question.program is None:
        return None
    if question.schedule is not None:
        raise SimulationError(f"both --program {question.program} and --schedule {question.schedule}: give one of them")
    try:
        text = question.program.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "no text"
        raise SimulationError(
            f"{question.program}: cannot be read ({why}); give a text such as program.txt of an output folder"
        ) from error
    return Program.from_text(
        text, num_stages=plan.num_stages, num_replicas=plan.num_replicas, schedule=question.program.stem
    )


def _profile(question: Question, *, num_stages: int, num_chunks: int) -> CostProfile:
    if question.profile is None and question.uniform is None:
        raise SimulationError(
            "no costs were given; give --profile, a file that loraplex profile wrote, or --uniform F,B, ms a microbatch"
        )
    if question.profile is not None and question.uniform is not None:
        raise SimulationError(
            f"--profile {question.profile} and --uniform {question.uniform}: give one of the two, and not both"
        )
    if question.uniform is not None:
        return parse_uniform(question.uniform, num_stages=num_stages, num_chunks=num_chunks)
    return load_profile(str(question.profile))


def _method(text: str) -> Method:
    for method in METHODS:
        if method == text:
            return method
    raise SimulationError(f"method='{text}' is unknown; choose one of {', '.join(METHODS)}")


def _kernels(text: str | None) -> Kernels | None:
    kinds: tuple[Kernels, ...] = get_args(Kernels)
    for kind in kinds:
        if kind == text:
            return kind
    if text is None:
        return None
    raise SimulationError(f"kernels='{text}' is unknown; choose one of {', '.join(kinds)}")


def _layers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise SimulationError(
            f"layers='{text}' must be numbers parted by commas, one a stage, such as 8,8,8,8"
        ) from None


def _alone_ms(plan: Plan, hardware: Hardware, *, method: Method) -> dict[str, float]:
    runs = sequential_packed(
        plan.jobs,
        num_stages=plan.num_stages,
        microbatch_tokens=plan.microbatch_tokens,
        pad_multiple=plan.pad_multiple,
    )
    return {
        alone.jobs[0].name: simulated_makespan_ms(
            build_program(alone, profile=hardware.profile), alone, hardware, method=method
        )
        for alone in runs.plans
    }
