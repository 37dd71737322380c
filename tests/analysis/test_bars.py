"""Bars of a timeline, and the image of more bars than can be drawn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraplex.analysis.bars import Bars, bars_of, density_image
from loraplex.analysis.style import adapter_colour, tint
from loraplex.planner.plan import Plan
from loraplex.traces.timeline import Timeline

from .conftest import MakeTimeline


def rows(bars: Bars) -> list[tuple[int, float, float, float, float]]:
    columns = (bars.row, bars.left_ms, bars.right_ms, bars.low, bars.high)
    return [tuple(entry) for entry in zip(*(column.tolist() for column in columns), strict=True)]


def test_a_microbatch_of_two_adapters_becomes_two_stripes(make_1f1b: MakeTimeline, two_adapters: Plan) -> None:
    # Microbatch 0 holds 40 tokens of adapter 0 and 30 of adapter 1, microbatch 1 only adapter 1.
    found = bars_of(make_1f1b(num_stages=1, num_microbatches=2), two_adapters)
    assert {part.colour: rows(part) for part in found} == {
        tint(adapter_colour(0), 0.55): [(0, 0.0, 1.0, 0.0, 40 / 70)],
        tint(adapter_colour(1), 0.55): [(0, 0.0, 1.0, 40 / 70, 1.0), (0, 3.0, 4.0, 0.0, 1.0)],
        tint(adapter_colour(0), 0.0): [(0, 1.0, 3.0, 0.0, 40 / 70)],
        tint(adapter_colour(1), 0.0): [(0, 1.0, 3.0, 40 / 70, 1.0), (0, 4.0, 6.0, 0.0, 1.0)],
    }


def test_without_a_plan_all_passes_have_one_colour(make_1f1b: MakeTimeline) -> None:
    assert len(bars_of(make_1f1b(num_stages=1, num_microbatches=2), None)) == 2
    assert bars_of(Timeline.from_spans([], source="simulated", origin="", num_stages=1), None) == []


BARS = st.lists(st.tuples(st.integers(0, 1), st.floats(0, 3), st.floats(0, 3)), max_size=30)


@given(BARS)
def test_an_image_keeps_the_share_of_every_colour(lengths: list[tuple[int, float, float]]) -> None:
    # Bars of two colours one after another; whatever the columns, each colour's area is its time.
    ends = np.cumsum([gap + length for _, gap, length in lengths])
    parts = []
    for number, colour in enumerate(("#ff0000", "#0000ff")):
        own = [place for place, (which, _, _) in enumerate(lengths) if which == number]
        length = np.array([lengths[place][2] for place in own])
        right = np.array([ends[place] for place in own])
        parts.append(
            Bars(
                colour=colour,
                row=np.zeros(len(own), dtype=np.int64),
                left_ms=right - length,
                right_ms=right,
                low=np.zeros(len(own)),
                high=np.ones(len(own)),
            )
        )
    until_ms = float(ends[-1]) + 1.0 if len(ends) else 1.0
    image = density_image(parts, num_rows=1, until_ms=until_ms, num_columns=7, row_pixels=400)
    for part, rgb in zip(parts, ([1, 0, 0], [0, 0, 1]), strict=True):
        area = float((image == rgb).all(axis=2).mean())
        assert area == pytest.approx(float((part.right_ms - part.left_ms).sum()) / until_ms, abs=2 / 400)
