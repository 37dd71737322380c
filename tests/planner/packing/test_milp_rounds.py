"""Rounds packed by the solver, one after another or side by side."""

from loraplex.planner.packing.grouping import balanced, head_tail
from loraplex.planner.packing.milp_rounds import pack_milp_rounds
from loraplex.planner.packing.pack_milp import MilpLimits
from loraplex.planner.packing.workload import Workload, workload_of
from loraplex.tests.random_jobs import jobs_of

HARD = [57, 52, 46, 44, 41, 40, 30, 25, 20, 20, 17]
"""Of a hundred each: greed needs five bins, four are enough."""


def hard_rounds() -> Workload:
    return workload_of(jobs_of([[HARD, HARD], [[100], [100]]]), microbatch_tokens=100)


def test_every_instance_is_told() -> None:
    bins, records = pack_milp_rounds(
        hard_rounds(), grouping=head_tail, limits=MilpLimits(), time_limit_s=60.0, workers=1
    )
    assert len(bins) == 10
    assert [record.instance for record in records] == [
        "step 0, adapters 1+0",
        "step 1, adapters 1+0",
    ]
    assert [record.num_microbatches for record in records] == [5, 5]


def test_workers_give_the_same() -> None:
    settings = {"grouping": balanced(2), "limits": MilpLimits(), "time_limit_s": 60.0}
    alone = pack_milp_rounds(hard_rounds(), workers=1, **settings)  # type: ignore[arg-type]
    assert pack_milp_rounds(hard_rounds(), workers=2, backend="threading", **settings) == alone  # type: ignore[arg-type]


def test_what_the_time_does_not_reach_keeps_its_greedy_packing() -> None:
    bins, records = pack_milp_rounds(
        hard_rounds(), grouping=balanced(2), limits=MilpLimits(), time_limit_s=0.0, workers=1
    )
    assert {record.status for record in records} == {"time of the plan was up, greedy kept"}
    assert sorted(item for row in bins for item in row) == list(range(24))


def test_progress_counts_the_instances() -> None:
    told: list[str] = []
    pack_milp_rounds(
        hard_rounds(),
        grouping=balanced(1),
        limits=MilpLimits(),
        time_limit_s=60.0,
        progress=lambda what, gap: told.append(what),
    )
    assert told == ["packing 1 of 2", "packing 2 of 2"]
