"""A base in 4 bits: its weights, what it costs, and training on it as on what those bits stand for."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from loraplex.engine.model import Layout, StageModel, build_stage, read_config
from loraplex.engine.nf4_linear import Nf4Linear, held_bytes
from loraplex.engine.parity import check_parity
from loraplex.engine.place_weight import Nf4Settings
from loraplex.engine.profile import measure_profile
from loraplex.engine.rendezvous import RendezvousTransport, Switchboard
from loraplex.engine.stage import Stage, make_stage
from loraplex.engine.threads import run_in_threads
from loraplex.engine.tiny_model import write_shards, write_tiny_model
from loraplex.engine.weight_source import FROM_FOLDER, WeightSource
from loraplex.kernels.nf4 import Nf4Weight, quantize_nf4
from loraplex.planner.build_program import build_program
from loraplex.planner.errors import JobError
from loraplex.planner.inputs.base_model import find_base_model
from loraplex.planner.inputs.load_jobs import load_jobs
from loraplex.planner.jobs import Job
from loraplex.planner.model_shapes import ModelShapes
from loraplex.planner.plan import Plan

# Every linear has a whole number of blocks of 64 to a row.
SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 32},
    "mistral": {"sliding_window": 9},
}
NF4 = WeightSource(nf4=Nf4Settings())


def is_linear(name: str) -> bool:
    return "_proj.weight" in name


def weights_in(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def rewritten(folder: Path, change: Callable[[str, Tensor], dict[str, Tensor]], target: Path) -> Path:
    """The same model with every linear's weight written as `change` says."""
    target.mkdir()
    for path in folder.iterdir():
        if "safetensors" not in path.name:
            (target / path.name).write_bytes(path.read_bytes())
    made: dict[str, Tensor] = {}
    for name, tensor in weights_in(folder).items():
        made |= change(name, tensor) if is_linear(name) else {name: tensor}
    write_shards(made, target, shard_bytes=2_100)
    return target


def stored_by_bitsandbytes(name: str, dense: Tensor, *, nested: bool = False) -> dict[str, Tensor]:
    from bitsandbytes.functional import quantize_4bit

    packed, state = quantize_4bit(dense, blocksize=64, quant_type="nf4", compress_statistics=nested)
    return {name: packed, **{f"{name}.{word}": part for word, part in state.as_dict(packed=True).items()}}


def say_quantized(folder: Path) -> None:
    path = folder / "config.json"
    said = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": said}), encoding="utf-8")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("base"), changes=SMALL, shard_bytes=30_000)


def whole(folder: Path, **options: Any) -> StageModel:
    return build_stage(folder, Layout.of(num_layers=3, stage=0, num_stages=1), **options)


def linears(module: nn.Module) -> dict[str, Any]:
    return {f"{name}.weight": part for name, part in module.named_modules() if is_linear(f"{name}.weight")}


def test_the_frozen_product_and_its_gradient_are_the_dense_ones_bit_for_bit() -> None:
    weight = quantize_nf4(torch.randn(48, 64))
    bias = nn.Parameter(torch.randn(48), requires_grad=False)
    x = torch.randn(3, 5, 64)
    ours, theirs = (x.clone().requires_grad_() for _ in range(2))
    linear = Nf4Linear(weight, bias)
    found, wanted = linear(ours), nn.functional.linear(theirs, weight.dequantize(), bias)
    dy = torch.randn_like(found)
    torch.autograd.backward(found, dy)
    torch.autograd.backward(wanted, dy)
    assert torch.equal(found, wanted)
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.equal(ours.grad, theirs.grad)
    assert (linear.in_features, linear.out_features) == (64, 48)
    assert held_bytes(linear) == 48 * 64 // 2 + 48 * 64 // 64 * 4 + 48 * 4


