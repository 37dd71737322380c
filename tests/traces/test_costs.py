"""How kernels compose into stages."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from loraplex.traces.costs import (
    CostProfile,
    CostTerms,
    EndCosts,
    GraphCosts,
    LinkCosts,
    PassCosts,
    RecomputeMode,
    StageCost,
    split_layers,
    uniform_profile,
)
from loraplex.traces.errors import TraceError
from loraplex.traces.memory_costs import RECOMPUTE_MODES, MemoryCosts, recompute_mode

PROFILE = CostProfile(
    name="made-up",
    origin="textbook",
    source="numbers chosen for arithmetic",
    num_layers=5,
    forward=PassCosts(
        linears={"fused": CostTerms(fixed_ms=1.0, per_token_ms=0.01), "eager": CostTerms(per_token_ms=0.1)},
        attention=CostTerms(per_square_ms=0.001),
        elementwise=CostTerms(per_adapter_ms=0.5),
    ),
    backward=PassCosts(linears={"fused": CostTerms(fixed_ms=2.0), "eager": CostTerms(fixed_ms=4.0)}),
    ends=EndCosts(
        embedding_forward=CostTerms(per_token_ms=0.25),
        head_forward=CostTerms(per_token_ms=1.0),
        head_backward=CostTerms(fixed_ms=3.0),
    ),
    step_ms_per_layer=0.125,
    step_fixed_ms=1.0,
)


def forward_ms(stage: StageCost, *, tokens: int, squares: int, targets: int, adapters: int) -> float:
    return float(stage.forward_ms(tokens=tokens, squares=squares, targets=targets, adapters=adapters))


def test_a_stage_costs_its_layers_and_its_ends() -> None:
    first, last = PROFILE.stages(num_stages=2)
    # Three layers of 1 + 0.01 * 100 + 0.001 * 5000 + 0.5 * 2, and an embedding of 0.25 * 100.
    assert forward_ms(first, tokens=100, squares=5000, targets=40, adapters=2) == pytest.approx(3 * 8.0 + 25.0)
    # Two layers, and a head of 1.0 * 40 target tokens.
    assert forward_ms(last, tokens=100, squares=5000, targets=40, adapters=2) == pytest.approx(2 * 8.0 + 40.0)
    assert [stage.step_ms for stage in (first, last)] == [1.375, 1.25]


def test_a_first_stage_makes_no_gradient_of_its_input() -> None:
    saving = replace(
        PROFILE,
        backward=PassCosts(linears={"fused": CostTerms(per_token_ms=2.0, floor_ms=10.0)}),
        ends=EndCosts(first_layer_saved_ms_per_token=0.5),
    )
    stages = saving.stages(num_stages=5)
    found = [stage.backward_ms(tokens=[100, 6], squares=0, targets=1, adapters=1).tolist() for stage in stages[:2]]
    # Small ones take as long to launch.
    assert found == [[150.0, 10.0], [200.0, 12.0]]
    assert CostTerms(per_token_ms=1.0, fixed_ms=2.0).less_per_token(3.0) == CostTerms(fixed_ms=2.0)


def test_a_forward_waits_for_its_first_launch_where_the_backward_before_it_leaves_no_work() -> None:
    profile = CostProfile(
        name="made-up",
        origin="textbook",
        source="launching of 2 ms beside a layer's of 1 ms, both ways",
        num_layers=1,
        forward=PassCosts(linears={"fused": CostTerms(per_token_ms=0.01, floor_ms=1.0)}),
        backward=PassCosts(linears={"fused": CostTerms(per_token_ms=0.02, floor_ms=1.0)}),
        stage_forward=CostTerms(floor_ms=2.0),
        stage_backward=CostTerms(floor_ms=2.0),
    )
    (stage,) = profile.stages(num_stages=1)
    tokens = np.array([0, 50, 125, 200, 250, 400])
    load: dict[str, NDArray[np.int64]] = {
        "tokens": tokens,
        "squares": 0 * tokens,
        "targets": tokens,
        "adapters": 0 * tokens,
    }
    # None; launched in 3 ms; 2 ms late, and later no more by what 4 and 5 ms of backward leave; and at once.
    assert stage.forward_ms(**load) == pytest.approx([0.0, 3.0, 3.25, 3.0, 3.0, 4.0])
    both_ms = np.add(stage.forward_ms(**load), stage.backward_ms(**load))
    assert (np.diff(both_ms) >= 0).all()
    # Nothing takes less work to be launched the later.
    (busy,) = replace(profile, recomputation={"full": CostTerms(fixed_ms=9.0)}).stages(num_stages=1, recompute="full")
    assert busy.forward_ms(**load) == pytest.approx([0.0, 3.0, 3.0, 3.0, 3.0, 4.0])


def test_a_replayed_microbatch_is_launched_at_once_however_many_its_layers() -> None:
    profile = CostProfile(
        name="made-up",
        origin="textbook",
        source="launching of 2 ms beside a layer's of 1 ms, both ways, or of 0.5 ms in all",
        num_layers=8,
        forward=PassCosts(linears={"fused": CostTerms(per_token_ms=0.0004, floor_ms=1.0), "eager": CostTerms()}),
        backward=PassCosts(linears={"fused": CostTerms(per_token_ms=0.0008, floor_ms=1.0), "eager": CostTerms()}),
        stage_forward=CostTerms(floor_ms=2.0),
        stage_backward=CostTerms(floor_ms=2.0),
    )
    floors = {"forward_floor_ms": 0.5, "forward_floor_per_layer_ms": 0.05}
    floors |= {"backward_floor_ms": 0.7, "backward_floor_per_layer_ms": 0.1}
    graphs = GraphCosts(max_tokens=1000, **floors)
    tokens = np.array([0, 5, 1000, 1001, 10_000])
    load: dict[str, NDArray[np.int64]] = {
        "tokens": tokens,
        "squares": 0 * tokens,
        "targets": tokens,
        "adapters": 0 * tokens,
    }
    (plain,) = profile.stages(num_stages=1)
    (stage,) = replace(profile, graphs=graphs).stages(num_stages=1)
    # Of 8 layers: at least 0.5 + 8 x 0.05 and 0.7 + 8 x 0.1 ms, else work that launches had hidden, of 1,024 rows.
    assert stage.forward_ms(**load).tolist() == pytest.approx([0.0, 0.9, 3.2768, 10.0, 32.0])
    assert stage.backward_ms(**load).tolist() == pytest.approx([0.0, 1.5, 6.5536, 10.0, 64.0])
    assert plain.forward_ms(**load).tolist() == pytest.approx([0.0, 10.0, 10.0, 10.0, 32.0])
    # Work waits for no first launch; a clock that is lower makes it longer, and launching no longer.
    assert replace(stage, lead_in_ms=7.0).forward_ms(**load)[2] == pytest.approx(3.2768)
    # Evaluations, and what others compute in plain PyTorch, are launched kernel by kernel.
    assert stage.kernel_by_kernel() == plain
    eager = replace(profile, graphs=graphs).stages(num_stages=1, kernels="eager")
    assert eager == profile.stages(num_stages=1, kernels="eager")


def test_a_forward_pays_for_preparing_to_recompute() -> None:
    profile = replace(PROFILE, checkpointing={"full": CostTerms(floor_ms=7.0)})
    load = {"tokens": 1, "squares": 0, "targets": 0, "adapters": 0}
    assert [
        float(profile.stages(num_stages=5, recompute=mode)[1].forward_ms(**load)) for mode in RECOMPUTE_MODES
    ] == pytest.approx([7.0 if mode == "full" else 1.01 for mode in RECOMPUTE_MODES])


def test_other_kernels_and_uneven_layers_can_be_swapped_in() -> None:
    stages = PROFILE.stages(num_stages=2, kernels="eager", layers_per_stage=(1, 4))
    assert [float(s.backward_ms(tokens=1, squares=1, targets=1, adapters=1)) for s in stages] == [4.0, 16.0 + 3.0]


@pytest.mark.parametrize(("recompute", "more_ms"), [("none", 0.0), ("selective", 1.0), ("full", 8.0)])
def test_recomputation_adds_what_it_runs_again_to_the_backward(recompute: RecomputeMode, more_ms: float) -> None:
    plain, recomputed = (PROFILE.stages(num_stages=1, recompute=mode)[0] for mode in ("none", recompute))
    load = {"tokens": 100, "squares": 5000, "targets": 40, "adapters": 2}
    # Unmeasured, a forward's elementwise kernels (0.5 ms for each of two adapters here), or the whole forward.
    assert recomputed.backward_ms(**load) - plain.backward_ms(**load) == pytest.approx(5 * more_ms)
    assert forward_ms(recomputed, **load) == forward_ms(plain, **load)


def test_measured_recomputation_counts_instead() -> None:
    measured = replace(PROFILE, recomputation={"full": CostTerms(fixed_ms=0.25)})
    plain, recomputed = (measured.stages(num_stages=1, recompute=mode)[0] for mode in RECOMPUTE_MODES[::2])
    load = {"tokens": 100, "squares": 5000, "targets": 40, "adapters": 2}
    assert recomputed.backward_ms(**load) - plain.backward_ms(**load) == pytest.approx(5 * 0.25)


def test_what_a_stage_takes_beside_its_layers_counts_once() -> None:
    profile = replace(PROFILE, stage_forward=CostTerms(fixed_ms=0.5), stage_backward=CostTerms(per_token_ms=0.25))
    load = {"tokens": 100, "squares": 5000, "targets": 40, "adapters": 2}
    for stage, plain in zip(profile.stages(num_stages=2), PROFILE.stages(num_stages=2), strict=True):
        assert forward_ms(stage, **load) - forward_ms(plain, **load) == pytest.approx(0.5)
        assert stage.backward_ms(**load) - plain.backward_ms(**load) == pytest.approx(25.0)


def test_an_empty_microbatch_costs_nothing() -> None:
    terms = CostTerms(fixed_ms=1.0, per_adapter_ms=1.0, floor_ms=1.0)
    assert terms.ms(tokens=np.array([0, 3])).tolist() == [0.0, 2.0]


def test_work_that_is_shorter_than_its_launch_takes_as_long_as_the_launch() -> None:
    terms = CostTerms(per_token_ms=0.01, floor_ms=1.0, floor_per_adapter_ms=0.5)
    assert terms.ms(tokens=[100, 200, 400], adapters=[1, 2, 2]).tolist() == [1.5, 2.0, 4.0]
    # Two layers are launched and run one after another: both sums grow, and the larger is the time.
    assert terms.scaled(2).ms(tokens=400, adapters=2) == 8.0
    assert (terms + CostTerms(per_token_ms=0.01)).ms(tokens=100, adapters=2) == 2.0


def test_tokens_with_dropout_cost_more() -> None:
    assert CostTerms(per_token_ms=1.0, per_dropped_ms=0.5).ms(tokens=[10, 10], dropped=[0, 4]).tolist() == [10.0, 12.0]


@pytest.mark.parametrize(("num_layers", "num_stages", "layers"), [(5, 2, (3, 2)), (4, 4, (1, 1, 1, 1)), (7, 1, (7,))])
def test_layers_are_split_as_evenly_as_possible(num_layers: int, num_stages: int, layers: tuple[int, ...]) -> None:
    assert split_layers(num_layers, num_stages) == layers


def test_a_transfer_takes_latency_and_bytes_over_bandwidth() -> None:
    link = LinkCosts(latency_ms=0.5, bytes_per_ms=1000.0, bytes_per_token=20.0)
    assert link.ms(np.array([0, 100])).tolist() == [0.5, 2.5]


def test_textbook_chunks_share_the_cost_of_their_stage() -> None:
    stages = uniform_profile(forward_ms=6, backward_ms=12, weight_ms=3, num_stages=2, num_chunks=3).stages(num_stages=6)
    assert [forward_ms(stage, tokens=1, squares=1, targets=1, adapters=1) for stage in stages] == [2.0] * 6
    assert {stage.weight_share for stage in stages} == {0.25}


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: PROFILE.stages(num_stages=6), "num_stages=6 must lie between 1 and the model's 5 layers"),
        (lambda: PROFILE.stages(num_stages=2, layers_per_stage=(5, 0)), "two|2 positive numbers that add up"),
        (lambda: PROFILE.stages(num_stages=2, kernels="frozen"), r"kernels='frozen' .* \['eager', 'fused'\]"),
        (lambda: uniform_profile(forward_ms=-1, backward_ms=2, num_stages=2), "none may be negative"),
        (lambda: uniform_profile(forward_ms=1, backward_ms=2, weight_ms=3, num_stages=2), "weight_ms is a part"),
    ],
)
def test_what_cannot_be_composed_is_refused(ask, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(TraceError, match=message):
        ask()


def test_what_each_way_of_recomputing_keeps() -> None:
    memory = MemoryCosts(
        activation_bytes_per_token_layer=100.0, selective_bytes_per_token_layer=70.0, boundary_bytes_per_token=10.0
    )
    assert [memory.kept_bytes_per_token_layer(mode) for mode in RECOMPUTE_MODES] == [100.0, 70.0, 10.0]
    assert [memory.rebuilt_bytes_per_token(mode) for mode in RECOMPUTE_MODES] == [0.0, 30.0, 90.0]
    # What was not measured is never promised.
    unknown = replace(memory, selective_bytes_per_token_layer=0.0)
    assert unknown.kept_bytes_per_token_layer("selective") == 100.0


def test_ways_of_recomputing_are_known_by_name() -> None:
    assert [recompute_mode(mode) for mode in RECOMPUTE_MODES] == list(RECOMPUTE_MODES)
    with pytest.raises(TraceError, match="recompute='some' is unknown; choose one of none, selective, full"):
        recompute_mode("some")
