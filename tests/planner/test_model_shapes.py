"""Sizes read from config.json, and what weights and adapters take."""

from dataclasses import replace
from pathlib import Path

import pytest

from loraplex.planner.errors import JobError
from loraplex.planner.inputs.base_model import find_base_model
from loraplex.planner.model_shapes import ModelShapes


def shapes_of(name: str) -> ModelShapes:
    return ModelShapes.of(find_base_model(name, relative_to=Path()))


def test_llama_3_1_8b() -> None:
    shapes = shapes_of("llama-3.1-8b")
    assert shapes == ModelShapes(
        num_layers=32,
        hidden_size=4096,
        intermediate_size=14336,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        vocabulary=128256,
    )
    # The published 8,030,261,248 parameters, in bf16.
    whole = 32 * shapes.layer_weight_bytes() + 2 * (2 * 128256 * 4096 + 4096)
    assert whole == 2 * 8_030_261_248
    # peft's count for r = 16 on all linears is 41,943,040.
    assert 32 * shapes.lora_parameters(("all-linear",), r=16) == 41_943_040
    assert shapes.lora_parameters(("q_proj", "self_attn.v_proj"), r=8) == 8 * (4096 + 4096 + 4096 + 1024)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("qwen2.5-32b", 32_763_876_352), ("llama-3.1-70b", 70_553_706_496), ("qwen3-8b", 8_190_735_360)],
)
def test_published_parameters_of_other_families(name: str, parameters: int) -> None:
    shapes = shapes_of(name)
    ends = 2 * shapes.vocabulary * shapes.hidden_size + shapes.hidden_size
    assert shapes.num_layers * shapes.layer_weight_bytes() + 2 * ends == 2 * parameters


def test_in_4_bits_a_weight_takes_half_a_byte_and_its_share_of_a_scale() -> None:
    shapes = shapes_of("llama-3.1-8b")
    linear = (shapes.layer_weight_bytes() - 2 * 2 * 4096) / 2
    assert shapes.layer_weight_bytes(load_in_4bit=True) == linear * (0.5 + 4 / 64) + 2 * 2 * 4096


def test_the_type_is_that_of_the_config() -> None:
    model = find_base_model("tiny", relative_to=Path())
    assert ModelShapes.of(model).dtype_bytes == 4
    assert ModelShapes.of(replace(model, config={**model.config, "dtype": "float16"})).dtype_bytes == 2


def test_a_config_that_lacks_a_number_is_named() -> None:
    model = find_base_model("tiny", relative_to=Path())
    lacking = replace(model, config={name: held for name, held in model.config.items() if name != "hidden_size"})
    with pytest.raises(JobError, match="'tiny' has hidden_size=None; a positive whole number is needed"):
        ModelShapes.of(lacking)


def test_a_tied_weight_is_held_once_by_one_stage_and_at_both_ends_by_more() -> None:
    own = ModelShapes(
        num_layers=1, hidden_size=8, intermediate_size=8, num_heads=1, num_kv_heads=1, head_dim=8, vocabulary=100
    )
    tied = replace(own, tied_head=True)
    table, norm = 2 * 100 * 8, 2 * 8
    assert [own.end_weight_bytes(num_stages=stages) for stages in (1, 2)] == [(table, table + norm)] * 2
    assert [tied.end_weight_bytes(num_stages=stages) for stages in (1, 2)] == [(table, norm), (table, table + norm)]
