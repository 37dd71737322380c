"""The look: colours that everyone can tell apart, files written whole."""

from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from numpy.typing import NDArray

from loraplex.analysis.style import PALETTE, adapter_colour, memory_unit, picture, time_unit, tint

# Full-strength colour blindness in linear RGB: Machado, Oliveira and Fernandes (2009).
SIGHTS = {
    "normal": np.eye(3),
    "protanopia": np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]),
    "deuteranopia": np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]),
}


def seen(colour: str, sight: NDArray[np.float64]) -> NDArray[np.float64]:
    """A colour as somebody sees it, in CIE Lab, where a distance of 2 can just be noticed side by side."""
    encoded = np.array(to_rgb(colour))
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    shown = np.clip(sight @ linear, 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ shown
    x, y, z = np.cbrt(xyz / np.array([0.9505, 1.0, 1.089]))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("sight", SIGHTS)
def test_the_first_six_adapters_are_told_apart_by_everyone(sight: str) -> None:
    for one, other in combinations(PALETTE[:6], 2):
        assert np.linalg.norm(seen(one, SIGHTS[sight]) - seen(other, SIGHTS[sight])) > 12, (one, other)


@pytest.mark.parametrize("sight", SIGHTS)
def test_neighbours_are_told_apart_for_all_ten(sight: str) -> None:
    for one, other in pairwise(PALETTE):
        assert np.linalg.norm(seen(one, SIGHTS[sight]) - seen(other, SIGHTS[sight])) > 12, (one, other)


def test_thirty_adapters_have_thirty_colours() -> None:
    assert len({adapter_colour(adapter) for adapter in range(30)}) == 30
    assert adapter_colour(30) == adapter_colour(0)


def test_a_tint_goes_from_the_colour_to_white() -> None:
    assert [tint("#0072b2", share) for share in (0.0, 1.0)] == ["#0072b2", "#ffffff"]


def test_a_picture_is_saved_as_svg_and_png_and_the_same_data_gives_the_same_svg(tmp_path: Path) -> None:
    for name in ("one.svg", "two"):
        with picture(tmp_path / name) as figure:
            figure.subplots().plot([1, 2], [3, 4])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png", "one.svg", "two.png", "two.svg"]
    assert (tmp_path / "one.svg").read_text() == (tmp_path / "two.svg").read_text()


def test_axes_get_the_unit_that_keeps_numbers_short() -> None:
    assert [time_unit(ms)[1] for ms in (0, 1500, 60_000, 3.6e6, 3.6e8)] == ["ms", "ms", "s", "min", "h"]
    assert [memory_unit(size)[1] for size in (10, 2**10, 2**20, 2**40)] == ["B", "KiB", "MiB", "GiB"]
    assert time_unit(60_000)[0] * 60_000 == 60.0
    assert memory_unit(2**31)[0] * 2**31 == 2.0
