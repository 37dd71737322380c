"""Stages of real transformers models: the same numbers as the whole model, and only their own weights read."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from loraplex.engine.batch import PackedRows
from loraplex.engine.model import Layout, StageModel, build_stage, read_config, whole_linears
from loraplex.engine.tiny_model import write_tiny_model
from loraplex.engine.weights import load_weights, weight_files
from loraplex.planner.errors import JobError

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 5, "vocab_size": 40, "pad_token_id": 0}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"rope_scaling": LLAMA3_ROPE},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"tie_word_embeddings": True, "head_dim": 16},
    # A window shorter than the longest sample.
    "mistral": {"sliding_window": 9, "head_dim": 8},
}
LENGTHS = (5, 17, 1, 9)


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family = request.param
    changes: dict[str, Any] = {**SMALL, "model_type": family, **FAMILIES[family]}
    return write_tiny_model(tmp_path_factory.mktemp(family), changes=changes, shard_bytes=9_000)


def through(stages: list[StageModel], token_ids: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """Logits of packed samples, from stage to stage."""
    rows = PackedRows.of(lengths)
    hidden = token_ids
    for stage in stages:
        hidden = stage(hidden, rows=rows)
    return stages[-1].head_norm(hidden[0]) @ stages[-1].head_weight().T


def stages_of(folder: Path, num_stages: int) -> list[StageModel]:
    return [
        build_stage(folder, Layout.of(num_layers=5, stage=stage, num_stages=num_stages)) for stage in range(num_stages)
    ]


@pytest.mark.parametrize("num_stages", [1, 2, 5])
def test_packed_samples_through_stages_equal_each_sample_through_the_whole_model(folder: Path, num_stages: int) -> None:
    whole = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    token_ids = torch.randint(0, 40, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(0))
    expected = torch.cat(
        [whole(sample, use_cache=False).logits[0] for sample in torch.split(token_ids, list(LENGTHS), dim=1)]
    )
    torch.testing.assert_close(through(stages_of(folder, num_stages), token_ids, LENGTHS), expected, atol=1e-5, rtol=0)


def test_no_sample_sees_another(folder: Path) -> None:
    token_ids = torch.randint(0, 40, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(0))
    changed = token_ids.clone()
    changed[:, 5:22] = (changed[:, 5:22] + 1) % 40
    stages = stages_of(folder, 2)
    same = (through(stages, token_ids, LENGTHS) == through(stages, changed, LENGTHS)).all(dim=1)
    assert same.tolist() == [True] * 5 + [False] * 17 + [True] * 10


def test_a_stage_holds_and_reads_its_own_weights_only(folder: Path) -> None:
    config = read_config(folder)
    files = weight_files(folder)
    held: list[str] = []
    for stage in range(3):
        layout = Layout.of(num_layers=5, stage=stage, num_stages=3)
        module = build_stage(folder, layout)
        names = [name for name, _ in module.named_parameters()]
        assert not any(parameter.requires_grad for parameter in module.parameters())
        opened = load_weights(module, folder, dtype=torch.float32, device="cpu", tied_head=config.tie_word_embeddings)
        read = ["model.embed_tokens.weight" if name not in files else name for name in names]
        assert set(opened) == {files[name] for name in read}
        assert len(opened) < len(set(files.values()))
        held += names
    # Together they hold every weight once; a tied head is the embedding, held by the last stage too.
    assert sorted(held) == sorted({*files, "lm_head.weight"})


def test_linears_are_named_as_in_the_whole_model(folder: Path) -> None:
    linears = whole_linears(folder)
    assert len(linears) == 5 * 7
    assert linears[:7] == tuple(
        f"model.layers.0.{name}"
        for name in (
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.o_proj",
            "mlp.gate_proj",
            "mlp.up_proj",
            "mlp.down_proj",
        )
    )
    assert tuple(name for stage in stages_of(folder, 2) for group in stage.groups() for name in group.names) == linears


def test_layers_are_split_as_in_the_cost_profiles() -> None:
    spans = [Layout.of(num_layers=5, stage=stage, num_stages=3) for stage in range(3)]
    assert [(span.first_layer, span.end_layer, span.is_first, span.is_last) for span in spans] == [
        (0, 2, True, False),
        (2, 4, False, False),
        (4, 5, False, True),
    ]
    with pytest.raises(JobError, match=r"pipeline.stages=6 exceeds the base model's 5 layers; every stage needs one"):
        Layout.of(num_layers=5, stage=0, num_stages=6)


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "model", changes=SMALL, shard_bytes=9_000)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"has no config.json; give the folder of a Hugging Face model"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "is of type 'gpt2'; the engine runs llama, qwen2, qwen3, mistral"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "holds quantized weights; give the unquantized"),
        ({"hidden_size": "32"}, r"transformers refuses its config.json \(.*expected int, got str.*\); download"),
    ],
)
def test_models_that_are_not_run_are_refused(broken: Path, change: dict[str, Any], message: str) -> None:
    path = broken / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(JobError, match=message):
        read_config(broken)


def test_missing_broken_and_misshapen_weights_are_named(broken: Path) -> None:
    layout = Layout.of(num_layers=5, stage=0, num_stages=1)
    index = broken / "model.safetensors.index.json"
    known = json.loads(index.read_text())
    shard = broken / known["weight_map"]["model.norm.weight"]
    content = shard.read_bytes()

    shard.write_bytes(content[:20])
    with pytest.raises(JobError, match=rf"{shard.name} cannot be read as safetensors"):
        build_stage(broken, layout)
    shard.write_bytes(content)

    config = broken / "config.json"
    text = config.read_text()
    config.write_text(json.dumps(json.loads(text) | {"vocab_size": 41}))
    with pytest.raises(JobError, match=r"embed_tokens.weight' has shape \(40, 32\), config.json asks for \(41, 32\)"):
        build_stage(broken, layout)
    config.write_text(text)

    index.write_text(json.dumps({"weight_map": {k: v for k, v in known["weight_map"].items() if "norm" not in k}}))
    with pytest.raises(JobError, match=r"has no weight 'model.layers.0.input_layernorm.weight'"):
        build_stage(broken, layout)
    index.write_text(json.dumps({"weight_map": {k: f"../{v}" for k, v in known["weight_map"].items()}}))
    with pytest.raises(JobError, match=r"names the file '../model.*'; it must lie in the same folder"):
        build_stage(broken, layout)
    for text in ("{", "[]", '{"weight_map": []}', '{"weight_map": null}', "7"):
        index.write_text(text)
        with pytest.raises(JobError, match=r"is no safetensors index"):
            build_stage(broken, layout)
    index.write_bytes(b"\xff")
    with pytest.raises(JobError, match=r"is no safetensors index \(UnicodeDecodeError"):
        build_stage(broken, layout)
    index.unlink()
    with pytest.raises(JobError, match=r"has neither model.safetensors.index.json nor model.safetensors; only"):
        build_stage(broken, layout)


def test_one_file_without_an_index_is_read_as_well(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path, changes=SMALL, shard_bytes=10_000_000)
    assert (folder / "model.safetensors").is_file()
    assert not (folder / "model.safetensors.index.json").exists()
    module = build_stage(folder, Layout.of(num_layers=5, stage=0, num_stages=1), dtype=torch.float64)
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float64}


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rotary_embeddings_that_depend_on_the_neighbours_are_refused(tmp_path: Path, kind: str) -> None:
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": 10_000.0, "factor": 2.0}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 64, "long_factor": [2.0] * 64, "original_max_position_embeddings": 64}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "rope_scaling": rope}), encoding="utf-8")
    with pytest.raises(JobError, match=f"type '{kind}', which depend on the longest sample of a microbatch"):
        read_config(tmp_path)
