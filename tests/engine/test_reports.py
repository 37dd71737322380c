"""Steps are told in order, once it is known how they went."""

import math
from dataclasses import replace

import pytest
import torch

from loraplex.engine.errors import EngineError
from loraplex.engine.figures import Figures
from loraplex.engine.metrics import StepRecord
from loraplex.engine.reports import PendingStep, StepReports, what_broke
from loraplex.planner.jobs import OnNonfinite


def step(adapter: str, number: int) -> PendingStep:
    return PendingStep(adapter=adapter, step=number, learning_rate=0.5, tokens=7)


def figures(loss: float, total: float, *, update: float = 4.0, taken: bool = True) -> torch.Tensor:
    return torch.tensor([loss, total, update, float(taken), 0.0], dtype=torch.float64)


def told(mode: OnNonfinite) -> tuple[list[StepRecord], StepReports]:
    heard: list[StepRecord] = []
    return heard, StepReports(heard.append, Figures(), on_nonfinite=mode)


def test_a_step_is_told_with_its_norms() -> None:
    heard, reports = told("quarantine")
    reports.send(step("one", 3), figures(2.5, 9.0))
    (record,) = heard
    assert record == StepRecord(
        adapter="one", step=3, loss=2.5, learning_rate=0.5, grad_norm=3.0, update_norm=2.0, tokens=7, ms=record.ms
    )
    assert record.ms >= 0


def test_a_quarantined_adapter_is_told_once() -> None:
    heard, reports = told("quarantine")
    reports.send(step("one", 0), figures(math.nan, math.nan, update=0.0, taken=False))
    reports.send(step("two", 0), figures(1.0, 1.0))
    reports.send(step("one", 1), figures(1.0, 1.0, update=0.0, taken=False))
    assert [(record.adapter, record.step, record.state) for record in heard] == [
        ("one", 0, "quarantined"),
        ("two", 0, "taken"),
    ]
    assert what_broke(heard[0]) == "the loss is nan"


def test_each_skipped_step_is_told() -> None:
    heard, reports = told("skip")
    reports.send(step("one", 0), figures(1.0, math.inf, update=0.0, taken=False))
    reports.send(step("one", 1), figures(1.0, 1.0))
    assert [(record.step, record.state, record.grad_norm) for record in heard] == [
        (0, "skipped", math.inf),
        (1, "taken", 1.0),
    ]
    assert what_broke(heard[0]) == "the gradient norm is inf"


def test_a_rate_that_is_no_step_is_what_broke() -> None:
    heard, reports = told("skip")
    reports.send(replace(step("one", 0), learning_rate=1e39), figures(1.0, 4.0, taken=False))
    assert what_broke(heard[0]) == "the learning rate is 1e+39, more than float32 can add to a weight"


def test_an_adapter_that_stops_early_is_told_once() -> None:
    heard, reports = told("stop")
    for number in (5, 6):
        reports.send(step("one", number), torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0], dtype=torch.float64))
    assert [(record.step, record.state) for record in heard] == [(5, "stopped")]


def test_stop_names_adapter_step_and_mend() -> None:
    heard, reports = told("stop")
    with pytest.raises(
        EngineError,
        match=r"adapter 'one', step 4: the loss is inf; lower its learning_rate or look at its data, or train the "
        r"others on with on_nonfinite: quarantine",
    ):
        reports.send(step("one", 4), figures(math.inf, math.nan, taken=False))
    assert [record.step for record in heard] == [4]


def test_nothing_more_is_told_of_an_adapter_that_was_halted_before() -> None:
    heard: list[StepRecord] = []
    reports = StepReports(heard.append, Figures(), on_nonfinite="quarantine", halted=["one"])
    reports.send(step("one", 8), figures(1.0, 1.0, taken=False))
    assert heard == []
