"""Does a run fit into its devices? What it needs, which recomputation it takes, and what to change if it does not."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..traces.costs import MemoryCosts, RecomputeMode, split_layers
from ..traces.memory_costs import RECOMPUTE_MODES
from .build_program import build_program
from .errors import PlanError
from .gpus import Gpus
from .graph import program_graph
from .loads import Loads
from .make_plan import make_plan
from .plan import Plan
from .stage_memory import StageMemory, peak_memory

GIB = 2**30
SPARE = 0.04
"""Part of a device's memory that a choice of recomputation leaves free: estimates are within 5 %."""
_PLANNING_S = 5.0
"""Most seconds for planning anew under a change that is only proposed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a run needs of its devices under one way of recomputing."""

    recompute: RecomputeMode
    stages: tuple[StageMemory, ...]
    """Of each stage its worker (of all replicas) with the highest peak."""

    def worst(self) -> StageMemory:
        """The stage that needs most."""
        return max(self.stages, key=lambda stage: stage.peak_bytes())

    def peak_bytes(self) -> float:
        """What that stage needs."""
        return self.worst().peak_bytes()


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Something a user could change, and what the worst stage would then need."""

    what: str
    """As one would write it into the job file."""
    peak_bytes: float
    share_bytes: float
    """What each stage may then take; more where fewer stages share a GPU."""

    @property
    def fits(self) -> bool:
        """Whether that is enough."""
        return self.peak_bytes <= self.share_bytes


def needed(
    plan: Plan,
    *,
    memory: MemoryCosts,
    num_layers: int,
    recompute: RecomputeMode,
    layers_per_stage: Sequence[int] | None = None,
) -> Need:
    """What running this plan takes. Raises PlanError or TraceError where the layers cannot be cut so."""
    graph = program_graph(build_program(plan))
    num_parts = plan.num_stages * graph.program.num_chunks
    workers = peak_memory(
        graph,
        memory=memory,
        layers=layers_per_stage or split_layers(num_layers, num_parts),
        loads=Loads.of(plan.microbatches, jobs=plan.jobs, pad_multiple=plan.pad_multiple),
        num_adapters=len(plan.jobs),
        recompute=recompute,
    )
    stages = tuple(
        max((held for held in workers if held.stage == stage), key=lambda held: held.peak_bytes())
        for stage in range(plan.num_stages)
    )
    return Need(recompute=recompute, stages=stages)


def cheapest_that_fits(plan: Plan, *, memory: MemoryCosts, num_layers: int, asked: RecomputeMode | None = None) -> Need:
    """The need under the fastest recomputation that fits into `memory.capacity_bytes` with some to spare.

    Under the last if none does. `asked` leaves no choice. A way that a profile does not know (it keeps as much as the
    one before) is passed over.
    """
    modes = (asked,) if asked is not None else _known_modes(memory)
    for mode in modes:
        need = needed(plan, memory=memory, num_layers=num_layers, recompute=mode)
        if need.peak_bytes() <= memory.capacity_bytes * (1 - SPARE):
            break
    return need


def changes(
    plan: Plan,
    need: Need,
    *,
    memory: MemoryCosts,
    gpus: Gpus,
    num_layers: int,
    four_bit: MemoryCosts | None = None,
) -> tuple[Change, ...]:
    """What would help, each by itself and with its number, in the order of what it costs the user.

    Twice the stages as far as there is a GPU for each, one for each where stages share them. Where none is enough, all
    of them together come last. `four_bit`: the memory with the base model in 4 bits, where it could be.
    """

    def change(what: str, other: Plan, *, mode: RecomputeMode = need.recompute, costs: MemoryCosts = memory) -> Change:
        peak = needed(other, memory=costs, num_layers=num_layers, recompute=mode).peak_bytes()
        return Change(what=what, peak_bytes=peak, share_bytes=gpus.share_bytes(other.num_workers()))

    modes = _known_modes(memory)
    further = modes[modes.index(need.recompute) + 1 :] if need.recompute in modes else ()
    found = [change(f"recompute: {mode}", plan, mode=mode) for mode in further]
    smaller, stages = _smaller_microbatches(plan), _other_stages(plan, gpus, num_layers=num_layers)
    if smaller < plan.microbatch_tokens:
        found.append(change(f"microbatch_tokens: {smaller}", _planned(plan, microbatch_tokens=smaller)))
    if stages != plan.num_stages:
        found.append(change(f"pipeline.stages: {stages}", _planned(plan, num_stages=stages)))
    if four_bit is not None:
        found.append(change("load_in_4bit: true", plan, costs=four_bit))
    if len(found) > 1 and not any(one.fits for one in found):
        every = " and ".join(one.what for one in found[max(0, len(further) - 1) :])
        other = _planned(plan, microbatch_tokens=smaller, num_stages=stages)
        found.append(change(every, other, mode=(need.recompute, *further)[-1], costs=four_bit or memory))
    return tuple(found)


def check_fits(plan: Plan, need: Need, found: Sequence[Change], *, gpus: Gpus) -> None:
    """Raise PlanError with numbers and mends where the worst stage needs more than it may take of its device."""
    worst, share_bytes = need.worst(), gpus.share_bytes(plan.num_workers())
    if worst.peak_bytes() <= share_bytes:
        return
    mends = [change for change in found if change.fits] or list(found)
    listed = "; ".join(f"{change.what} would need {amount_text(change, share_bytes=share_bytes)}" for change in mends)
    helps = "one of these fits" if mends and mends[0].fits else "none of these is enough"
    raise PlanError(
        f"stage {worst.stage} of {plan.num_stages} would need {gib(worst.peak_bytes())} with "
        f"recompute={need.recompute} ({memory_text(worst)}), but {share_text(plan, gpus)}; "
        + (f"{helps}: {listed}" if mends else "take a device with more memory")
    )


def memory_text(stage: StageMemory) -> str:
    """The parts of a stage's peak, in one line."""
    parts = (
        ("weights", stage.weights_bytes),
        ("adapters", stage.adapters_bytes),
        (f"activations of {stage.num_in_flight} in flight", stage.activations_bytes),
        ("head", stage.logits_bytes),
        ("in passing", stage.passing_bytes),
        ("graphs", stage.graphs_bytes),
        ("overhead", stage.overhead_bytes),
    )
    return ", ".join(f"{name} {gib(held)}" for name, held in parts if held)


