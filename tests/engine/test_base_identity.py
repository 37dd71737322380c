"""A base model is known again in other shards, and told from a fine-tuned copy and from another seed's."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from loraplex.engine.base_identity import base_identity
from loraplex.engine.tiny_model import write_shards
from loraplex.planner.inputs.base_model import BaseModel
from loraplex.tests.engine.folders import write_all_random

MODEL = BaseModel(name="base", folder=None, family="llama", num_layers=3, max_tokens=64)


def test_the_same_weights_in_other_shards_are_the_same_model(tmp_path: Path) -> None:
    one = write_all_random(tmp_path / "one", "llama")
    tensors: dict[str, torch.Tensor] = {}
    for path in one.glob("*.safetensors"):
        tensors |= load_file(path)
    (tmp_path / "other").mkdir()
    write_shards(tensors, tmp_path / "other", shard_bytes=10**9)
    assert len(list((tmp_path / "other").glob("*.safetensors"))) == 1
    known = base_identity(one, MODEL, seed=0)
    assert base_identity(tmp_path / "other", MODEL, seed=1) == known

    key = "model.layers.2.self_attn.q_proj.weight"
    tensors[key][0, 0] += 1
    save_file(tensors, tmp_path / "other" / "model.safetensors")
    assert base_identity(tmp_path / "other", MODEL, seed=0) != known


@pytest.mark.parametrize(
    "other",
    [
        replace(MODEL, load_in_4bit=True),
        replace(MODEL, num_layers=2),
        replace(MODEL, random_weights=True),
        replace(MODEL, config={"rope_theta": 5e5}),
    ],
)
def test_how_it_is_held_counts(tmp_path: Path, other: BaseModel) -> None:
    folder = write_all_random(tmp_path / "one", "llama")
    assert base_identity(folder, other, seed=0) != base_identity(folder, MODEL, seed=0)


def test_random_weights_are_their_seed(tmp_path: Path) -> None:
    drawn = replace(MODEL, random_weights=True)
    assert base_identity(tmp_path, drawn, seed=3) == base_identity(tmp_path, drawn, seed=3)
    assert base_identity(tmp_path, drawn, seed=3) != base_identity(tmp_path, drawn, seed=4)
