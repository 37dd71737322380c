"""The MILP of one instance: equal to brute force, and never able to spoil a plan."""

import time
from collections.abc import Callable
from typing import Any

import pulp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loraplex.planner.packing.pack_greedy import occupied, pack_greedily
from loraplex.planner.packing.pack_milp import MilpLimits, pack_milp
from loraplex.planner.packing.workload import Workload, workload_of
from loraplex.tests.random_jobs import jobs_of

HARD = [57, 52, 46, 44, 41, 40, 30, 25, 20, 20, 17]
"""Of a hundred each: greed needs five bins, four are enough."""


def best_packing(workload: Workload) -> tuple[int, int]:
    """(fewest bins, emptiest possible last one) by trying every assignment."""
    items = list(range(len(workload.sizes)))
    best = (len(items) + 1, 0)

    def place(position: int, bins: list[list[int]]) -> None:
        nonlocal best
        if len(bins) > best[0]:
            return
        if position == len(items):
            best = min(best, (len(bins), min(occupied(workload, row) for row in bins)))
            return
        for row in bins:
            row.append(items[position])
            if occupied(workload, row) <= workload.capacity:
                place(position + 1, bins)
            row.pop()
        place(position + 1, [*bins, [items[position]]])

    place(0, [])
    return best


@settings(max_examples=25)
@given(
    chains=st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=3), min_size=1, max_size=3),
    pad_multiple=st.sampled_from((1, 1, 4)),
    solver=st.sampled_from(("highs", "cbc")),
)
def test_it_equals_brute_force(chains: list[list[int]], pad_multiple: int, solver: str) -> None:
    jobs = jobs_of([[lengths] for lengths in chains])
    workload = workload_of(jobs, microbatch_tokens=32, pad_multiple=pad_multiple)
    items = range(len(workload.sizes))
    result = pack_milp(workload, items, limits=MilpLimits(solver=solver))
    assert sorted(item for row in result.bins for item in row) == list(items)
    assert all(occupied(workload, row) <= workload.capacity for row in result.bins)
    assert (len(result.bins), occupied(workload, result.bins[-1])) == best_packing(workload)


@pytest.mark.parametrize("solver", ["highs", "cbc", "auto"])
def test_the_solver_improves_on_greed_and_says_so(solver: str) -> None:
    workload = workload_of(jobs_of([[HARD]]), microbatch_tokens=100)
    assert len(pack_greedily(workload, range(len(HARD)))) == 5
    result = pack_milp(workload, range(len(HARD)), limits=MilpLimits(solver=solver), instance="step 0")
    assert (len(result.bins), result.record.lower_bound, result.record.num_microbatches) == (4, 4, 4)
    assert result.record.instance == "step 0"
    assert result.record.status.startswith("bins: optimal, improved (")


def test_solving_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    workload = workload_of(jobs_of([[HARD]]), microbatch_tokens=100)
    for solver in ("highs", "cbc"):
        pack_milp(workload, range(len(HARD)), limits=MilpLimits(solver=solver))
    assert capfd.readouterr() == ("", "")


def test_a_node_limit_leaves_a_usable_answer() -> None:
    workload = workload_of(jobs_of([[HARD + HARD]]), microbatch_tokens=100)
    items = range(2 * len(HARD))
    for solver in ("highs", "cbc"):
        result = pack_milp(workload, items, limits=MilpLimits(solver=solver, max_nodes=1))
        assert sorted(item for row in result.bins for item in row) == list(items)
        assert "failed" not in result.record.status


def test_no_solver_is_called_where_greed_is_proved_best() -> None:
    workload = workload_of(jobs_of([[[6, 4, 7, 3]]]), microbatch_tokens=10)
    result = pack_milp(workload, range(4), limits=MilpLimits(), solver=Fake(fails))
    assert (len(result.bins), result.record.status) == (2, "greedy meets the bound")


class Fake(pulp.LpSolver):  # type: ignore[misc]
    """A solver that does whatever it is told to."""

    def __init__(self, act: Callable[[Any], int]) -> None:
        super().__init__()
        self.act = act

    def available(self) -> bool:
        return True

    def actualSolve(self, lp: Any, **_: object) -> int:  # noqa: N802
        return self.act(lp)


def fails(lp: Any) -> int:
    raise RuntimeError("segmentation fault, in spirit")


def finds_nothing(lp: Any) -> int:
    lp.assignStatus(pulp.LpStatusNotSolved)
    return int(pulp.LpStatusNotSolved)


def calls_it_infeasible(lp: Any) -> int:
    lp.assignStatus(pulp.LpStatusInfeasible)
    return int(pulp.LpStatusInfeasible)


def fills_one_bin_with_everything(lp: Any) -> int:
    for variable in lp.variables():
        variable.varValue = float(variable.name.endswith("_0"))
    lp.assignStatus(pulp.LpStatusOptimal)
    return int(pulp.LpStatusOptimal)


def drops_every_sample(lp: Any) -> int:
    for variable in lp.variables():
        variable.varValue = 0.0
    lp.assignStatus(pulp.LpStatusOptimal)
    return int(pulp.LpStatusOptimal)


def says_not_a_number(lp: Any) -> int:
    for variable in lp.variables():
        variable.varValue = float("nan")
    return int(pulp.LpStatusOptimal)


def is_missing(lp: Any) -> int:
    raise pulp.PulpSolverError("PULP_CBC_CMD: Not Available")


def is_slow(lp: Any) -> int:
    time.sleep(0.01)
    return finds_nothing(lp)


@pytest.mark.parametrize(
    ("act", "status"),
    [
        (fails, "bins: solver failed (RuntimeError), greedy kept"),
        (is_missing, "bins: solver failed (PulpSolverError), greedy kept"),
        (finds_nothing, "bins: not solved, no better than greedy (given solver)"),
        (is_slow, "bins: not solved, no better than greedy (given solver)"),
        (calls_it_infeasible, "bins: infeasible, no better than greedy (given solver)"),
        (fills_one_bin_with_everything, "bins: optimal without a usable answer (given solver), greedy kept"),
        (drops_every_sample, "bins: optimal without a usable answer (given solver), greedy kept"),
        (says_not_a_number, "bins: not solved without a usable answer (given solver), greedy kept"),
    ],
)
def test_a_bad_solver_leaves_the_greedy_answer(act: Callable[[Any], int], status: str) -> None:
    workload = workload_of(jobs_of([[HARD]]), microbatch_tokens=100)
    greedy = pack_greedily(workload, range(len(HARD)))
    result = pack_milp(workload, range(len(HARD)), limits=MilpLimits(), solver=Fake(act))
    assert [list(row) for row in result.bins] == greedy
    assert result.record.status.split("; ")[0] == status


def test_time_out() -> None:
    workload = workload_of(jobs_of([[HARD]]), microbatch_tokens=100)
    limits = MilpLimits(solver="cbc", time_limit_s=1e-3, max_nodes=1)
    result = pack_milp(workload, range(len(HARD)), limits=limits)
    assert len(result.bins) <= len(pack_greedily(workload, range(len(HARD))))


def test_an_interrupt_is_not_swallowed() -> None:
    def interrupt(lp: Any) -> int:
        raise KeyboardInterrupt

    workload = workload_of(jobs_of([[HARD]]), microbatch_tokens=100)
    with pytest.raises(KeyboardInterrupt):
        pack_milp(workload, range(len(HARD)), limits=MilpLimits(), solver=Fake(interrupt))
