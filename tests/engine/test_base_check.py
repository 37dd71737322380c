"""A base model is looked at before any process starts: every weight that does not fit is named with its file."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from loraplex.engine import train as train_module
from loraplex.engine.base_check import check_base
from loraplex.engine.model import read_config, whole_linears, without_weights
from loraplex.engine.run_settings import RunSettings
from loraplex.engine.train import train
from loraplex.engine.weights import INDEX
from loraplex.planner.errors import JobError
from loraplex.planner.inputs.base_model import BaseModel
from loraplex.planner.inputs.tiny_tokenizer import tiny_tokenizer
from loraplex.tests.engine.folders import FAMILIES, write_all_random

LAST = "model.layers.2.mlp.down_proj.weight"
MODEL = BaseModel(name="base", folder=None, family="llama", num_layers=3, max_tokens=64)
JOB = """\
base_model: base
sequence_len: 64
pipeline: {stages: 2}
adapters:
  - {name: one, r: 2, datasets: [{path: texts.jsonl}], max_steps: 1}
"""


def shard_of(folder: Path, key: str) -> Path:
    index: dict[str, Any] = json.loads((folder / INDEX).read_text())
    return folder / str(index["weight_map"][key])


def changed(folder: Path, key: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> Path:
    """The shard of a weight, written anew with that weight changed, or without it."""
    path = shard_of(folder, key)
    tensors = load_file(path)
    made = change(tensors.pop(key))
    save_file(tensors if made is None else {**tensors, key: made.contiguous()}, path)
    return path


@pytest.mark.parametrize("family", FAMILIES)
def test_whole_models_of_every_family_pass(tmp_path: Path, family: str) -> None:
    check_base(write_all_random(tmp_path / "base", family), MODEL)


def test_what_a_file_lacks_or_has_otherwise_is_named_with_the_file(tmp_path: Path) -> None:
    folder = write_all_random(tmp_path / "base", "llama")
    shard = changed(folder, LAST, lambda weight: weight[:, :7])
    with pytest.raises(JobError) as error:
        check_base(folder, MODEL)
    assert str(error.value) == (
        f"{shard}: weight '{LAST}' has shape (32, 7), config.json asks for (32, 48); give the weights and the "
        "config.json of one model"
    )
    changed(folder, LAST, lambda weight: None)
    with pytest.raises(JobError, match=rf"{shard.name} has no weight '{LAST}'; download the model anew"):
        check_base(folder, MODEL)
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(JobError, match=rf"{shard.name} cannot be read as safetensors"):
        check_base(folder, MODEL)


def test_random_weights_need_no_files_and_4_bits_need_whole_blocks(tmp_path: Path) -> None:
    folder = write_all_random(tmp_path / "base", "llama")
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    check_base(folder, replace(MODEL, random_weights=True))
    packed = replace(MODEL, random_weights=True, load_in_4bit=True)
    with pytest.raises(JobError, match=r"q_proj reads 32 features, which load_in_4bit cannot cut into blocks of 64"):
        check_base(folder, packed)


def test_transformers_may_refuse_a_config_that_it_can_read(tmp_path: Path) -> None:
    folder = write_all_random(tmp_path / "base", "llama")
    config = read_config(folder)
    config.rope_parameters = {"rope_type": "spiral"}
    with pytest.raises(JobError, match=r"transformers refuses its config.json \(KeyError: 'spiral'\)"):
        without_weights(config, folder=folder)
    assert len(whole_linears(folder)) == 21


def test_a_resumed_run_says_that_there_is_nothing_to_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "texts.jsonl").write_text('{"prompt": "1", "completion": "2"}\n', encoding="utf-8")
    (tmp_path / "jobs.yaml").write_text(JOB.replace("base_model: base", "base_model: tiny"), encoding="utf-8")
    monkeypatch.setattr(train_module, "launch", lambda *_, **__: None)
    told: list[str] = []
    for resume in (False, True):
        # Nothing is trained, so nothing is there to be read afterwards.
        with pytest.raises(FileNotFoundError):
            train(RunSettings(job_file=tmp_path / "jobs.yaml", device="cpu", resume=resume), tell=told.append)
    assert told == [f"no whole checkpoint in {tmp_path}/output/checkpoints: training from the beginning"]


def test_train_refuses_before_any_process_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_all_random(tmp_path / "base", "llama", changes={"vocab_size": 262})
    tiny_tokenizer().save_pretrained(folder)
    (tmp_path / "texts.jsonl").write_text('{"prompt": "1", "completion": "2"}\n', encoding="utf-8")
    (tmp_path / "jobs.yaml").write_text(JOB, encoding="utf-8")
    monkeypatch.setattr(train_module, "launch", lambda *_, **__: pytest.fail("started"))
    changed(folder, LAST, lambda weight: weight[:, :7])
    with pytest.raises(JobError, match="has shape"):
        train(RunSettings(job_file=tmp_path / "jobs.yaml", device="cpu"))
