"""Every picture: both files are there, axes carry their units, and the data's names appear."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from loraplex.analysis.metrics import summarize
from loraplex.analysis.plots import (
    plot_bubbles,
    plot_losses,
    plot_memory,
    plot_predictions,
    plot_waste,
)
from loraplex.planner.plan import Plan
from loraplex.traces.timeline import Timeline

from .conftest import MakeTimeline
from .test_gantt import texts


def written(path: Path) -> list[str]:
    """Texts of the SVG, once its PNG has been seen to be one."""
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    return texts(path.with_suffix(".svg"))


@pytest.mark.parametrize("num_steps", [1, 5, 100])
def test_losses(num_steps: int, tmp_path: Path) -> None:
    frame = pd.DataFrame({"step": np.arange(num_steps), "loss": np.linspace(3.0, 1.0, num_steps)})
    plot_losses({"maths": frame, "papers": frame + 0.5}, tmp_path / "losses")
    found = written(tmp_path / "losses")
    assert {"maths", "papers", "loss [nats per target token]", "optimizer step of the adapter"} <= set(found)


def test_bubbles_of_systems_and_data_sets(make_1f1b: MakeTimeline, tmp_path: Path) -> None:
    few, many = (summarize(make_1f1b(num_stages=2, num_microbatches=count)) for count in (1, 9))
    rows = {"short": {"ours": many, "theirs": few}, "long": {"ours": many, "theirs": few}}
    plot_bubbles(rows, tmp_path / "bubbles")
    found = written(tmp_path / "bubbles")
    assert {"share of all stages' time [%]", "short", "long", "warmup", "cooldown"} <= set(found)
    assert [found.count(text) for text in ("ours", "theirs", "10.0 %", "50.0 %")] == [2, 2, 2, 2]


def test_memory_with_the_capacity_of_the_device(make_1f1b: MakeTimeline, tmp_path: Path) -> None:
    counters = pd.DataFrame({"replica": 0, "stage": [0, 0, 1], "ms": [0.0, 2.0, 1.0], "bytes": [2**30, 2**31, 2**30]})
    timeline = Timeline.from_frame(
        make_1f1b(num_stages=2, num_microbatches=2).frame,
        source="simulated",
        origin="by hand",
        num_stages=2,
        counters=counters,
    )
    plot_memory(timeline, tmp_path / "memory", capacity_bytes=2**32)
    found = written(tmp_path / "memory")
    assert {"memory [GiB]", "stage 0", "stage 1", "memory of the device"} <= set(found)


def test_memory_that_was_not_tracked_gives_an_empty_picture(make_1f1b: MakeTimeline, tmp_path: Path) -> None:
    plot_memory(make_1f1b(num_stages=2, num_microbatches=2), tmp_path / "memory")
    assert "memory [B]" in written(tmp_path / "memory")


def test_waste(two_adapters: Plan, tmp_path: Path) -> None:
    plot_waste(two_adapters, tmp_path / "waste")
    found = written(tmp_path / "waste")
    # maths holds 50 of 50 + 6 + 99.6 tokens.
    assert {"maths", "papers", "real tokens", "padding", "unused capacity", "32.1 %"} <= set(found)
    assert any("100 tokens each" in text and "[%]" in text for text in found)


def test_predictions(make_1f1b: MakeTimeline, tmp_path: Path) -> None:
    plot_predictions(
        simulated=make_1f1b(num_stages=2, num_microbatches=4),
        measured=make_1f1b(num_stages=2, num_microbatches=4, forward_ms=1.1, source="measured"),
        path=tmp_path / "predictions",
    )
    found = written(tmp_path / "predictions")
    assert {"forward (8)", "backward (8)", "simulated duration of an action [ms]"} <= set(found)


def test_nothing_in_common_still_gives_a_picture(tmp_path: Path) -> None:
    empty = Timeline.from_spans([], source="simulated", origin="", num_stages=1)
    plot_predictions(simulated=empty, measured=empty, path=tmp_path / "predictions")
    plot_losses({}, tmp_path / "losses")
    plot_bubbles({}, tmp_path / "bubbles")
    assert all(written(tmp_path / name) for name in ("predictions", "losses", "bubbles"))
