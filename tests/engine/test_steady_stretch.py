"""The stretch without a rest: which microbatches, how often, and what of it is timed. Its times are made up here."""

import pytest
import torch

from loraplex.engine import stage_rounds, steady_stretch
from loraplex.engine.measure import run_round
from loraplex.engine.pool_tokens import PoolTokens
from loraplex.engine.profile_conditions import Condition, conditions_plan, draw_conditions
from loraplex.engine.profile_plan import measuring_program
from loraplex.engine.recorder import Recorder
from loraplex.engine.rendezvous import RendezvousTransport, Switchboard
from loraplex.engine.stage import Stage, make_stage_of
from loraplex.engine.stage_kinds import Setup, StageKind
from loraplex.engine.stage_rounds import StageRounds
from loraplex.engine.steady_stretch import steady_conditions, steady_rows
from loraplex.engine.tiny_model import write_tiny_model
from loraplex.engine.weight_source import FROM_FOLDER
from loraplex.planner.jobs import LoraSettings
from loraplex.planner.plan import Plan
from loraplex.planner.program import Action, ActionKind
from loraplex.traces.profile_points import points_table

LORAS = (LoraSettings(r=4), LoraSettings(r=4, lora_dropout=0.1))
KIND = StageKind(piece="stage", layers=1, every=1)


def condition(number: int, *lengths: int, adapters: tuple[int, ...] = (0,)) -> Condition:
    owners = tuple(adapters[place * len(adapters) // len(lengths)] for place in range(len(lengths)))
    return Condition(number=number, lengths=lengths, adapters=owners, target_share=0.5)


CONDITIONS = (
    condition(0, 8),
    condition(1, 16, 24, adapters=(0, 1)),
    condition(2, 48),
    condition(3, 24, 24, adapters=(0, 1)),
)


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return Setup(
        folder=write_tiny_model(tmp_path_factory.mktemp("model"), changes={"num_hidden_layers": 1, "hidden_size": 32}),
        weights=FROM_FOLDER,
        device=torch.device("cpu"),
        loras=LORAS,
        conditions=CONDITIONS,
        transport=RendezvousTransport(Switchboard(1, timeout_s=60), 0),
        num_workers=1,
        seconds=5.0,
        tell=lambda text: None,
    )


@pytest.fixture(scope="module")
def stage(setup: Setup) -> Stage:
    jobs = conditions_plan(CONDITIONS, LORAS, num_stages=3).jobs
    return make_stage_of(setup.folder, jobs, KIND.layout(), weights=FROM_FOLDER, device=setup.device)


def in_the_rounds(ms: float) -> list[dict[str, object]]:
    """Forward and backward of every condition, `ms` each; another kind of stage takes much longer."""
    load: dict[str, object] = {"tokens": 40, "squares": 800, "targets": 20, "adapters": 2, "dropped": 0}
    return [
        load
        | {"piece": piece, "pass": name, "recompute": recompute, "layers": layers, "condition": one.number, "ms": taken}
        for piece, recompute, layers, taken in (
            ("stage", "none", 1, ms),
            ("stage", "none", 2, 1e6),
            ("stage", "full", 1, 1e6),
            ("first", "none", 1, 1e6),
        )
        for name in ("forward", "backward")
        for one in CONDITIONS
    ]


def test_large_microbatches_of_several_samples_are_taken_as_far_as_there_are_any() -> None:
    assert [one.number for one in steady_conditions(CONDITIONS, every=1)] == [1, 3]
    assert [one.number for one in steady_conditions(CONDITIONS, every=2)] == [2]
    assert [one.number for one in steady_conditions(CONDITIONS, every=4)] == [0]
    drawn = draw_conditions(LORAS, capacity_tokens=16384)
    chosen = steady_conditions(drawn, every=2)
    assert len(chosen) > 3
    assert all(sum(one.lengths) >= 4000 and len(one.lengths) > 1 and one.number % 2 == 0 for one in chosen)


def test_what_is_timed_is_the_later_half_of_one_run(
    setup: Setup, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[Plan] = []

    def slower_and_slower(stage: Stage, plan: Plan, *, tokens: PoolTokens) -> list[tuple[Action, float]]:
        plans.append(plan)
        more = {ActionKind.FORWARD: 0.0, ActionKind.BACKWARD: 1.0, ActionKind.STEP: 0.0}
        return [(one, 100.0 * one.microbatch + more[one.kind]) for one in measuring_program(plan).workers[0]]

    monkeypatch.setattr(steady_stretch, "run_round", slower_and_slower)
    # A fifth of five seconds, and a turn of two microbatches takes 4 x 50 ms.
    rows = steady_rows(setup, KIND, stage, points_table(in_the_rounds(50.0)))
    (plan,) = plans
    assert [held.num_tokens() for held in plan.microbatches[:-2]] == [40, 48] * 5
    assert [(row["piece"], row["pass"], row["condition"], row["tokens"], row["rounds"]) for row in rows] == [
        ("steady", "forward", 1, 40, 3),
        ("steady", "backward", 1, 40, 3),
        ("steady", "forward", 3, 48, 3),
        ("steady", "backward", 3, 48, 3),
    ]
    # Of five turns the third to the fifth: of the first microbatch numbers 4, 6 and 8.
    assert [row["ms"] for row in rows] == [600.0, 601.0, 700.0, 701.0]


def test_two_turns_are_the_least_and_are_really_run(setup: Setup, stage: Stage) -> None:
    rows = steady_rows(setup, KIND, stage, points_table(in_the_rounds(1e6)))
    assert [(row["pass"], row["condition"], row["rounds"]) for row in rows] == [
        ("forward", 1, 1),
        ("backward", 1, 1),
        ("forward", 3, 1),
        ("backward", 3, 1),
    ]
    assert (points_table(rows)["ms"] > 0).all()


def test_the_first_microbatch_of_a_round_leads_and_is_not_timed(
    setup: Setup, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders: list[list[int]] = []

    def slow_at_first(
        stage: Stage, plan: Plan, *, tokens: PoolTokens, recorder: Recorder
    ) -> list[tuple[Action, float]]:
        sizes = [held.num_tokens() for held in plan.microbatches]
        orders.append(sizes[:-2])
        spans = run_round(stage, plan, tokens=tokens, recorder=recorder)
        # As many ms as tokens, but for the first.
        return [(action, float(sizes[action.microbatch]) if action.microbatch > 0 else 1e6) for action, _ in spans]

    monkeypatch.setattr(stage_rounds, "run_round", slow_at_first)
    rounds = StageRounds(setup, KIND, stage, CONDITIONS, again=1)
    for _ in range(4):
        rounds.run()
    assert all(order[0] == order[1] == 8 and len(order) == 5 for order in orders)
    rows = rounds.rows(with_step=False)
    assert [row["ms"] for row in rows] == [row["tokens"] for row in rows] == [8, 8, 40, 40, 48, 48, 48, 48]