@pytest.mark.parametrize("family", FAMILIES)
def test_linears_of_layers_are_rounded_and_nothing_else(tmp_path: Path, family: str) -> None:
    folder = write_tiny_model(tmp_path, changes={**SMALL, **FAMILIES[family], "model_type": family})
    held, dense = whole(folder, weights=NF4), whole(folder)
    found = linears(held)
    assert len(found) == 3 * 7
    for name, module in found.items():
        assert isinstance(module, Nf4Linear)
        assert torch.equal(module.weight.dequantize(), quantize_nf4(dense.get_parameter(name)).dequantize())
    kept = dict(held.named_parameters(remove_duplicate=False))
    wanted = {name: tensor for name, tensor in dense.named_parameters(remove_duplicate=False) if not is_linear(name)}
    assert kept.keys() == wanted.keys()
    assert all(torch.equal(kept[name], wanted[name]) for name in kept)
    spared = sum(dense.get_parameter(name).numel() for name in found)
    # Half a byte a weight and a float for 64 of them, where 4 bytes were; and as the planner foretells.
    assert held_bytes(dense) - held_bytes(held) == spared * 4 - spared // 2 - spared // 16
    shapes = ModelShapes.of(find_base_model(str(folder), relative_to=tmp_path))
    foretold = shapes.layer_weight_bytes(load_in_4bit=True) - shapes.layer_weight_bytes()
    assert 3 * foretold == held_bytes(held) - held_bytes(dense)


@pytest.mark.parametrize("nested", [False, True])
def test_checkpoints_that_bitsandbytes_quantized_are_read_as_they_are(base: Path, tmp_path: Path, nested: bool) -> None:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    folder = rewritten(
        base, lambda name, dense: stored_by_bitsandbytes(name, dense, nested=nested), tmp_path / "quantized"
    )
    say_quantized(folder)
    dense = weights_in(base)
    # Shards are so small that some weights have their parts in another file.
    files = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))["weight_map"]
    assert any(files[name] != files[f"{name}.absmax"] for name in dense if is_linear(name))
    for name, module in linears(whole(folder)).items():
        packed, state = quantize_4bit(dense[name], blocksize=64, quant_type="nf4", compress_statistics=nested)
        assert isinstance(module, Nf4Linear)
        assert torch.equal(module.weight.dequantize(), dequantize_4bit(packed, state))


def test_a_checkpoint_with_a_part_missing_is_named(base: Path, tmp_path: Path) -> None:
    def without_map(name: str, dense: Tensor) -> dict[str, Tensor]:
        return {key: part for key, part in stored_by_bitsandbytes(name, dense).items() if "quant_map" not in key}

    folder = rewritten(base, without_map, tmp_path / "quantized")
    say_quantized(folder)
    with pytest.raises(
        JobError, match=r"weight 'model.*proj.weight': the stored NF4 weight has no quant_map: give all"
    ):
        whole(folder)


@pytest.mark.parametrize(
    "said",
    [
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    ],
)
def test_other_quantizations_are_refused(tmp_path: Path, said: dict[str, Any]) -> None:
    folder = write_tiny_model(tmp_path, changes=SMALL)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": said}), encoding="utf-8")
    with pytest.raises(
        JobError, match=r"holds quantized weights; give the unquantized model, or one that bitsandbytes"
    ):
        read_config(folder)


def test_a_width_that_blocks_do_not_divide_is_named(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path, changes={**SMALL, "intermediate_size": 96})
    with pytest.raises(
        JobError, match=r"down_proj.weight' cannot be held in 4 bits \(.*K = 96.*leave out load_in_4bit"
    ):
        whole(folder, weights=NF4)


def test_random_weights_are_rounded_too(base: Path) -> None:
    held = whole(base, weights=WeightSource(random_seed=0, nf4=Nf4Settings()))
    dense = whole(base, weights=WeightSource(random_seed=0))
    for name, module in linears(held).items():
        assert isinstance(module.weight, Nf4Weight)
        assert torch.equal(module.weight.dequantize(), quantize_nf4(dense.get_parameter(name)).dequantize())


@pytest.mark.gpu
def test_on_a_gpu_weights_are_rounded_to_the_same_bits_and_give_the_dense_product(base: Path) -> None:
    on_host = linears(whole(base, weights=NF4, dtype=torch.bfloat16))
    for name, module in linears(whole(base, weights=NF4, dtype=torch.bfloat16, device="cuda")).items():
        dense = on_host[name].weight.dequantize()
        assert torch.equal(module.weight.dequantize().cpu(), dense)
        x = torch.randn(70, dense.shape[1], device="cuda", dtype=torch.bfloat16)
        torch.testing.assert_close(module(x), x @ dense.cuda().T)


