"""Training that goes on from an adapter that peft (or we) saved."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from loraplex.engine.init_adapter import check_init_adapters, start_from
from loraplex.engine.run_settings import RunSettings
from loraplex.engine.stage import make_stage
from loraplex.engine.train import train
from loraplex.planner.errors import JobError
from loraplex.planner.inputs.load_jobs import load_jobs
from loraplex.tests.engine.folders import SMALL, write_all_random, write_peft_adapter

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
SAVED: dict[str, Any] = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"]}
JOB = """\
base_model: base
sequence_len: 64
output_dir: out
adapters:
  - {name: fresh, r: 2, datasets: [{path: texts.jsonl}], max_steps: 1}
  - name: further
    init_adapter: saved
    r: 4
    lora_alpha: 6
    target_modules: [down_proj, q_proj]
    datasets: [{path: texts.jsonl}]
    max_steps: 1
    learning_rate: 1.0e-9
pipeline: {stages: 2}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of byte-sized vocabulary, an adapter of it, texts, and a job file."""
    path = tmp_path_factory.mktemp("job")
    write_all_random(path / "base", "llama", dtype=torch.float32, changes={"vocab_size": 262})
    write_peft_adapter(path / "base", path / "saved", SAVED)
    lines = [json.dumps({"prompt": f"{number} is", "completion": " odd"}) for number in range(8)]
    (path / "texts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (path / "jobs.yaml").write_text(JOB, encoding="utf-8")
    return path


def saved_in(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def test_every_stage_begins_with_the_matrices_that_were_saved(folder: Path) -> None:
    loaded = load_jobs(folder / "jobs.yaml")
    check_init_adapters(loaded)
    saved = saved_in(folder / "saved")
    found: dict[str, torch.Tensor] = {}
    for stage in range(2):
        made = make_stage(folder / "base", loaded.jobs, stage=stage, num_stages=2)
        fresh = {name: parameter.clone() for name, parameter in made.adapters[0].parameters.items()}
        start_from(made.adapters, loaded.init_adapters)
        assert all(torch.equal(made.adapters[0].parameters[name], fresh[name]) for name in fresh)
        found |= {f"base_model.model.{name}": own.detach() for name, own in made.adapters[1].parameters.items()}
    assert found.keys() == saved.keys()
    assert all(torch.equal(found[name], saved[name]) for name in saved)


def test_a_run_goes_on_from_it_and_saves_what_peft_loads(folder: Path) -> None:
    run = train(RunSettings(job_file=folder / "jobs.yaml", device="cpu"))
    before, after = saved_in(folder / "saved"), saved_in(run.adapters[1].folder)
    assert before.keys() == after.keys()
    # One step at a rate of 1e-9.
    assert max((after[name] - before[name]).abs().max().item() for name in before) < 1e-7
    assert max(tensor.abs().max().item() for tensor in before.values()) > 0.1
    assert run.adapters[0].first.loss != run.adapters[1].first.loss


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            ("r: 4", "r: 8"),
            r"'further', init_adapter .*saved: has r = 4 at model.*, the job r = 8; write r: 4, if all have",
        ),
        (
            ("lora_alpha: 6", "lora_alpha: 8"),
            r"is multiplied by 1.5 at .*, the job's by 2; write lora_alpha: 6 and use",
        ),
        (("lora_alpha: 6", "lora_alpha: 6\n    use_rslora: true"), r"the job's by 3; write .* use_rslora: false"),
        (
            ("[down_proj, q_proj]", "[q_proj]"),
            r"only init_adapter changes .*down_proj, and 3 linears differ in all; writ",
        ),
        (
            ("[down_proj, q_proj]", "all-linear"),
            r"only the job changes .*write target_modules: \[down_proj, q_proj\], or",
        ),
        (
            ("init_adapter: saved", "init_adapter: nowhere"),
            r"other.yaml:7: adapters\[1\].init_adapter: there is no folder",
        ),
        (
            ("init_adapter: saved", "init_adapter: base"),
            r"base/adapter_config.json: cannot be read .*; give the folder",
        ),
    ],
)
def test_an_adapter_that_is_not_the_jobs_is_refused_with_what_to_write(
    folder: Path, change: tuple[str, str], complaint: str
) -> None:
    path = folder / "other.yaml"
    path.write_text(JOB.replace(*change), encoding="utf-8")
    with pytest.raises(JobError, match=complaint):
        check_init_adapters(load_jobs(path))


def test_an_adapter_of_another_base_is_refused(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "base" / "config.json").read_text(encoding="utf-8"))
    wider = tmp_path / "wider.json"
    wider.write_text(json.dumps(config | {"intermediate_size": SMALL["intermediate_size"] * 2}), encoding="utf-8")
    path = folder / "other.yaml"
    path.write_text(
        JOB.replace("base_model: base", f"base_model: {wider}") + "random_weights: true\n", encoding="utf-8"
    )
    (tmp_path / "lengths.csv").write_text("num_tokens\n5\n", encoding="utf-8")
    text = path.read_text(encoding="utf-8").replace("path: texts.jsonl", f"path: {tmp_path}/lengths.csv, type: lengths")
    path.write_text(text, encoding="utf-8")
    with pytest.raises(
        JobError, match=r"made for a weight of shape \(32, 48\) at .*down_proj, .* has \(32, 96\); give"
    ):
        check_init_adapters(load_jobs(path))
