"""The file of a cost profile, and the profiles in the box."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraplex.traces.costs import CostProfile, CostTerms, GraphCosts, Kernels, LinkCosts, MemoryCosts, PassCosts
from loraplex.traces.errors import TraceError
from loraplex.traces.fit_error import FitError
from loraplex.traces.profile_file import load_profile_file, save_profile
from loraplex.traces.profiles import load_profile, own_name, profile_names

costs = st.floats(0, 1e12, allow_nan=False)
terms = st.builds(CostTerms, **dict.fromkeys(CostTerms.__dataclass_fields__, costs))


@st.composite
def profiles(draw: st.DrawFn) -> CostProfile:
    every: tuple[Kernels, ...] = ("fused", "eager", "frozen")
    kernels = draw(st.lists(st.sampled_from(every), min_size=1, unique=True))
    forward, backward = (
        PassCosts(linears={kind: draw(terms) for kind in kernels}, attention=draw(terms), elementwise=draw(terms))
        for _ in range(2)
    )
    return CostProfile(
        name=draw(st.text(min_size=1).filter(str.strip)),
        origin=draw(st.sampled_from(["measured", "published", "textbook"])),
        source="drawn at random",
        num_layers=draw(st.integers(1, 200)),
        forward=forward,
        backward=backward,
        weight_share=draw(st.floats(0, 1)),
        stage_forward=draw(terms),
        graphs=GraphCosts(max_tokens=draw(st.integers(1, 10**6)), backward_floor_per_layer_ms=draw(costs)),
        recomputation=draw(st.dictionaries(st.sampled_from(["selective", "full"]), terms)),
        checkpointing=draw(st.dictionaries(st.sampled_from(["selective", "full"]), terms)),
        fit_errors=draw(
            st.dictionaries(
                st.text(), st.builds(FitError, passes=costs, median=costs, worst=costs, spread=st.none() | costs)
            )
        ),
        link=LinkCosts(latency_ms=draw(costs), bytes_per_ms=draw(costs | st.just(float("inf"))), overlapped=False),
        memory=MemoryCosts(capacity_bytes=draw(costs | st.just(float("inf")))),
        fit_error_median=draw(st.none() | costs),
        steady_forward_factor=draw(st.none() | costs),
        steady_backward_factor=draw(st.none() | costs),
    )


@given(profile=profiles())
def test_every_number_comes_back_bit_for_bit(profile: CostProfile, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("profiles") / "profile.json"
    save_profile(profile, path)
    assert load_profile_file(path) == profile
    assert [entry.name for entry in path.parent.iterdir()] == ["profile.json"]


def content() -> dict[str, Any]:
    return {
        "format": "loraplex-profile",
        "version": 1,
        "name": "small",
        "origin": "measured",
        "source": "a clock",
        "num_layers": 2,
        "forward": {"linears": {"fused": {"fixed_ms": 1}}},
        "backward": {"linears": {"fused": {"fixed_ms": 2}}},
    }


def test_what_is_left_out_holds_its_default(tmp_path: Path) -> None:
    path = tmp_path / "small.json"
    path.write_text(json.dumps(content()), encoding="utf-8")
    assert load_profile(path) == CostProfile(
        name="small",
        origin="measured",
        source="a clock",
        num_layers=2,
        forward=PassCosts(linears={"fused": CostTerms(fixed_ms=1.0)}),
        backward=PassCosts(linears={"fused": CostTerms(fixed_ms=2.0)}),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 3}, "version=3 is unknown; this loraplex reads 1 and 2"),
        ({"format": "else"}, "is no cost profile"),
        ({"num_layers": 0}, "num_layers=0 must be at least 1"),
        ({"num_layers": 1.5}, "num_layers=1.5 must be of type int"),
        ({"num_layers": True}, "num_layers=True must be of type int"),
        ({"origin": "guessed"}, "origin='guessed' is unknown"),
        ({"source": " "}, "source is empty"),
        ({"weight_share": 1.5}, "weight_share=1.5 .* must not exceed 1"),
        ({"forward": {"linears": {}}}, "both need the same kernels"),
        ({"forward": {}}, "forward.linears is missing"),
        ({"forward": {"linears": {"fast": {}}}}, "'fast' is unknown; it must be one of"),
        ({"forward": {"linears": {"fused": {"fixed_ms": -1}}}}, "fixed_ms=-1.0 must be a finite number, not below 0"),
        ({"forward": {"linears": {"fused": {"fixed_ms": "1"}}}}, "fixed_ms='1' must be of type float"),
        ({"forward": {"linears": {"fused": {"fixd_ms": 1}}}}, "linears.fused.fixd_ms is unknown"),
        ({"forward": {"linears": 3}}, "forward.linears=3 must be a table"),
        ({"memory": 3}, "memory=3 must be a table"),
        ({"link": {"latency_ms": float("nan")}}, "latency_ms=nan must be a finite number"),
        ({"link": {"latency_ms": float("inf")}}, "latency_ms=inf must be a finite number"),
        ({"step_ms": 1.0}, "step_ms is unknown"),
        ({"graphs": {"max_tokens": 10.5}}, "graphs.max_tokens=10.5 must be of type int"),
        ({"graphs": {"max_tokens": -1}}, "graphs: max_tokens=-1 must be a finite number, not below 0"),
        ({"graphs": {"tokens": 9}}, r"graphs.tokens is unknown; it may hold \['backward_floor_ms'"),
        ({"graphs": {"forward_floor_ms": 0.1}}, "graphs.max_tokens=0 says that no microbatch is replayed, and yet"),
        ({"memory": {"graph_tokens": -1}}, "memory: graph_tokens=-1 must be a finite number, not below 0"),
    ],
)
def test_a_bad_value_is_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(content() | change), encoding="utf-8")
    with pytest.raises(TraceError, match=message) as raised:
        load_profile(path)
    assert str(raised.value).startswith(f"{path}: ")


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    for name in ("name", "origin", "source", "num_layers", "forward", "backward"):
        path.write_text(json.dumps({key: held for key, held in content().items() if key != name}), encoding="utf-8")
        with pytest.raises(TraceError, match=f"{name} is missing"):
            load_profile(path)


def test_what_is_no_json_or_no_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(TraceError, match=r"bad.json: is no JSON"):
        load_profile(path)
    with pytest.raises(TraceError, match="'nowhere' is neither a file nor in the box, which holds llama-3"):
        load_profile("nowhere")
    with pytest.raises(TraceError, match="cannot be read"):
        load_profile_file(tmp_path / "nothing.json")


def test_a_name_that_means_two_profiles_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    boxed = load_profile("tiny-cpu")
    own = replace(boxed, source="mine")
    # As users name it, it is none of the box.
    own.save("tiny-cpu.json")
    assert load_profile("tiny-cpu") == boxed
    assert load_profile("tiny-cpu.json") == own
    own.save("tiny-cpu")
    with pytest.raises(
        TraceError, match=r"'tiny-cpu' is one in the box and a file \(tiny-cpu\) as well; write ./tiny-cpu"
    ):
        load_profile("tiny-cpu")
    assert load_profile("./tiny-cpu") == own
    (tmp_path / "other").mkdir()
    assert load_profile("tiny-cpu", folder=tmp_path / "other") == boxed
    assert load_profile("../tiny-cpu", folder=tmp_path / "other") == own


def test_a_measured_profile_is_called_like_none_in_the_box() -> None:
    assert (own_name("tiny-cpu"), own_name("small-cpu")) == ("tiny-cpu-own", "small-cpu")


def test_nothing_bad_is_written(tmp_path: Path) -> None:
    good = load_profile("llama-70b-h100-published")
    with pytest.raises(TraceError, match="step_fixed_ms=nan"):
        replace(good, step_fixed_ms=float("nan")).save(tmp_path / "bad.json")
    assert list(tmp_path.iterdir()) == []


def test_every_profile_in_the_box_loads_and_names_its_origin() -> None:
    assert "llama-70b-h100-published" in profile_names()
    for name in profile_names():
        profile = CostProfile.load(name)
        assert profile.name == name
        assert len(profile.source) > 40


def test_the_published_70b_layer_costs_what_was_published() -> None:
    profile = load_profile("llama-70b-h100-published")
    tokens = [2048, 8192]
    forward, backward = (
        profile.forward.layer("eager").ms(tokens=tokens),
        profile.backward.layer("eager").ms(tokens=tokens),
    )
    assert forward.tolist() == pytest.approx([7.04, 26.27])
    assert (forward + backward).tolist() == pytest.approx([14.02, 54.08])
