"""The study of small workloads counts what it says."""

from loraplex.planner.bench_cases import bench_lengths
from loraplex.planner.bench_exact import exact_study, study_as_json
from loraplex.planner.bench_table import study_table


def test_plans_lie_above_the_optimum_and_bounds_below() -> None:
    records = exact_study(lengths=bench_lengths(None), num_workloads=4, stages=(1, 3))
    assert [(record.family, record.num_stages) for record in records[:2]] == [("instructions", 1), ("instructions", 3)]
    assert len(records) == study_table(records).row_count == len(study_as_json(records)) == 10
    for record in records:
        assert 0 < record.proved <= record.workloads == 4
        assert record.plan_optimal <= record.proved
        assert (record.plan_optimal == record.proved) == (record.slots_above_optimum == 0)
        assert (record.bound_tight == record.proved) == (record.optimum_above_bound == 0)
        assert record.simple_bound_tight <= record.bound_tight
        assert record.optimum_above_bound <= record.optimum_above_simple_bound