def share_text(plan: Plan, gpus: Gpus) -> str:
    """What a stage may take, and why no more: the end of a sentence about it."""
    num_workers = plan.num_workers()
    sharing, share = gpus.num_sharing(num_workers), gib(gpus.share_bytes(num_workers))
    return f"its device has {share}" if sharing == 1 else f"{sharing} stages share a GPU, which leaves each {share}"


def amount_text(change: Change, *, share_bytes: float) -> str:
    """What a change would need, and of how much where that is no longer `share_bytes`."""
    needs = gib(change.peak_bytes)
    return needs if change.share_bytes == share_bytes else f"{needs} of then {gib(change.share_bytes)}"


def gib(num_bytes: float) -> str:
    """Bytes in GiB, as people read device memory; small ones in MiB."""
    return f"{num_bytes / GIB:.1f} GiB" if num_bytes >= GIB / 10 else f"{num_bytes / 2**20:.1f} MiB"


def _smaller_microbatches(plan: Plan) -> int:
    # Half as much, but the longest sample must find room.
    longest = max(sample.num_tokens for batch in plan.microbatches for sample in batch.samples)
    padded = -(-longest // plan.pad_multiple) * plan.pad_multiple
    return min(plan.microbatch_tokens, max(padded, plan.microbatch_tokens // 2))


def _other_stages(plan: Plan, gpus: Gpus, *, num_layers: int) -> int:
    # More stages on the same GPUs share the same memory, and each brings its own context.
    most = gpus.most_stages(plan.num_replicas)
    return min(2 * plan.num_stages, num_layers, most or num_layers)


def _known_modes(memory: MemoryCosts) -> tuple[RecomputeMode, ...]:
    if memory.selective_bytes_per_token_layer:
        return RECOMPUTE_MODES
    return ("none", "full")


def _planned(plan: Plan, *, microbatch_tokens: int | None = None, num_stages: int | None = None) -> Plan:
    # A quick plan will do: what is in flight depends on the stages and on how full microbatches are, little on more.
    return make_plan(
        plan.jobs,
        num_stages=num_stages or plan.num_stages,
        num_replicas=plan.num_replicas,
        microbatch_tokens=microbatch_tokens or plan.microbatch_tokens,
        pad_multiple=plan.pad_multiple,
        schedule=plan.schedule,
        strategy="stream",
        time_limit_s=_PLANNING_S,
    )
