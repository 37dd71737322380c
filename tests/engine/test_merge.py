"""`loraplex merge` gives what peft's merge_and_unload gives, without ever holding the model."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from loraplex.cli import main
from loraplex.engine.errors import DiskError
from loraplex.engine.export import save_adapter
from loraplex.engine.merge import folded, merge
from loraplex.planner.errors import JobError
from loraplex.planner.jobs import LoraSettings, job_from_lengths
from loraplex.tests.engine.folders import FAMILIES, write_all_random, write_peft_adapter

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
ADAPTERS: dict[str, dict[str, Any]] = {
    "all linears": {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"},
    "rslora": {"r": 3, "lora_alpha": 7, "use_rslora": True, "target_modules": ["q_proj", "down_proj"]},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "k_proj", "gate_proj"],
        "rank_pattern": {"layers.1.self_attn.q_proj": 2, r"layers\.[02]\..*gate_proj": 6},
        "alpha_pattern": {"k_proj": 3},
    },
}


@pytest.fixture(scope="module", params=FAMILIES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all_random(tmp_path_factory.mktemp("base"), request.param, dtype=torch.float32)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all_random(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def adapter(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_peft_adapter(llama, tmp_path_factory.mktemp("adapter"), ADAPTERS["all linears"])


def weights_in(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def merged_by_peft(base: Path, adapter: Path) -> Mapping[str, Tensor]:
    model: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    weights: Mapping[str, Tensor] = model.merge_and_unload().state_dict()
    return weights


@pytest.mark.parametrize("kind", ADAPTERS)
def test_it_is_what_peft_makes_of_every_family(base: Path, tmp_path: Path, kind: str) -> None:
    adapter = write_peft_adapter(base, tmp_path / "adapter", ADAPTERS[kind])
    done = merge(base, adapter, output=tmp_path / "merged")
    found, before = weights_in(tmp_path / "merged"), weights_in(base)
    wanted = merged_by_peft(base, adapter)
    assert found.keys() == before.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=0, atol=1e-6)
    changed = [name for name in found if not torch.equal(found[name], before[name])]
    assert len(changed) == done.num_linears == 3 * {"all linears": 7, "rslora": 2, "patterns": 3}[kind]
    assert done.num_bytes == sum(tensor.nbytes for tensor in found.values())
    assert done.num_files == len(list((tmp_path / "merged").glob("*.safetensors"))) > 1


def test_a_model_in_bfloat16_stays_so_and_is_rounded_once(llama: Path, adapter: Path, tmp_path: Path) -> None:
    merge(llama, adapter, output=tmp_path / "merged")
    found, before = weights_in(tmp_path / "merged"), weights_in(llama)
    saved = load_file(adapter / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    for linear in ("model.layers.2.mlp.up_proj", "model.layers.0.self_attn.v_proj"):
        a, b = (saved[f"base_model.model.{linear}.lora_{side}.weight"] for side in "AB")
        exact = before[f"{linear}.weight"].double() + 2.0 * b.double() @ a.double()
        assert torch.equal(found[f"{linear}.weight"], exact.to(torch.bfloat16))


def test_the_folder_is_an_ordinary_one(llama: Path, adapter: Path, tmp_path: Path) -> None:
    merge(llama, adapter, output=tmp_path / "merged")
    others = {path.name for path in llama.iterdir() if "safetensors" not in path.name}
    assert {path.name for path in (tmp_path / "merged").iterdir() if "safetensors" not in path.name} == others
    for name in others:
        assert (tmp_path / "merged" / name).read_bytes() == (llama / name).read_bytes()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert model.dtype == torch.bfloat16
    assert AutoTokenizer.from_pretrained(tmp_path / "merged")("a").input_ids
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


@pytest.mark.parametrize("shard_bytes", [4_000, 10**9])
def test_files_are_as_large_as_the_bases_or_smaller(
    llama: Path, adapter: Path, tmp_path: Path, shard_bytes: int
) -> None:
    heard: list[float] = []
    done = merge(
        llama,
        adapter,
        output=tmp_path / "merged",
        shard_bytes=shard_bytes,
        progress=lambda _, share: heard.append(share),
    )
    sizes = [path.stat().st_size for path in (tmp_path / "merged").glob("*.safetensors")]
    before = [path.stat().st_size for path in llama.glob("*.safetensors")]
    assert (len(sizes) > len(before)) == (shard_bytes == 4_000)
    assert heard == [number / done.num_files for number in range(1, done.num_files + 1)]
    index = json.loads((tmp_path / "merged" / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert index["metadata"]["total_size"] == done.num_bytes
    assert {name: tensor.shape for name, tensor in weights_in(llama).items()} == {
        name: load_file(tmp_path / "merged" / file)[name].shape for name, file in index["weight_map"].items()
    }


def test_what_we_train_can_be_folded(llama: Path, tmp_path: Path) -> None:
    name = "model.layers.1.self_attn.q_proj"
    lora = LoraSettings(r=2, lora_alpha=3.0, target_modules=("q_proj",))
    job = job_from_lengths(adapter=0, name="one", lengths=[4], global_batch_size=1, lora=lora)
    a, b = torch.randn(2, 32), torch.randn(32, 2)
    save_adapter(
        job,
        {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b},
        tmp_path / "one",
        base_model=str(llama),
        target_modules=["q_proj"],
    )
    merge(llama, tmp_path / "one", output=tmp_path / "merged")
    before, after = weights_in(llama)[f"{name}.weight"], weights_in(tmp_path / "merged")[f"{name}.weight"]
    assert torch.equal(after, (before.float() + b @ a * 1.5).bfloat16())


def test_float64_is_computed_in_float64() -> None:
    weight, a, b = (torch.randn(*shape, dtype=torch.float64) for shape in ((3, 4), (2, 4), (3, 2)))
    assert torch.equal(
        folded(weight, a.float(), b.float(), scaling=0.5), weight + b.float().double() @ a.float().double() * 0.5
    )


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"use_dora": True}, r"use_dora is True; only False is understood: use peft for this one"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save is \['lm_head'\]; only None is understood"),
        ({"bias": "all"}, r"bias is 'all'; only 'none' is understood"),
        ({"fan_in_fan_out": True}, r"fan_in_fan_out is True"),
        ({"init_lora_weights": "pissa_niter_4"}, r"init_lora_weights is 'pissa_niter_4', which changes the base model"),
        ({"peft_type": "IA3"}, r"peft_type is 'IA3'; give an adapter of type LORA"),
        ({"r": 5}, r"proj has A \[4, \d+\] and B \[\d+, 4\], where adapter_config.json says r = 5; save the adapter"),
    ],
)
def test_what_cannot_be_folded_is_refused(
    llama: Path, adapter: Path, tmp_path: Path, change: dict[str, Any], complaint: str
) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "adapter_config.json").write_text(json.dumps(config | change), encoding="utf-8")
    (tmp_path / "other" / "adapter_model.safetensors").symlink_to(adapter / "adapter_model.safetensors")
    with pytest.raises(JobError, match=complaint):
        merge(llama, tmp_path / "other", output=tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_matrices_that_do_not_fit_are_named(llama: Path, adapter: Path, tmp_path: Path) -> None:
    saved = load_file(adapter / "adapter_model.safetensors")
    key = "base_model.model.model.layers.0.mlp.up_proj.lora_{}.weight"

    def changed(**tensors: Tensor) -> Path:
        folder = tmp_path / "other"
        folder.mkdir(exist_ok=True)
        (folder / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
        names = {name: tensor for name, tensor in {**saved, **tensors}.items() if tensor.numel()}
        save_file(names, folder / "adapter_model.safetensors")
        return folder

    cases = [
        (
            {key.format("B"): torch.zeros(40, 4)},
            r"made for a weight of shape \(40, 32\), .* has \(48, 32\); give the base",
        ),
        ({key.format("B"): torch.zeros(0)}, r"up_proj has lora_A alone; save the adapter anew"),
        (
            {"base_model.model.model.embed_tokens.lora_embedding_A": torch.zeros(4, 40)},
            r"embed_tokens.lora_embedding_A' is no matrix of a linear's LoRA",
        ),
        (
            {key.format(side).replace("layers.0", "layers.9"): saved[key.format(side)].clone() for side in "AB"},
            r"changes model.layers.9.mlp.up_proj, which .* has no weight of; give its own base model",
        ),
    ]
    for tensors, complaint in cases:
        with pytest.raises(JobError, match=complaint):
            merge(llama, changed(**tensors), output=tmp_path / "merged")


def test_an_interrupted_merge_leaves_nothing(
    llama: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("loraplex.engine.merge.save_file", full)
    with pytest.raises(DiskError, match=r"merged could not be written \(No space left on device\); .* and merge again"):
        merge(llama, adapter, output=tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []


def test_the_command(
    llama: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["loraplex", "merge", str(llama), str(adapter), "-o", str(tmp_path / "merged"), "--json"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        main()
    said = json.loads(capsys.readouterr().out)
    assert ended.value.code in (0, None)
    assert (said["folder"], said["num_linears"]) == (str(tmp_path / "merged"), 21)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "merged: exists already; name a new folder, or delete it first" in capsys.readouterr().err
