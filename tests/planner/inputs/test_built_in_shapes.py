"""Built-in shapes: which there are, and that they are the models they are named after."""

import json
from pathlib import Path

import pytest

from loraplex.planner.errors import JobError
from loraplex.planner.inputs.base_model import find_base_model, load_tokenizer
from loraplex.planner.inputs.built_in_shapes import shape_config, shape_names

# Layers, and parameters in all as the makers state them (billions).
KNOWN = {
    "llama-3.1-70b": (80, 70.6),
    "llama-3.1-8b": (32, 8.03),
    "mistral-7b": (32, 7.25),
    "qwen2.5-32b": (64, 32.8),
    "qwen3-8b": (36, 8.19),
}


def num_parameters(config: dict[str, int]) -> int:
    """Counted by hand from the widths."""
    hidden, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head = config.get("head_dim", hidden // config["num_attention_heads"])
    query, key = head * config["num_attention_heads"], head * config["num_key_value_heads"]
    layer = 2 * query * hidden + 2 * key * hidden + 3 * hidden * inner + 2 * hidden
    return config["num_hidden_layers"] * layer + 2 * vocabulary * hidden + hidden


def test_the_shapes_have_the_sizes_of_their_models() -> None:
    found = {}
    for name in shape_names():
        config = shape_config(name)
        found[name] = (config["num_hidden_layers"], float(f"{num_parameters(config) / 1e9:.3g}"))
    assert found == KNOWN


def test_a_shape_is_a_base_model_to_plan_with(tmp_path: Path) -> None:
    model = find_base_model("qwen2.5-32b", relative_to=tmp_path)
    assert (model.family, model.num_layers, model.max_tokens, model.folder) == ("qwen2", 64, 131072, None)
    assert model.targets(["q_proj", "mlp.down_proj"]) == ("q_proj", "down_proj")
    with pytest.raises(
        JobError, match=r"'qwen2.5-32b' is a shape without a tokenizer; give a model folder, or data of"
    ):
        load_tokenizer(model)


def test_a_folder_of_the_same_name_goes_first(tmp_path: Path) -> None:
    (tmp_path / "mistral-7b").mkdir()
    config = {"model_type": "mistral", "num_hidden_layers": 3, "max_position_embeddings": 100}
    (tmp_path / "mistral-7b" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert find_base_model("mistral-7b", relative_to=tmp_path).num_layers == 3


def test_fewer_layers_and_a_config_file_alone(tmp_path: Path) -> None:
    (tmp_path / "own.json").write_text(json.dumps(shape_config("qwen3-8b")), encoding="utf-8")
    model = find_base_model("own.json", relative_to=tmp_path, random_weights=True, num_layers=2)
    assert (model.num_layers, model.config["num_hidden_layers"], model.config["hidden_size"]) == (2, 2, 4096)
    with pytest.raises(JobError, match=r"num_layers=2 goes with random weights only; set random_weights or leave it"):
        find_base_model("own.json", relative_to=tmp_path, num_layers=2)


def test_a_checkpoint_in_4_bits_is_known_by_its_config(tmp_path: Path) -> None:
    said = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(shape_config("qwen3-8b") | {"quantization_config": said}), encoding="utf-8")
    assert find_base_model(str(path), relative_to=tmp_path).is_in_4bit()
    assert not find_base_model("qwen3-8b", relative_to=tmp_path).is_in_4bit()


def test_the_shapes_are_named_to_who_mistypes_one(tmp_path: Path) -> None:
    with pytest.raises(
        JobError, match=r"'llama-8b' is no folder .* or name a shape: llama-3.1-70b, llama-3.1-8b, mist"
    ):
        find_base_model("llama-8b", relative_to=tmp_path)
