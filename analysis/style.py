"""One look for every picture: colours told apart by colour-blind readers, units on every axis, SVG and PNG at once."""

import colorsys
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C6BB1", "#999933", "#882255", "#44AA99")
"""Okabe and Ito (2008) without black and yellow, then colours of Tol's "muted" scheme; neighbours differ most."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
"""Of lines and points, beside their colours."""
INK = "#222222"
MUTED = "#767676"
WAIT = "#b8b8b8"
FORWARD_TINT = 0.55
"""How pale a forward is beside its backward."""
CAUSE_COLOURS = {
    "warmup": "#BBCCEE",
    "cooldown": "#8FB2DA",
    "imbalance": "#E69F00",
    "dependency": "#CC79A7",
    "transfer": "#009E73",
    "reduce": "#D55E00",
    "evaluate": "#999933",
    "unexplained": "#BBBBBB",
}
"""Of a bubble's causes; those that every pipeline has are pale."""
CAUSE_HATCHES = {"imbalance": "/", "dependency": "\\", "transfer": "|", "unexplained": "x"}
"""How the report's timeline hatches a wait, in grey, so that no cause looks like an adapter; others are plain."""
_SETTINGS: dict[Any, Any] = {
    "figure.constrained_layout.use": True,
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "hatch.linewidth": 0.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "loraplex",
}
_DPI = 150


def adapter_colour(adapter: int) -> str:
    """Colour of an adapter by its position in the plan. Beyond ten, the colours come again, darker, then lighter."""
    base = PALETTE[adapter % len(PALETTE)]
    lightness = (1.0, 0.62, 1.35)[adapter // len(PALETTE) % 3]
    hue, light, saturation = colorsys.rgb_to_hls(*to_rgb(base))
    return mpl.colors.to_hex(colorsys.hls_to_rgb(hue, min(light * lightness, 0.85), saturation))


def tint(colour: str, share: float) -> str:
    """A colour mixed with white; share 0 leaves it as it is."""
    red, green, blue = (channel + (1.0 - channel) * share for channel in to_rgb(colour))
    return mpl.colors.to_hex((red, green, blue))


@contextmanager
def picture(path: Path | str, *, width: float = 8.0, height: float = 4.5) -> Iterator[Figure]:
    """A Figure of this size in inches; on leaving it is saved as SVG and PNG beside each other."""
    with mpl.rc_context(_SETTINGS):
        figure = Figure(figsize=(width, height))
        FigureCanvasAgg(figure)
        yield figure
        save(figure, path)


def save(figure: Figure, path: Path | str) -> tuple[Path, Path]:
    """Write `path` with the endings .svg and .png (an ending it has is dropped), each whole or not at all."""
    target = Path(path)
    if target.suffix in (".svg", ".png"):
        target = target.with_suffix("")
    target.parent.mkdir(parents=True, exist_ok=True)
    written = []
    for ending in (".svg", ".png"):
        final = target.with_name(target.name + ending)
        unfinished = target.with_name(f".{target.name}.{os.getpid()}{ending}")
        figure.savefig(unfinished, facecolor="white", dpi=_DPI, metadata={"Date": None} if ending == ".svg" else None)
        os.replace(unfinished, final)
        written.append(final)
    return written[0], written[1]


def time_unit(longest_ms: float) -> tuple[float, str]:
    """(factor from ms, unit) that keeps the numbers of a time axis short."""
    for factor, unit, limit_ms in ((1.0, "ms", 2e3), (1e-3, "s", 6e5), (1 / 6e4, "min", 3.6e7)):
        if longest_ms < limit_ms:
            return factor, unit
    return 1 / 3.6e6, "h"


def memory_unit(largest_bytes: float) -> tuple[float, str]:
    """(factor from bytes, unit) for a memory axis."""
    for exponent, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if largest_bytes >= 1024**exponent:
            return 1 / 1024**exponent, unit
    return 1.0, "B"


def label_bars(axes: Axes, places: Sequence[float], tops: Sequence[float], texts: Sequence[str]) -> None:
    """Write a text over each bar."""
    for place, top, text in zip(places, tops, texts, strict=True):
        axes.annotate(
            text, (place, top), xytext=(0, 2), textcoords="offset points", ha="center", va="bottom", fontsize=8
        )


def legend_beside(figure: Figure, num_entries: int) -> None:
    """A legend of so many entries at the right of the axes."""
    figure.legend(loc="outside right upper", ncols=1 + num_entries // 24, fontsize=9)
