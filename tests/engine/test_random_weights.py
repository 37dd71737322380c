"""Weights drawn where they are needed: the same for every cut, sane, and enough to train from lengths alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from loraplex.engine.base_folder import base_model_folder, check_has_weights
from loraplex.engine.batch import PackedRows
from loraplex.engine.model import Layout, StageModel, build_stage
from loraplex.engine.run_settings import RunSettings
from loraplex.engine.train import train
from loraplex.engine.weight_source import WeightSource
from loraplex.planner.errors import JobError, PlanError
from loraplex.planner.inputs.base_model import TINY_CONFIG, find_base_model
from loraplex.planner.inputs.load_jobs import load_jobs
from loraplex.planner.inputs.override import Override
from loraplex.planner.make_plan import make_plan
from loraplex.planner.plan_file import save_plan

SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SMALL = {**TINY_CONFIG, **SPECIAL, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "vocab_size": 40}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 16},
    "mistral": {"sliding_window": 9},
}


def folder_of(tmp_path: Path, family: str) -> Path:
    config = {**SMALL, **FAMILIES[family], "model_type": family, "initializer_range": 0.05}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return tmp_path


def stages(folder: Path, num_stages: int, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[StageModel]:
    return [
        build_stage(
            folder,
            Layout.of(num_layers=3, stage=stage, num_stages=num_stages),
            weights=WeightSource(random_seed=seed),
            dtype=dtype,
        )
        for stage in range(num_stages)
    ]


def weights(parts: list[StageModel]) -> dict[str, torch.Tensor]:
    return {name: tensor for part in parts for name, tensor in part.named_parameters(remove_duplicate=False)}


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_the_same_however_the_model_is_cut(tmp_path: Path, family: str) -> None:
    folder = folder_of(tmp_path, family)
    whole, parts = weights(stages(folder, 1)), weights(stages(folder, 3))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert not any(tensor.requires_grad for tensor in whole.values())
    assert torch.equal(whole["lm_head.weight"], whole["model.embed_tokens.weight"]) == (family == "qwen2")


def test_norms_are_ones_and_the_rest_as_wide_as_the_config_says(tmp_path: Path) -> None:
    for name, tensor in weights(stages(folder_of(tmp_path, "qwen3"), 1)).items():
        if "norm" in name:
            assert torch.equal(tensor, torch.ones_like(tensor))
        else:
            assert 0.045 < tensor.std().item() < 0.055


def test_another_seed_or_name_draws_other_weights(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "llama")
    first, other = weights(stages(folder, 1)), weights(stages(folder, 1, seed=1))
    name = "model.layers.{}.mlp.up_proj.weight"
    assert not torch.equal(first[name.format(0)], other[name.format(0)])
    assert not torch.equal(first[name.format(0)], first[name.format(1)])


def test_activations_stay_finite_in_bfloat16_over_many_layers(tmp_path: Path) -> None:
    model = find_base_model("llama-3.1-8b", relative_to=tmp_path, random_weights=True)
    narrow = {**SPECIAL, "hidden_size": 256, "intermediate_size": 896, "vocab_size": 50, "num_attention_heads": 8}
    (tmp_path / "config.json").write_text(json.dumps({**model.config, **narrow}), encoding="utf-8")
    module = build_stage(tmp_path, Layout.of(num_layers=32, stage=0, num_stages=1), weights=WeightSource(random_seed=0))
    assert {tensor.dtype for tensor in module.parameters()} == {torch.bfloat16}
    token_ids = torch.arange(12)[None] % 50
    hidden = module(token_ids, rows=PackedRows.of([12]))
    logits = module.head_norm(hidden[0]) @ module.head_weight().T
    assert logits.isfinite().all()
    assert 0.05 < logits.std().item() < 50


JOB = """\
base_model: llama-3.1-8b
sequence_len: 32
microbatch_tokens: 48
output_dir: out
adapters:
  - name: one
    datasets: [{path: lengths.csv, type: lengths}]
    global_batch_size: 3
    val_split: 0.2
