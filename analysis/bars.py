"""From a timeline to coloured bars: what the Gantt picture draws, one by one or as an image."""

from dataclasses import dataclass, replace

import numpy as np
from matplotlib.colors import to_rgb
from numpy.typing import NDArray

from ..planner.plan import Plan
from ..traces.timeline import Timeline
from .actions import BACKWARDS, FORWARDS, OTHERS, letters
from .style import FORWARD_TINT, MUTED, WAIT, adapter_colour, tint

Floats = NDArray[np.float64]
_CROWDED_WAIT = "#e2e2e2"
"""Of waits too short to be hatched; report.js uses the same."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bars:
    """Bars of one colour, disjoint within their row, ordered by row and begin."""

    colour: str
    row: NDArray[np.int64]
    left_ms: Floats
    right_ms: Floats
    low: Floats
    """Where in the row's height a bar begins, 0 to 1; stripes of one microbatch lie one above another."""
    high: Floats
    waits: bool = False

    def within(self, from_ms: float, to_ms: float) -> "Bars":
        """Those that reach into this stretch of time."""
        kept = (self.right_ms > from_ms) & (self.left_ms < to_ms)
        if kept.all():
            return self
        columns = {name: getattr(self, name)[kept] for name in ("row", "left_ms", "right_ms", "low", "high")}
        return replace(self, **columns)


def bars_of(timeline: Timeline, plan: Plan | None) -> list[Bars]:
    """All bars of a timeline, from its first start on: waits, forwards and backwards by adapter, other compute.

    Steps are no bars: they are too short. A row is replica * num_stages + stage.
    """
    frame = timeline.frame[timeline.frame["kind"] != "transfer"]
    found, kinds = letters(frame["action"]), frame["kind"].to_numpy()
    begin_ms = float(frame["start_ms"].min()) if len(frame) else 0.0
    every = Bars(
        colour=WAIT,
        row=(frame["replica"] * timeline.num_stages + frame["stage"]).to_numpy(),
        left_ms=frame["start_ms"].to_numpy() - begin_ms,
        right_ms=frame["end_ms"].to_numpy() - begin_ms,
        low=np.zeros(len(frame)),
        high=np.ones(len(frame)),
    )
    compute = kinds == "compute"
    parts = [_chosen(every, np.flatnonzero(kinds == "wait"), colour=WAIT, waits=True)]
    for shade, chosen in ((FORWARD_TINT, FORWARDS), (0.0, BACKWARDS)):
        passes = np.flatnonzero(compute & np.isin(found, chosen))
        parts += _striped(every, passes, frame["microbatch"].to_numpy()[passes], plan=plan, shade=shade)
    parts.append(_chosen(every, np.flatnonzero(compute & np.isin(found, OTHERS)), colour=MUTED))
    return [part for part in parts if len(part.row)]


def _chosen(
    bars: Bars,
    places: NDArray[np.int64],
    *,
    colour: str,
    low: Floats | None = None,
    high: Floats | None = None,
    waits: bool = False,
) -> Bars:
    return Bars(
        colour=colour,
        row=bars.row[places],
        left_ms=bars.left_ms[places],
        right_ms=bars.right_ms[places],
        low=bars.low[places] if low is None else low,
        high=bars.high[places] if high is None else high,
        waits=waits,
    )


def _striped(
    bars: Bars, places: NDArray[np.int64], microbatch: NDArray[np.int64], *, plan: Plan | None, shade: float
) -> list[Bars]:
    """Bars cut into stripes, one for each adapter of the microbatch, as high as its share of the tokens."""
    if plan is None:
        return [_chosen(bars, places, colour=tint(adapter_colour(0), shade))]
    stripes: dict[int, list[tuple[int, float, float]]] = {}
    contents = [batch.adapter_tokens() for batch in plan.microbatches]
    for place, index in zip(places.tolist(), microbatch.tolist(), strict=True):
        shares = contents[index] if 0 <= index < len(contents) else ()
        total, below = sum(tokens for _, tokens in shares), 0
        for adapter, tokens in shares:
            stripes.setdefault(adapter, []).append((place, below / total, (below + tokens) / total))
            below += tokens
    return [
        _chosen(
            bars,
            np.array([place for place, _, _ in cut]),
            colour=tint(adapter_colour(adapter), shade),
            low=np.array([low for _, low, _ in cut]),
            high=np.array([high for _, _, high in cut]),
        )
        for adapter, cut in sorted(stripes.items())
    ]


def density_image(
    bars: list[Bars], *, num_rows: int, from_ms: float = 0.0, until_ms: float, num_columns: int, row_pixels: int
) -> Floats:
    """RGB image [num_rows * row_pixels, num_columns, 3] of this stretch of time; white where nothing is.

    For more bars than an eye or a file can take. Every pixel column of a row shows, one above another, the colours
    that cover that stretch of time, each as high as its share of it: nothing is dropped, however short.
    """
    edges = np.linspace(from_ms, until_ms, num_columns + 1)
    image = np.ones((num_rows * row_pixels, num_columns, 3))
    heights = (np.arange(row_pixels) + 0.5) / row_pixels
    colours = np.array([*(to_rgb(_CROWDED_WAIT if part.waits else part.colour) for part in bars), (1.0, 1.0, 1.0)])
    for row in range(num_rows):
        tops = np.cumsum([_covered(part, row, edges) for part in bars], axis=0)
        layer = (heights[:, None, None] > tops.T[None]).sum(axis=2)
        image[row * row_pixels : (row + 1) * row_pixels] = colours[layer]
    return image


def _covered(bars: Bars, row: int, edges: Floats) -> Floats:
    # Share of each column that these bars cover in this row.
    own = bars.row == row
    left, right, share = bars.left_ms[own], bars.right_ms[own], bars.high[own] - bars.low[own]
    if not len(left):
        return np.zeros(len(edges) - 1)
    done = np.concatenate([[0.0], np.cumsum((right - left) * share)])
    knots = np.stack([left, right], axis=1).ravel()
    values = np.stack([done[:-1], done[1:]], axis=1).ravel()
    return np.asarray(np.diff(np.interp(edges, knots, values)) / np.diff(edges))
