"""Adapters that we write: the newest peft loads them for every family, and vLLM's rules, as read, are kept."""

import dataclasses
import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from loraplex.engine.export import save_adapter
from loraplex.engine.merge import merge
from loraplex.engine.model import whole_linears
from loraplex.engine.peft_folder import read_peft_adapter
from loraplex.planner.jobs import LoraSettings, job_from_lengths
from loraplex.tests.engine.folders import FAMILIES, write_all_random

SETTINGS = {
    "all linears": LoraSettings(r=4, lora_alpha=8.0),
    "rslora": LoraSettings(r=3, lora_alpha=2.5, use_rslora=True, target_modules=("v_proj", "up_proj")),
}
# vllm/lora/peft_helper.py and utils.py, read at commit 0214369 and not run: what it asks of a config and of names.
VLLM_NAME = re.compile(r"base_model\.model\.model\.layers\.\d+\.(self_attn|mlp)\.[a-z]+_proj\.lora_[AB]\.weight")


@pytest.fixture(scope="module", params=FAMILIES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all_random(tmp_path_factory.mktemp("base"), request.param, dtype=torch.float32)


def written(base: Path, folder: Path, lora: LoraSettings) -> Path:
    """An adapter of random matrices on the linears that `lora` names, as a run would save it."""
    whole = AutoModelForCausalLM.from_pretrained(base)
    short = {name.rpartition(".")[2] for name in whole_linears(base)}
    targets = sorted(short if lora.target_modules == ("all-linear",) else lora.target_modules)
    generator = torch.Generator().manual_seed(1)
    tensors: dict[str, Tensor] = {}
    for name in whole_linears(base):
        if name.rpartition(".")[2] in targets:
            linear: Any = whole.get_submodule(name)
            num_out, num_in = linear.out_features, linear.in_features
            tensors[f"{name}.lora_A.weight"] = torch.randn(lora.r, num_in, generator=generator) / 10
            tensors[f"{name}.lora_B.weight"] = torch.randn(num_out, lora.r, generator=generator) / 10
    job = job_from_lengths(adapter=0, name="one", lengths=[4], global_batch_size=1, lora=lora)
    save_adapter(job, tensors, folder, base_model=str(base), target_modules=targets)
    return folder


@pytest.mark.parametrize("kind", SETTINGS)
def test_peft_loads_every_matrix_and_computes_what_folding_gives(base: Path, tmp_path: Path, kind: str) -> None:
    folder = written(base, tmp_path / "one", SETTINGS[kind])
    with warnings.catch_warnings():
        # A key that peft misses or does not expect is a warning.
        warnings.simplefilter("error", UserWarning)
        model: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
    saved = load_file(folder / "adapter_model.safetensors")
    held = {name.replace(".default.", "."): own for name, own in model.named_parameters() if "lora_" in name}
    assert held.keys() == saved.keys()
    assert all(torch.equal(held[name], saved[name]) for name in saved)
    merge(base, folder, output=tmp_path / "merged")
    token_ids = torch.arange(12)[None]
    found = model.eval()(token_ids, use_cache=False).logits
    wanted = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(token_ids, use_cache=False).logits
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", SETTINGS)
def test_the_config_is_known_to_the_newest_peft_and_fit_for_vllm(base: Path, tmp_path: Path, kind: str) -> None:
    folder = written(base, tmp_path / "one", SETTINGS[kind])
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert set(config) <= {field.name for field in dataclasses.fields(LoraConfig)}
    assert {"r", "lora_alpha", "target_modules"} <= set(config)
    assert (config["bias"], config["modules_to_save"], config["use_dora"]) == ("none", None, False)
    assert isinstance(config["target_modules"], list)
    names = load_file(folder / "adapter_model.safetensors")
    assert [name for name in names if not VLLM_NAME.fullmatch(name)] == []
    # And what we write we read: the factor is the job's.
    read = read_peft_adapter(folder)
    assert {read.scaling(linear) for linear in read.keys} == {SETTINGS[kind].scaling()}
