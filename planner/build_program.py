"""From a Plan to its Program: the schedules by name, and the choice between the two continuous 1F1B emitters."""

import re
from collections.abc import Callable, Sequence
from functools import partial

from ..traces.costs import CostProfile, CostTerms, PassCosts
from .costing import program_costs
from .dependencies import SlotDependencies, slot_dependencies
from .errors import PlanError
from .graph import ProgramGraph, program_graph
from .loads import Loads
from .plan import Plan
from .program import Program
from .recurrence import makespan_ms
from .schedules.assemble import assemble
from .schedules.flush import flushed, one_f_one_b_segment
from .schedules.gpipe import gpipe_segment
from .schedules.interleaved import interleaved_segment
from .schedules.one_f_one_b import greedy_rule, slot_rule
from .schedules.order import StageOrder
from .schedules.zb_h1 import zb_h1_segment

DEFAULT_SCHEDULE = "1f1b"


def build_program(plan: Plan, *, schedule: str | None = None, profile: CostProfile | None = None) -> Program:
    """The actions of every worker. `schedule` defaults to the plan's.

    "1f1b" emits both continuous 1F1B orders and keeps the one with the smaller makespan under `profile`, or, without
    one, under costs in proportion to tokens; the Program's `schedule` then says which: "1f1b-slots" or "1f1b-greedy".
    Every other name is emitted as it is. Raises PlanError for an unknown name or a plan that breaks its own order.
    """
    name = schedule or plan.schedule
    dependencies = slot_dependencies(plan)
    programs = [_emit(plan, dependencies, rule) for rule in rival_schedules(name)]
    if len(programs) == 1 or _alike(*programs):
        return programs[0]
    return choose_program([program_graph(program) for program in programs], plan, profile).program


def rival_schedules(name: str) -> tuple[str, ...]:
    """The emitters among which a schedule name leaves the choice."""
    return ("1f1b-slots", "1f1b-greedy") if name == DEFAULT_SCHEDULE else (name,)


def choose_program(
    graphs: Sequence[ProgramGraph], plan: Plan, profile: CostProfile | None, *, loads: Loads | None = None
) -> ProgramGraph:
    """The one with the smallest makespan under `profile`, or, without one, under costs in proportion to tokens."""
    if len(graphs) == 1 or _alike(*(graph.program for graph in graphs)):
        return graphs[0]
    profile = profile or token_profile(num_layers=plan.num_stages)
    loads = loads or Loads.of(plan.microbatches, jobs=plan.jobs, pad_multiple=plan.pad_multiple)
    costs = [program_costs(graph.program, plan, profile, graph=graph, loads=loads) for graph in graphs]
    return min(costs, key=makespan_ms).graph


def _alike(first: Program, *others: Program) -> bool:
    return all(left == right for other in others for left, right in zip(first.workers, other.workers, strict=True))


def token_profile(*, num_layers: int) -> CostProfile:
    """Costs in proportion to tokens, a backward twice a forward: for choosing an order where nothing was measured."""
    return CostProfile(
        name="by-tokens",
        origin="textbook",
        source="forward 1 ms per 1000 tokens and layer, backward twice that",
        num_layers=num_layers,
        forward=PassCosts(linears={"fused": CostTerms(per_token_ms=1e-3)}),
        backward=PassCosts(linears={"fused": CostTerms(per_token_ms=2e-3)}),
    )


def schedule_names() -> tuple[str, ...]:
    """All schedules by name, the default first; "interleaved-3" has three chunks a stage, and so on."""
    return (DEFAULT_SCHEDULE, *_emitters(1), "interleaved-2")


def check_schedule_name(name: str) -> None:
    """Raise PlanError for a name that no schedule has."""
    if name not in schedule_names() and num_chunks_of(name) == 1:
        raise PlanError(f"schedule '{name}' is unknown; choose one of {', '.join(schedule_names())}")


def num_chunks_of(name: str) -> int:
    """Model chunks that each stage holds under a schedule of this name."""
    found = re.fullmatch(r"interleaved-([2-9]|[1-9]\d)", name)
    return int(found.group(1)) if found else 1


def _emitters(num_stages: int) -> dict[str, Callable[[SlotDependencies], tuple[StageOrder, ...]]]:
    return {
        "1f1b-slots": partial(slot_rule, num_stages=num_stages),
        "1f1b-greedy": partial(greedy_rule, num_stages=num_stages),
        "1f1b-wide": partial(slot_rule, num_stages=num_stages, wide=True),
        "1f1b-flush": partial(flushed, emitter=partial(one_f_one_b_segment, num_stages=num_stages)),
        "gpipe": partial(flushed, emitter=partial(gpipe_segment, num_stages=num_stages)),
        "zb-h1": partial(flushed, emitter=partial(zb_h1_segment, num_stages=num_stages)),
    }


def _emit(plan: Plan, dependencies: SlotDependencies, name: str) -> Program:
    emitters = _emitters(plan.num_stages)
    num_chunks = num_chunks_of(name)
    if num_chunks > 1:
        emitter = partial(interleaved_segment, num_stages=plan.num_stages, num_chunks=num_chunks)
        orders = flushed(dependencies, emitter)
        return assemble(plan, dependencies, orders, schedule=name, num_chunks=num_chunks)
    check_schedule_name(name)
    return assemble(plan, dependencies, emitters[name](dependencies), schedule=name)
