"""From raw points to the costs of a profile, on points made up from known costs."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from loraplex.traces.costs import CostProfile, CostTerms, PassCosts
from loraplex.traces.errors import TraceError
from loraplex.traces.profile_fit import fit_profile
from loraplex.traces.profile_points import load_points, points_path, points_table, save_points

ATTENTION = CostTerms(fixed_ms=0.02, per_token_ms=1e-5, per_square_ms=1.5e-8)
ELEMENTWISE = CostTerms(fixed_ms=0.01, per_token_ms=4e-5)
FROZEN = CostTerms(fixed_ms=0.05, per_token_ms=6e-4, floor_ms=0.3)
FUSED = FROZEN + CostTerms(per_token_ms=4e-5, per_adapter_ms=0.005, per_dropped_ms=3e-5, floor_ms=0.2)
EAGER_ALONE = CostTerms(fixed_ms=0.05, per_token_ms=9e-4, per_adapter_ms=0.05, floor_ms=0.6)
FROZEN_ALONE = CostTerms(fixed_ms=0.05, per_token_ms=6e-4, floor_ms=0.25)
STAGE = CostTerms(fixed_ms=0.1, floor_ms=0.3)
EMBEDDING = CostTerms(per_token_ms=1e-5)
HEAD = CostTerms(fixed_ms=0.2, per_token_ms=1e-3)
AROUND = ATTENTION + ELEMENTWISE
AGAIN = {"none": CostTerms(), "selective": ELEMENTWISE, "full": FUSED + AROUND}
BLANK = CostProfile(
    name="made-up",
    origin="textbook",
    source="points made up from known costs",
    num_layers=8,
    forward=PassCosts(linears={"fused": CostTerms()}),
    backward=PassCosts(linears={"fused": CostTerms()}),
)


def made_up(*, noise: float = 0.0, count: int = 40, seed: int = 0) -> pd.DataFrame:
    """What the profiler would write down. A backward takes twice a forward, and what it runs again."""
    random = np.random.default_rng(seed)
    rows: list[dict[str, object]] = []
    for condition in range(count):
        tokens = int(np.exp(random.uniform(np.log(256), np.log(16384))))
        load = {
            "condition": condition,
            "tokens": tokens,
            "squares": tokens * int(random.integers(64, 8192)),
            "targets": tokens // int(random.integers(1, 5)),
            "adapters": int(random.choice([1, 2, 4, 8, 16])),
            "dropped": tokens * int(random.integers(0, 2)),
        }
        for piece, layers, recompute, terms, end in pieces(load):
            for name, factor in (("forward", 1.0), ("backward", 2.0)):
                again = AGAIN[recompute].scaled(layers * (factor - 1.0))
                ms = (terms.scaled(factor) + again).ms(
                    tokens=tokens, squares=load["squares"], adapters=load["adapters"], dropped=load["dropped"]
                )
                measured = (float(ms) + factor * end) * float(np.exp(noise * random.standard_normal()))
                given = {"piece": piece, "pass": name, "recompute": recompute, "layers": layers, "ms": measured}
                rows.append(load | given)
        for layers in (2, 4):
            rows.append(
                load
                | {"piece": "step", "pass": "step", "recompute": "none", "layers": layers, "ms": 0.2 + 0.05 * layers}
            )
    return points_table(rows)


def pieces(load: dict[str, int]) -> Iterator[tuple[str, int, str, CostTerms, float]]:
    """(piece, layers, recompute, terms of the whole, ms of the end) of everything that is measured."""
    for layers in (2, 4):
        for recompute in AGAIN:
            yield "stage", layers, recompute, (FUSED + AROUND).scaled(layers) + STAGE, 0.0
        yield "frozen", layers, "none", (FROZEN + AROUND).scaled(layers) + STAGE, 0.0
    whole = (FUSED + AROUND).scaled(2) + STAGE
    yield "first", 2, "none", whole, float(EMBEDDING.ms(tokens=load["tokens"]))
    yield "last", 2, "none", whole, float(HEAD.ms(tokens=load["targets"]))
    for piece, terms in (("attention", ATTENTION), ("linears-frozen", FROZEN_ALONE), ("linears-eager", EAGER_ALONE)):
        yield piece, 1, "none", terms, 0.0


def same(found: CostTerms, expected: CostTerms) -> None:
    for name in expected.__dataclass_fields__:
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-3, abs=1e-9), name


def test_exact_points_give_every_piece_back() -> None:
    fitted = fit_profile(made_up())
    for which, factor in ((fitted.forward, 1.0), (fitted.backward, 2.0)):
        same(which.costs.attention, ATTENTION.scaled(factor))
        same(which.costs.elementwise, ELEMENTWISE.scaled(factor))
        same(which.costs.linears["frozen"], FROZEN.scaled(factor))
        same(which.costs.linears["fused"], FUSED.scaled(factor))
        # Launched together with what stands around frozen linears: 0.3 less the 0.25 of those alone.
        same(which.costs.linears["eager"], (EAGER_ALONE + CostTerms(floor_ms=0.05)).scaled(factor))
        same(which.stage, STAGE.scaled(factor))
        same(which.embedding, EMBEDDING.scaled(factor))
        same(which.head, HEAD.scaled(factor))
    assert fitted.forward.recomputation == {}
    same(fitted.backward.recomputation["selective"], AGAIN["selective"])
    same(fitted.backward.recomputation["full"], AGAIN["full"])
    assert [fitted.step_fixed_ms, fitted.step_ms_per_layer] == pytest.approx([0.2, 0.05])
    assert fitted.errors.abs().max() < 1e-6


def test_a_profile_foretells_stages_of_any_depth() -> None:
    profile = fit_profile(made_up()).onto(BLANK)
    load = {"tokens": 8192, "squares": 8192 * 512, "targets": 4096, "adapters": 4, "dropped": 8192}
    first, last = profile.stages(num_stages=2, recompute="full")
    layer = float((FUSED + AROUND).ms(tokens=8192, squares=8192 * 512, adapters=4, dropped=8192))
    assert float(first.forward_ms(**load)) == pytest.approx(4 * layer + 0.1 + 8192 * 1e-5, rel=1e-3)
    assert float(last.backward_ms(**load)) == pytest.approx(3 * 4 * layer + 0.2 + 2 * (0.2 + 4.096), rel=1e-3)
    # A small microbatch waits for its launches.
    small = {"tokens": 64, "squares": 4096, "targets": 32, "adapters": 1}
    assert float(first.forward_ms(**small)) == pytest.approx(4 * 0.5 + 0.3 + 64 * 1e-5, rel=1e-3)


def test_errors_are_those_of_microbatches_the_fit_has_not_seen() -> None:
    fitted = fit_profile(made_up(noise=0.02, count=60))
    table = made_up(noise=0.02, count=60)
    assert len(fitted.errors) == int(table["piece"].isin(["stage", "first", "last"]).sum())
    profile = fitted.onto(BLANK)
    assert profile.fit_error_median is not None
    assert profile.fit_error_worst is not None
    # Noise of 2 % has a median size of 1.35 %, and cannot be foretold.
    assert 0.01 < profile.fit_error_median < 0.025
    assert 0.04 < profile.fit_error_worst < 0.15
    # One microbatch that behaves like no other is not hidden by being fitted to.
    odd = table["condition"] == 7
    off = fit_profile(table.assign(ms=table["ms"].where(~odd, 1.5 * table["ms"])))
    assert off.errors[off.errors.index.isin(table.index[odd])].abs().min() > 0.2


def test_without_the_pieces_the_layer_is_fitted_whole() -> None:
    table = made_up()
    fitted = fit_profile(table[table["piece"].isin(["stage", "first", "last", "step"])], kernels="eager")
    assert set(fitted.forward.costs.linears) == {"eager"}
    same(fitted.forward.costs.layer("eager"), FUSED + AROUND)


def test_points_survive_their_file(tmp_path: Path) -> None:
    table = made_up(count=2)
    path = points_path(tmp_path / "profile.json")
    save_points(table, path, source="a device, some versions,\na date")
    assert path.name == "profile.points.csv"
    assert path.read_text(encoding="utf-8").startswith("# a device, some versions, a date\n")
    pd.testing.assert_frame_equal(load_points(path), table, rtol=1e-5)


def test_what_is_no_table_of_points_is_named(tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    with pytest.raises(TraceError, match=r"points\.csv: cannot be read as a table of points"):
        load_points(path)
    path.write_text("piece,ms\nstage,1\n", encoding="utf-8")
    with pytest.raises(TraceError, match=r"points\.csv: lacks the column pass"):
        load_points(path)
    row = made_up(count=1).iloc[0].to_dict()
    with pytest.raises(TraceError, match="piece='engine' is unknown; it must be one of stage, first"):
        points_table([row | {"piece": "engine"}])
