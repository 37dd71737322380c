"""The GPU's profiler from end to end, on a CPU: all of it but the numbers. No time is asserted."""

from pathlib import Path

import pytest
import torch

from loraplex.engine.base_folder import base_model_folder
from loraplex.engine.gpu_profile import (
    GpuProfile,
    GpuRequest,
    depths_of,
    device_slug,
    link_costs,
    measure_gpu_profile,
    model_slug,
    shallow,
)
from loraplex.engine.message import Wire
from loraplex.engine.rendezvous import RendezvousTransport, Switchboard
from loraplex.engine.tiny_model import write_tiny_model
from loraplex.planner.inputs.base_model import BaseModel, find_base_model
from loraplex.planner.jobs import LoraSettings
from loraplex.planner.model_shapes import ModelShapes
from loraplex.traces.costs import CostProfile
from loraplex.traces.graph_tokens import GRAPH_TOKENS
from loraplex.traces.profile_points import PIECES, WHOLE, load_points, points_path, save_points

LORAS = (LoraSettings(r=4), LoraSettings(r=4, lora_dropout=0.1))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> GpuProfile:
    folder = write_tiny_model(tmp_path_factory.mktemp("model"), changes={"num_hidden_layers": 2, "hidden_size": 32})
    base = BaseModel(name="small", folder=folder, family="llama", num_layers=2, max_tokens=4096)
    told: list[str] = []
    request = GpuRequest(
        capacity_tokens=96,
        depth=1,
        loras=LORAS,
        num_conditions=7,
        seconds=0.0,
        command="a command",
        tell=told.append,
    )
    transport = RendezvousTransport(Switchboard(1, timeout_s=60), 0)
    torch.set_num_threads(1)
    found = measure_gpu_profile(base, folder, transport, request, device=torch.device("cpu"))
    kinds = [line.split(":")[0] for line in told if not line.startswith(" ")]
    assert kinds == [
        "stage of 1 layer",
        "stage of 2 layers",
        "first of 1 layer",
        "last of 1 layer",
        "frozen of 1 layer",
        "frozen of 2 layers",
    ]
    indented = [line for line in told if line.startswith(" ")]
    (stretch,) = [line for line in indented if "without a rest" in line]
    assert stretch.startswith("  2 turns of 4 large microbatches without a rest in ")
    assert all("then 4 of about" in line for line in indented if line != stretch)
    return found


def test_every_piece_is_measured_on_the_microbatches_it_needs(measured: GpuProfile) -> None:
    counts = measured.points.groupby(["piece", "recompute", "layers"])["condition"].nunique().to_dict()
    assert counts == {
        ("stage", "none", 1): 7,
        ("stage", "none", 2): 4,
        ("stage", "selective", 1): 3,
        ("stage", "full", 1): 3,
        ("first", "none", 1): 3,
        ("last", "none", 1): 3,
        ("steady", "none", 2): 4,
        ("frozen", "none", 1): 3,
        ("frozen", "none", 2): 3,
        ("attention", "none", 1): 3,
        ("linears-frozen", "none", 1): 3,
        ("linears-eager", "none", 1): 3,
        ("step", "none", 1): 1,
        ("step", "none", 2): 1,
    }
    assert set(measured.points["piece"]) == set(PIECES)
    assert (measured.points["ms"] > 0).all()
    assert (measured.points["low_ms"] <= measured.points["ms"]).all()
    assert (measured.points["ms"] <= measured.points["high_ms"]).all()
    # Four rounds (below 24 tokens there are no small microbatches, which have more), of which one counts bytes where
    # there is a stage with adapters.
    stages = measured.points["piece"].isin(["stage", "first", "last", "step"])
    assert (measured.points["rounds"][stages] == 3).all()
    # Of the stretch without a rest the second turn is timed.
    stretch = measured.points["piece"] == "steady"
    assert (measured.points["rounds"][stretch] == 1).all()
    assert (measured.points["rounds"][~stages & ~stretch] == 4).all()
    # No microbatch pays for the end of a global batch.
    assert (measured.points["closes"] == 0).all()
    # The same microbatch is the same everywhere.
    loads = measured.points[measured.points["piece"] != "step"].groupby("condition")[["tokens", "squares", "targets"]]
    assert (loads.nunique() == 1).all(axis=None)


