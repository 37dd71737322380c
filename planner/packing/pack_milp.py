"""The two-stage packing MILP of one instance, through PuLP: fewest bins, then the emptiest possible last one.

The formulation carries the load (measured on 22 real instances: HiGHS 1 to 110 ms where the published model, with as
many bins as samples and a big-M minimum, runs into its limits): only as many bins as greed found, the first `lower` of
them open, the i-th largest sample only in bins up to i, and in stage 2 the emptiest bin is named, not searched.

The solver is a guest: missing, late, crashed or wrong, the greedy answer stands and the record says so.
"""

import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from time import perf_counter
from typing import Any

from ..plan import SolverRecord
from .pack_greedy import Bins, instance_bound, occupied, pack_greedily
from .workload import Workload

SOLVERS = ("auto", "cbc", "highs")
_NODES = 2000
"""Nodes a stage may branch on: a limit that gives the same answer on every machine, unlike seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MilpLimits:
    """What one instance may cost. The node limit strikes first, except on very slow machines."""

    solver: str = "auto"
    """cbc, highs, or auto: HiGHS where highspy is installed, else CBC."""
    time_limit_s: float = 5.0
    max_nodes: int = _NODES


@dataclass(frozen=True, slots=True, kw_only=True)
class PackResult:
    """Bins of one instance, the emptiest last, and what the solver did for them."""

    bins: tuple[tuple[int, ...], ...]
    record: SolverRecord


def pack_milp(
    workload: Workload,
    items: Sequence[int],
    *,
    limits: MilpLimits,
    instance: str = "",
    solver: Any = None,
) -> PackResult:
    """The best packing found within the limits: never worse than the greedy one, from which it starts.

    `solver` is a PuLP solver to use instead of `limits.solver`, for tests.
    """
    start = perf_counter()
    bins = pack_greedily(workload, items)
    lower = instance_bound(workload, items)
    statuses = []
    if len(bins) == lower:
        statuses.append("greedy meets the bound")
    else:
        found, status = _solve(workload, items, bins=bins, lower=lower, stage=1, limits=limits, solver=solver)
        statuses.append(f"bins: {status}")
        bins = found or bins
    spill = max(sum(workload.sizes[item] for item in items) - (len(bins) - 1) * workload.capacity, 1)
    if len(bins) > 1 and occupied(workload, bins[-1]) > workload.padded(spill):
        found, status = _solve(workload, items, bins=bins, lower=lower, stage=2, limits=limits, solver=solver)
        statuses.append(f"last bin: {status}")
        bins = found or bins
    return PackResult(
        bins=tuple(tuple(row) for row in bins),
        record=SolverRecord(
            instance=instance,
            status="; ".join(statuses),
            num_microbatches=len(bins),
            lower_bound=lower,
            seconds=perf_counter() - start,
        ),
    )


def _solve(
    workload: Workload, items: Sequence[int], *, bins: Bins, lower: int, stage: int, limits: MilpLimits, solver: Any
) -> tuple[Bins | None, str]:
    """Better bins, or None and why not."""
    try:
        chosen, name = (solver, "given solver") if solver is not None else _solver(limits)
        model, place = _model(workload, items, bins=bins, lower=lower, stage=stage)
        status = _run(model, chosen)
        found = _read(place, num_bins=len(bins))
    except KeyboardInterrupt:
        raise
    except Exception as error:  # whatever a guest does, the plan must stand
        return None, f"solver failed ({type(error).__name__}), greedy kept"
    if found is None or not _is_packing(workload, items, found):
        return None, f"{status} without a usable answer ({name}), greedy kept"
    found.sort(key=lambda row: -occupied(workload, row))
    if _score(workload, found) >= _score(workload, bins):
        return None, f"{status}, no better than greedy ({name})"
    return found, f"{status}, improved ({name})"


def _run(model: Any, solver: Any) -> str:
    """Solve and say how it ended. The values stand in the model's variables."""
    import pulp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model.solve(solver)
        except KeyError:
            # PuLP 3.3 knows no name for HiGHS's status at a node limit; the best solution so far is there all the same.
            values = model.solverModel.getSolution().col_value
            for variable in model.variables():
                variable.varValue = values[variable.index]
            return "node limit"
    return str(pulp.LpStatus.get(model.status, model.status)).lower()


def _score(workload: Workload, bins: Bins) -> tuple[int, int]:
    return len(bins), occupied(workload, bins[-1])