pipeline: {stages: 2}
"""


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    path = tmp_path / "jobs.yaml"
    path.write_text(JOB, encoding="utf-8")
    lengths = "\n".join(str(3 + 7 * number % 29) for number in range(15))
    (tmp_path / "lengths.csv").write_text(f"num_tokens\n{lengths}\n", encoding="utf-8")
    return path


def test_lengths_alone_are_trained_on_from_the_command_line(job_file: Path, tmp_path: Path) -> None:
    config = tmp_path / "small.json"
    config.write_text(json.dumps(SMALL), encoding="utf-8")
    override = Override(random_weights=True, config_file=config)
    run = train(RunSettings(job_file=job_file, override=override))
    (adapter,) = run.adapters
    assert adapter.last.step + 1 == 4
    # 40 words, all equally likely: the loss cannot be far from ln 40 = 3.69.
    assert 3.4 < adapter.first.loss < 4.0
    assert set(adapter.validation) == {"before", "after"}
    assert sorted(path.name for path in (tmp_path / "out" / "random-base").iterdir()) == ["config.json"]
    written = json.loads((adapter.folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert written["base_model_name_or_path"] == str((tmp_path / "out" / "random-base").resolve())


@pytest.mark.gpu
def test_on_a_gpu_weights_are_drawn_there_and_again_the_same(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "qwen3")
    layout = Layout.of(num_layers=3, stage=0, num_stages=1)
    first, again = (
        weights([build_stage(folder, layout, weights=WeightSource(random_seed=0), device="cuda")]) for _ in range(2)
    )
    assert {tensor.device.type for tensor in first.values()} == {"cuda"}
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(0.045 < tensor.std().item() < 0.055 for name, tensor in first.items() if "norm" not in name)


def test_a_config_file_that_is_not_there_is_named(job_file: Path) -> None:
    with pytest.raises(JobError, match=r"--config nowhere.json: is not there; give a config.json"):
        load_jobs(job_file, override=Override(random_weights=True, config_file=Path("nowhere.json")))


def test_random_tokens_are_always_the_same_and_tie_a_plan_to_them(job_file: Path) -> None:
    override = Override(random_weights=True)
    first, again = (load_jobs(job_file, override=override) for _ in range(2))
    assert first.fingerprint == again.fingerprint != ""
    sample = first.jobs[0].global_batches[0][0]
    ids, labels = first.tokens(sample)
    assert (len(ids), sample.num_target_tokens) == (sample.num_tokens, sample.num_tokens - 1)
    assert (ids == labels).all()
    assert ids.max() < 128256
    bare = load_jobs(job_file, allow_lengths=True)
    assert [job.num_tokens() for job in bare.jobs] == [job.num_tokens() for job in first.jobs]


def test_a_plan_from_bare_lengths_is_refused_with_the_mend(job_file: Path, tmp_path: Path) -> None:
    plan = make_plan(load_jobs(job_file, allow_lengths=True).jobs, num_stages=2, microbatch_tokens=48)
    save_plan(plan, tmp_path / "plan.json")
    settings = RunSettings(job_file=job_file, plan_file=tmp_path / "plan.json", override=Override(random_weights=True))
    with pytest.raises(PlanError, match=r"write random_weights: true into .*jobs.yaml and make it anew, or leave out"):
        train(settings)


def test_a_shape_without_weights_is_refused_before_anything_runs(job_file: Path, tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"here texts are needed; give texts, or set random_weights to train on random"):
        train(RunSettings(job_file=job_file))
    model = find_base_model("llama-3.1-8b", relative_to=tmp_path)
    with pytest.raises(JobError, match=r"'llama-3.1-8b' is a shape without weights; set random_weights"):
        check_has_weights(model)
    with pytest.raises(JobError, match="is a shape without weights"):
        base_model_folder(model, output_dir=tmp_path)