def trained(folder: Path, plan: Plan, tokens: Any, source: WeightSource) -> dict[tuple[int, str], Tensor]:
    stages: list[Stage] = [
        make_stage(folder, plan.jobs, stage=stage, num_stages=2, weights=source, dtype=torch.float32)
        for stage in range(2)
    ]
    run_in_threads(stages, plan, build_program(plan), tokens)
    return {
        (index, name): parameter.detach()
        for stage in stages
        for index, adapter in enumerate(stage.adapters)
        for name, parameter in adapter.parameters.items()
    }


def test_training_is_training_on_what_the_bits_stand_for(
    base: Path,
    tmp_path: Path,
    three_jobs: Callable[..., tuple[Job, ...]],
    small_plan: Callable[..., Plan],
    tokens_of: Any,
) -> None:
    first, *others = three_jobs(num_steps=3, dropout=0.1)
    # No adapter targets up_proj, which is in 4 bits all the same.
    jobs = (replace(first, lora=replace(first.lora, target_modules=("k_proj",))), *others)
    plan = small_plan(jobs, num_stages=2)
    dense = rewritten(base, lambda name, tensor: {name: quantize_nf4(tensor).dequantize()}, tmp_path / "dense")
    stored = rewritten(base, stored_by_bitsandbytes, tmp_path / "stored")
    say_quantized(stored)
    wanted = trained(dense, plan, tokens_of(jobs), FROM_FOLDER)
    for folder, source in ((base, NF4), (stored, FROM_FOLDER)):
        found = trained(folder, plan, tokens_of(jobs), source)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    plain = trained(base, plan, tokens_of(jobs), FROM_FOLDER)
    assert not all(torch.equal(plain[key], wanted[key]) for key in wanted)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_parity_holds_on_a_base_in_4_bits(
    base: Path, three_jobs: Callable[..., tuple[Job, ...]], tokens_of: Any, tmp_path: Path
) -> None:
    jobs = three_jobs(num_steps=2)
    loaded: Any = SimpleNamespace(
        jobs=jobs, settings=SimpleNamespace(num_stages=2, microbatch_tokens=64), tokens=tokens_of(jobs).tokens
    )
    rows = check_parity(loaded, base, num_steps=2, source=NF4, dtype=torch.float64)
    assert max(row.max_weight_difference for row in rows) < 1e-10
    say_quantized(rewritten(base, stored_by_bitsandbytes, tmp_path / "stored"))
    with pytest.raises(JobError, match=r"stored' is stored in 4 bits; give the unquantized model, with load_in_4bit"):
        check_parity(loaded, tmp_path / "stored", num_steps=2)


def test_a_profile_counts_the_bytes_that_are_held(
    base: Path, three_jobs: Callable[..., tuple[Job, ...]], tmp_path: Path
) -> None:
    model = find_base_model(str(base), relative_to=tmp_path, load_in_4bit=True)
    board = Switchboard(1, timeout_s=60)
    profile = measure_profile(
        model, base, three_jobs(num_steps=2), RendezvousTransport(board, 0), num_stages=1, capacity_tokens=60,
        seconds=0.1,
    )  # fmt: skip
    foretold = ModelShapes.of(model).layer_weight_bytes(load_in_4bit=True)
    # Beside it the rotary frequencies of a stage, 8 of them and 8 more as they were at first.
    assert foretold <= profile.memory.layer_weight_bytes < foretold + 16 * 4


def test_a_job_file_asks_for_it(tmp_path: Path) -> None:
    path = tmp_path / "jobs.yaml"
    path.write_text(
        "base_model: tiny\nload_in_4bit: true\nbnb_4bit_use_double_quant: true\n"
        "adapters: [{name: a, datasets: [{path: 'demo:words.json'}]}]\n",
        encoding="utf-8",
    )
    model = load_jobs(path).settings.base_model
    assert WeightSource.of(model) == WeightSource(nf4=Nf4Settings(double_quant=True))
    path.write_text(path.read_text(encoding="utf-8") + "bnb_4bit_quant_type: fp4\n", encoding="utf-8")
    with pytest.raises(JobError, match=r"jobs.yaml:5: bnb_4bit_quant_type: .*nf4"):
        load_jobs(path)