def test_the_profile_is_whole_and_survives_its_file(measured: GpuProfile, tmp_path: Path) -> None:
    profile = measured.profile
    assert (profile.name, profile.origin, profile.num_layers) == ("small-cpu-measured", "measured", 2)
    for words in ("CPU, 1 process, torch ", "stages of 1 and 2 layers of small stand for all 2", "; a command"):
        assert words in profile.source
    assert profile.fit_error_median is not None
    assert profile.fit_error_worst is not None
    for factor in (profile.steady_forward_factor, profile.steady_backward_factor):
        assert factor is not None
        assert factor >= 1.0
    assert set(profile.forward.linears) == {"eager", "frozen"}
    assert set(profile.recomputation) == {"selective", "full"}
    profile.save(tmp_path / "profile.json")
    save_points(measured.points, points_path(tmp_path / "profile.json"), source=profile.source)
    assert CostProfile.load(tmp_path / "profile.json") == profile
    assert len(load_points(tmp_path / "profile.points.csv")) == len(measured.points)
    for stage in profile.stages(num_stages=2, recompute="full"):
        given = {"tokens": 90, "squares": 4000, "targets": 50, "adapters": 2, "dropped": 40}
        assert float(stage.forward_ms(**given)) > 0
        assert float(stage.backward_ms(**given)) > 0


@pytest.mark.parametrize(("num_layers", "depth", "depths"), [(32, 2, (2, 4)), (3, 2, (2, 3)), (1, 2, (1,))])
def test_depths_are_two_as_far_as_there_are_layers(num_layers: int, depth: int, depths: tuple[int, ...]) -> None:
    assert depths_of(num_layers, depth=depth) == depths


def test_drawn_weights_need_only_the_layers_that_are_measured(tmp_path: Path) -> None:
    base = find_base_model("llama-3.1-70b", relative_to=tmp_path, random_weights=True)
    small = shallow(base, depth=2)
    assert (small.num_layers, small.config["num_hidden_layers"]) == (4, 4)
    assert ModelShapes.of(small).layer_weight_bytes() == ModelShapes.of(base).layer_weight_bytes()
    stored = find_base_model("llama-3.1-70b", relative_to=tmp_path)
    assert shallow(stored, depth=2) == stored


def test_a_link_has_latency_and_bandwidth() -> None:
    wire = Wire(hidden_size=1000, dtype=torch.bfloat16)
    sizes = (1, 256, 1024, 4096, 8192)
    link = link_costs([0.05 + 2000 * tokens / 1e6 for tokens in sizes], wire)
    assert (link.latency_ms, link.bytes_per_ms, link.bytes_per_token) == pytest.approx((0.05, 1e6, 2000))
    assert link_costs([], wire).ms(100) == 0.0


def test_a_model_keeps_its_name(tmp_path: Path) -> None:
    assert model_slug(find_base_model("llama-3.1-8b", relative_to=tmp_path, random_weights=True)) == "llama-3.1-8b"


def test_a_device_has_a_name_for_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    assert device_slug(torch.device("cuda", 0)) == "nvidia-h100-80gb-hbm3"


@pytest.mark.gpu
def test_a_gpu_is_measured_with_its_memory(tmp_path: Path) -> None:
    base = find_base_model("qwen3-8b", relative_to=tmp_path, random_weights=True)
    folder = base_model_folder(base, output_dir=tmp_path)
    request = GpuRequest(capacity_tokens=2048, depth=1, num_conditions=7, seconds=0.0)
    transport = RendezvousTransport(Switchboard(1, timeout_s=60), 0)
    found = measure_gpu_profile(base, folder, transport, request, device=torch.device("cuda", 0))
    assert set(found.profile.forward.linears) == {"fused", "eager", "frozen"}
    whole = found.points[found.points["piece"].isin(WHOLE)]
    assert set(whole["replayed"][whole["tokens"] <= GRAPH_TOKENS]) == {False, True}
    assert not whole["replayed"][whole["tokens"] > GRAPH_TOKENS].any()
    assert (found.profile.graphs.max_tokens, found.profile.memory.graph_tokens) == (GRAPH_TOKENS, GRAPH_TOKENS)
    memory = found.profile.memory
    assert memory.activation_bytes_per_token_layer > memory.selective_bytes_per_token_layer > 0
    assert memory.selective_bytes_per_token_layer > memory.boundary_bytes_per_token >= 2 * 4096
    # Two bytes of every weight, counted exactly; the rotary frequencies are beside the layers.
    assert memory.layer_weight_bytes == ModelShapes.of(base).layer_weight_bytes()
    assert memory.adapter_bytes_per_layer / memory.adapter_parameters_per_layer > 12
    assert memory.capacity_bytes > 2**30
