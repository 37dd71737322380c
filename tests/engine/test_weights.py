"""Weights as they lie on disk: every family, sharded, each stage reads its own; what is missing is named."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from loraplex.engine.base_folder import base_model_folder, base_reference
from loraplex.engine.model import Layout, build_stage
from loraplex.engine.tiny_model import write_tiny_model
from loraplex.engine.weight_source import WeightSource
from loraplex.planner.errors import JobError
from loraplex.planner.inputs.base_model import find_base_model
from loraplex.tests.engine.folders import FAMILIES, SMALL, write_all_random


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all_random(tmp_path_factory.mktemp("model"), request.param)


def held_by(folder: Path, *, num_stages: int, **options: Any) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for stage in range(num_stages):
        module = build_stage(folder, Layout.of(num_layers=3, stage=stage, num_stages=num_stages), **options)
        found |= dict(module.named_parameters(remove_duplicate=False))
    return found


def test_every_weight_of_every_family_is_the_one_transformers_reads(folder: Path) -> None:
    whole = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    for num_stages in (1, 3):
        held = held_by(folder, num_stages=num_stages)
        assert held.keys() == whole.keys()
        assert [name for name in held if not torch.equal(held[name], whole[name])] == []
        assert {tensor.dtype for tensor in held.values()} == {torch.bfloat16}
    assert any("bias" in name for name in whole) == ("qwen2" in str(AutoConfig.from_pretrained(folder).model_type))


@pytest.mark.gpu
def test_weights_go_to_the_gpu_in_the_dtype_asked_for(folder: Path) -> None:
    whole = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    held = held_by(folder, num_stages=2, device="cuda", dtype=torch.float32)
    assert {(tensor.device.type, tensor.dtype) for tensor in held.values()} == {("cuda", torch.float32)}
    assert [name for name in held if not torch.equal(held[name].cpu(), whole[name].float())] == []


def test_whoever_waits_hears_which_file_is_read(folder: Path) -> None:
    heard: list[tuple[int, int]] = []
    source = WeightSource(report=lambda number, num_files: heard.append((number, num_files)))
    build_stage(folder, Layout.of(num_layers=3, stage=1, num_stages=3), weights=source)
    assert len(heard) > 1
    assert heard == [(number, len(heard)) for number in range(1, len(heard) + 1)]


def test_a_shard_that_is_not_there_is_named_before_anything_runs(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "base", changes=SMALL, shard_bytes=8_000)
    shards = sorted(folder.glob("*.safetensors"))
    for shard in shards[1:6]:
        shard.unlink()
    named = ", ".join(shard.name for shard in shards[1:4])
    with pytest.raises(
        JobError, match=rf"base' lacks {named} and 2 more, which model.safetensors.index.json names; do"
    ):
        base_model_folder(find_base_model("base", relative_to=tmp_path), output_dir=tmp_path)


def test_a_weight_that_its_file_does_not_hold_is_named(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "base", changes=SMALL, shard_bytes=8_000)
    index = folder / "model.safetensors.index.json"
    known = json.loads(index.read_text(encoding="utf-8"))
    known["weight_map"]["model.norm.weight"] = known["weight_map"]["model.embed_tokens.weight"]
    index.write_text(json.dumps(known), encoding="utf-8")
    with pytest.raises(JobError, match=r"has no weight 'model.norm.weight'.*; download the model anew"):
        build_stage(folder, Layout.of(num_layers=3, stage=0, num_stages=1))


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model in a hub cache of our own, on a machine without internet; its snapshot."""
    cache = tmp_path / "hub"
    repository = cache / "models--some--model"
    snapshot = repository / "snapshots" / ("0" * 40)
    write_tiny_model(snapshot, changes=SMALL, shard_bytes=8_000)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40, encoding="utf-8")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return snapshot


def test_a_hub_id_is_found_in_the_local_cache_without_internet(cached: Path, tmp_path: Path) -> None:
    model = find_base_model("some/model", relative_to=tmp_path)
    assert model.folder == cached
    assert base_model_folder(model, output_dir=tmp_path) == cached


def test_adapters_name_their_base_as_peft_can_load_it(
    cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").symlink_to(cached)

    def named(name: str, *, random_weights: bool = False) -> str:
        model = find_base_model(name, relative_to=Path(), random_weights=random_weights)
        return base_reference(model, base_model_folder(model, output_dir=Path("out")))

    assert named("some/model") == "some/model"
    assert named("own") == str(cached)
    assert named("tiny") == str(tmp_path / "out" / "base-model")
    assert named("llama-3.1-8b", random_weights=True) == str(tmp_path / "out" / "random-base")
    for name in ("own", "tiny"):
        assert AutoConfig.from_pretrained(named(name)).model_type == "llama"


def test_a_cached_model_without_its_weights_says_what_to_do(cached: Path, tmp_path: Path) -> None:
    next(cached.glob("*.safetensors")).unlink()
    model = find_base_model("some/model", relative_to=tmp_path)
    with pytest.raises(JobError, match=r"lacks model-00.*, which .* names; run `hf download some/model` where"):
        base_model_folder(model, output_dir=tmp_path)
    with pytest.raises(
        JobError, match=r"'some/other' is no folder below .*; as a hub id: 'some/other' is not complete"
    ):
        find_base_model("some/other", relative_to=tmp_path)