def _solver(limits: MilpLimits) -> tuple[Any, str]:
    import pulp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if limits.solver == "highs" or (limits.solver == "auto" and pulp.HiGHS().available()):
            _let_highs_greet()
            nodes = {"mip_max_nodes": limits.max_nodes}
            return pulp.HiGHS(msg=False, threads=1, timeLimit=limits.time_limit_s, **nodes), "HiGHS"
        return (
            pulp.PULP_CBC_CMD(
                msg=False, threads=1, timeLimit=limits.time_limit_s, warmStart=True, maxNodes=limits.max_nodes
            ),
            "CBC",
        )


@cache
def _let_highs_greet() -> None:
    """HiGHS 1.16 prints its licence on stdout when first made, whatever its options; that would spoil `--json`."""
    import highspy

    make: Any = highspy.Highs
    sys.stdout.flush()
    kept = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        make()
    finally:
        os.dup2(kept, 1)
        os.close(nowhere)
        os.close(kept)


def _model(workload: Workload, items: Sequence[int], *, bins: Bins, lower: int, stage: int) -> tuple[Any, Any]:
    """Stage 1 minimises the open bins; stage 2, with all bins open, the load of the last one."""
    import pulp

    model = pulp.LpProblem(f"pack{stage}", pulp.LpMinimize)
    ordered = sorted(items, key=lambda item: (-workload.sizes[item], item))
    last = len(bins) - 1
    place = {
        (item, number): pulp.LpVariable(f"x{item}_{number}", cat="Binary")
        for position, item in enumerate(ordered)
        for number in range(len(bins))
        # Bins are alike: order them by their largest sample. In stage 2 the last one is special and takes any.
        if number <= position or (stage == 2 and number == last)
    }
    for item in ordered:
        model += pulp.lpSum(place[item, number] for number in range(len(bins)) if (item, number) in place) == 1
    opened = [
        1 if stage == 2 or number < lower else pulp.LpVariable(f"y{number}", cat="Binary")
        for number in range(len(bins))
    ]
    loads = [_load(model, workload, ordered, place=place, number=number) for number in range(len(bins))]
    for number, load in enumerate(loads):
        model += load <= workload.capacity * opened[number]
    for number in range(max(lower, 1), len(bins)):
        if stage == 1:
            model += opened[number] <= opened[number - 1]
    model.setObjective(pulp.lpSum(opened[lower:]) if stage == 1 else pulp.lpSum([loads[last]]))
    start = _canonical(workload, bins, stage=stage)
    for (item, number), variable in place.items():
        variable.setInitialValue(float(item in start[number]))
    for variable in opened:
        if not isinstance(variable, int):
            variable.setInitialValue(1.0)
    return model, place


def _load(model: Any, workload: Workload, ordered: Sequence[int], *, place: Any, number: int) -> Any:
    """Room taken in one bin; with padding an integer multiple per adapter, kept above its tokens."""
    import pulp

    inside = [item for item in ordered if (item, number) in place]
    if workload.pad_multiple == 1:
        return pulp.lpSum(workload.sizes[item] * place[item, number] for item in inside)
    total = []
    for adapter in dict.fromkeys(workload.samples[item].adapter for item in inside):
        blocks = pulp.LpVariable(f"k{adapter}_{number}", lowBound=0, cat="Integer")
        own = [item for item in inside if workload.samples[item].adapter == adapter]
        model += (
            pulp.lpSum(workload.sizes[item] * place[item, number] for item in own) <= workload.pad_multiple * blocks
        )
        total.append(workload.pad_multiple * blocks)
    return pulp.lpSum(total)


def _canonical(workload: Workload, bins: Bins, *, stage: int) -> list[set[int]]:
    """The greedy bins in the order the model asks for: by largest sample; in stage 2 the last one stays last."""

    def largest(row: Sequence[int]) -> tuple[int, int]:
        return min((-workload.sizes[item], item) for item in row)

    free = sorted(bins[:-1] if stage == 2 else bins, key=largest)
    return [set(row) for row in (*free, *(bins[-1:] if stage == 2 else ()))]


def _read(place: Any, *, num_bins: int) -> Bins | None:
    found: Bins = [[] for _ in range(num_bins)]
    for (item, number), variable in place.items():
        if variable.varValue is None:
            return None
        if variable.varValue > 0.5:
            found[number].append(item)
    return [row for row in found if row]


def _is_packing(workload: Workload, items: Sequence[int], bins: Bins) -> bool:
    placed = sorted(item for row in bins for item in row)
    return placed == sorted(items) and all(occupied(workload, row) <= workload.capacity for row in bins)
