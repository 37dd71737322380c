"""make_plan: every strategy is right, auto is best, and the same input gives the same plan."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from loraplex.planner import make_plan as make_plan_module
from loraplex.planner.dependencies import plan_slots
from loraplex.planner.errors import PlanError
from loraplex.planner.jobs import Job, job_from_lengths
from loraplex.planner.make_plan import make_plan
from loraplex.planner.packing import candidates
from loraplex.planner.packing import search as search_module
from loraplex.planner.packing.exact import fewest_slots
from loraplex.planner.packing.lower_bounds import batch_bounds
from loraplex.planner.plan import Plan
from loraplex.planner.plan_file import plan_fingerprint
from loraplex.planner.plan_report import PlanFigures, plan_figures
from loraplex.planner.systems import lorafusion
from loraplex.tests.random_jobs import Request, jobs_of, requests
from loraplex.traces.costs import CostProfile, CostTerms, PassCosts, uniform_profile


def plan_of(request: Request, **settings: Any) -> Plan:
    return make_plan(
        request.jobs,
        num_stages=request.num_stages,
        microbatch_tokens=request.microbatch_tokens,
        num_replicas=request.num_replicas,
        pad_multiple=request.pad_multiple,
        **settings,
    )


def uneven_jobs(*, seed: int = 1) -> tuple[Job, ...]:
    """Four adapters of different lengths, batch sizes and numbers of steps."""
    jobs = []
    for adapter, (size, count, longest) in enumerate(((4, 30, 90), (8, 60, 40), (2, 9, 100), (5, 27, 15))):
        lengths = [1 + (seed * 7919 + adapter * 104729 + index * 1299709) % longest for index in range(count)]
        jobs.append(job_from_lengths(adapter=adapter, name=f"a{adapter}", lengths=lengths, global_batch_size=size))
    return tuple(jobs)


@pytest.mark.parametrize("strategy", ["greedy", "stream", "auto"])
@settings(max_examples=60)
@given(request=requests(max_replicas=2))
def test_every_plan_verifies_and_its_gap_is_never_negative(strategy: str, request: Request) -> None:
    plan = plan_of(request, strategy=strategy)
    assert plan.verify() == ()
    assert plan_slots(plan) >= plan.lower_bound_slots > 0


@settings(max_examples=15)
@given(request=requests(max_adapters=3, max_batches=2, max_replicas=2))
def test_milp_plans_verify(request: Request) -> None:
    plan = plan_of(request, strategy="milp", time_limit_s=5.0)
    assert plan.verify() == ()
    assert plan_slots(plan) >= plan.lower_bound_slots
    assert plan.solver


@settings(max_examples=80)
@given(request=requests(max_adapters=3, max_batches=3, max_samples=3))
def test_small_plans_take_the_fewest_slots_there_are(request: Request) -> None:
    workload = request.workload()
    if len(workload.sizes) <= 10:
        bins, proved = fewest_slots(workload, bounds=batch_bounds(workload), at_least=1, below=10**6, max_nodes=50_000)
        assert proved
        assert bins is not None
        assert plan_slots(plan_of(request)) == workload.num_slots(bins)


@settings(max_examples=40)
@given(request=requests())
def test_auto_is_never_worse_than_any_other_strategy_or_the_published_planner(request: Request) -> None:
    best = plan_slots(plan_of(request))
    for strategy in ("greedy", "stream"):
        assert best <= plan_slots(plan_of(request, strategy=strategy))
    published = lorafusion(
        request.jobs,
        num_stages=request.num_stages,
        microbatch_tokens=request.microbatch_tokens,
        pad_multiple=request.pad_multiple,
    )
    assert best <= plan_slots(published.plans[0])


def test_the_plan_says_what_it_was_made_for() -> None:
    jobs = jobs_of([[[6, 5], [7]], [[4]]])
    plan = make_plan(
        jobs, num_stages=2, microbatch_tokens=10, schedule="gpipe", data_fingerprint="ab", strategy="stream"
    )
    assert (plan.jobs, plan.num_stages, plan.microbatch_tokens, plan.schedule, plan.data_fingerprint) == (
        jobs,
        2,
        10,
        "gpipe",
        "ab",
    )
    assert (plan.strategy, plan.lower_bound_slots, plan_slots(plan)) == ("stream", 4, 4)


def test_a_wide_warm_up_is_planned_for() -> None:
    # Three stages keep five microbatches in flight: the long chain's steps stand five slots apart, not three.
    jobs = jobs_of([[[9], [9]], *([[[8]]] * 6)])
    plan = make_plan(jobs, num_stages=3, microbatch_tokens=10, schedule="1f1b-wide")
    places = [index for index, row in enumerate(plan.microbatches) if row.samples[0].adapter == 0]
    assert places[1] - places[0] >= 5
    assert plan_figures(plan) == PlanFigures(num_microbatches=8, slots=8, stall_slots=0, lower_bound=8)
    assert plan.verify() == ()


def test_the_same_input_gives_the_same_plan() -> None:
    plans = [make_plan(uneven_jobs(), num_stages=3, microbatch_tokens=120) for _ in range(2)]
    assert plans[0] == plans[1]
    assert plan_fingerprint(plans[0]) == plan_fingerprint(plans[1])


@pytest.mark.parametrize("strategy", ["auto", "milp"])
def test_workers_do_not_change_the_plan(strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_module, "PARALLEL_ITEMS", 1)
    request: dict[str, Any] = {"num_stages": 3, "microbatch_tokens": 120, "strategy": strategy}
    alone = make_plan(uneven_jobs(), workers=1, **request)
    together = make_plan(uneven_jobs(), workers=2, backend="threading", **request)
    assert plan_fingerprint(together) == plan_fingerprint(alone)


def test_microbatches_as_objective() -> None:
    # Two slots hold everything, but a0's second step then waits; four microbatches would not.
    jobs = jobs_of([[[4], [4]], [[6]], [[6]]])
    fewest = make_plan(jobs, num_stages=2, microbatch_tokens=10, objective="microbatches")
    assert len(fewest.microbatches) == 2
    assert fewest.verify() == ()


def by_squares() -> CostProfile:
    """Costs that grow with the square of a sample's length, as attention's do."""
    return CostProfile(
        name="squares",
        origin="textbook",
        source="for this test",
        num_layers=4,
        forward=PassCosts(linears={"fused": CostTerms(per_square_ms=1.0)}),
        backward=PassCosts(linears={"fused": CostTerms(per_square_ms=2.0)}),
    )


def test_a_profile_ranks_by_predicted_makespan() -> None:
    from loraplex.planner.packing.objective import predicted_makespan_ms

    jobs = uneven_jobs()
    plain = make_plan(jobs, num_stages=2, microbatch_tokens=120)
    priced = make_plan(jobs, num_stages=2, microbatch_tokens=120, profile=by_squares())
    assert priced.verify() == ()
    assert predicted_makespan_ms(priced, by_squares()) <= predicted_makespan_ms(plain, by_squares())


def test_replicas_are_balanced_in_cost() -> None:
    jobs = jobs_of([[[7, 1, 1, 1, 6, 4]]])
    plan = make_plan(jobs, num_stages=1, microbatch_tokens=10, num_replicas=2)
    assert [row.num_tokens() for row in plan.microbatches] == [10, 10]
    easy = make_plan(jobs_of([[[5, 4, 1]]]), num_stages=1, microbatch_tokens=10, num_replicas=2)
    assert sorted(row.num_tokens() for row in easy.microbatches) == [5, 5]


def test_fair_bounds_the_worst_slowdown() -> None:
    # One long adapter and one short one: shortest makespan lets the short one wait, fairness does not.
    jobs = jobs_of([[[9]] * 8, [[9]]])
    plain = make_plan(jobs, num_stages=1, microbatch_tokens=10)
    fair = make_plan(jobs, num_stages=1, microbatch_tokens=10, objective="fair")
    assert [row.samples[0].adapter for row in plain.microbatches].index(1) == 8
    assert [row.samples[0].adapter for row in fair.microbatches].index(1) == 0
    assert fair.verify() == ()


def test_fair_keeps_weights_and_deadlines() -> None:
    jobs = jobs_of([[[9]] * 4, [[9]] * 4])
    heavy = (jobs[0], replace(jobs[1], weight=4.0))
    order = make_plan(heavy, num_stages=1, microbatch_tokens=10, objective="fair").microbatches
    assert [row.samples[0].adapter for row in order] == [1, 1, 1, 1, 0, 0, 0, 0]
    profile = uniform_profile(forward_ms=1.0, backward_ms=1.0, num_stages=1)
    urgent = (replace(jobs[0], deadline_ms=8.0), jobs[1])
    order = make_plan(urgent, num_stages=1, microbatch_tokens=10, objective="fair", profile=profile).microbatches
    assert [row.samples[0].adapter for row in order] == [0, 0, 0, 0, 1, 1, 1, 1]
    with pytest.raises(PlanError, match=r"'a0' has deadline_ms=8\.0, but without a cost profile"):
        make_plan(urgent, num_stages=1, microbatch_tokens=10, objective="fair")


def test_progress_tells_the_gap() -> None:
    told: list[tuple[str, float]] = []
    make_plan(uneven_jobs(), num_stages=3, microbatch_tokens=120, progress=lambda what, gap: told.append((what, gap)))
    assert told
    assert all(what.startswith("tried ") and gap >= 0 for what, gap in told)
    assert [gap for _, gap in told] == sorted((gap for _, gap in told), reverse=True)


def test_a_time_limit_that_struck_is_noted() -> None:
    plan = make_plan(uneven_jobs(), num_stages=3, microbatch_tokens=120, time_limit_s=1e-9)
    assert plan.verify() == ()
    assert [record.status for record in plan.solver] == ["time limit struck after 1 candidate"]


def test_ctrl_c_keeps_the_best_plan_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    follow = candidates.follow

    def interrupted(*args: Any, **settings: Any) -> list[list[int]]:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return follow(*args, **settings)

    monkeypatch.setattr(search_module, "follow", interrupted)
    plan = make_plan(uneven_jobs(), num_stages=3, microbatch_tokens=120)
    assert plan.verify() == ()
    assert [record.status for record in plan.solver] == ["interrupted after 3 candidates; the best so far was kept"]


def test_ctrl_c_before_the_first_plan_ends_planning(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any, **settings: Any) -> list[list[int]]:
        raise KeyboardInterrupt

    monkeypatch.setattr(search_module, "follow", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_plan(uneven_jobs(), num_stages=3, microbatch_tokens=120)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategy": "magic"}, "strategy='magic' is unknown; choose one of auto, milp, greedy, stream"),
        ({"objective": "beauty"}, "objective='beauty' is unknown"),
        ({"solver": "gurobi"}, "solver='gurobi' is unknown; choose one of auto, cbc, highs"),
        ({"objective": "fair", "strategy": "milp"}, "objective=fair is planned by streaming; strategy='milp' must be"),
        ({"time_limit_s": 0.0}, "time_limit_s=0.0 must be above 0"),
        ({"time_limit_s": float("nan")}, "time_limit_s=nan must be above 0"),
        ({"schedule": "waltz"}, "schedule 'waltz' is unknown; choose one of 1f1b, 1f1b-slots"),
        ({"num_replicas": 10**9}, "num_replicas=1000000000 are 1000000000 processes; 65536 are the most"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        make_plan(uneven_jobs(), **({"num_stages": 1, "microbatch_tokens": 120} | settings))


def test_planning_imports_neither_torch_nor_triton() -> None:
    root = Path(make_plan_module.__file__).parent.parent / ".pythonpath"
    script = (
        f"import sys, json; sys.path.insert(0, {str(root)!r})\n"
        "from loraplex.planner.jobs import job_from_lengths\n"
        "from loraplex.planner.make_plan import make_plan\n"
        "job = job_from_lengths(adapter=0, name='a', lengths=[57, 52, 46, 44, 41, 40, 30, 25, 20, 20, 17],\n"
        "                       global_batch_size=11)\n"
        "plan = make_plan([job], num_stages=2, microbatch_tokens=100, strategy='milp')\n"
        "print(json.dumps([len(plan.microbatches), sorted({'torch', 'triton'} & set(sys.modules))]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [4, []]
