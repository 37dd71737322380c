"""Training for real: a process per stage over gloo, from a job file to adapters that peft loads."""

import json
from pathlib import Path

import pytest
import torch

from loraplex.engine.batch import PackedRows
from loraplex.engine.evaluation_records import read_evaluations
from loraplex.engine.metrics import read_metrics
from loraplex.engine.model import Layout, build_stage
from loraplex.engine.prepare import prepare
from loraplex.engine.run_settings import RunSettings
from loraplex.tests.engine.runs import ADAPTERS, JOB, LORAPLEX, command, finish, start, weights, write_job
from loraplex.traces.timeline import Timeline


def test_what_a_run_leaves(trained: tuple[Path, dict[str, object]]) -> None:
    output, said = trained
    assert sorted(path.name for path in output.iterdir()) == [
        "adapters",
        "base-model",
        "evaluations-sums.jsonl",
        "metrics-echoes.jsonl",
        "metrics-sums.jsonl",
        "plan.json",
        "timeline-measured.json",
        "validation.json",
    ]
    for name in ADAPTERS:
        assert sorted(path.name for path in (output / "adapters" / name).iterdir()) == [
            "adapter_config.json",
            "adapter_model.safetensors",
        ]
    assert said["output_dir"] == "output"
    assert isinstance(said["makespan_ms"], float)


def test_losses_go_down_and_every_step_is_noted(trained: tuple[Path, dict[str, object]]) -> None:
    output, _ = trained
    # 56 training samples of 70, three times, four at a time; 26 samples, three times, three at a time.
    for name, num_steps in (("sums", 42), ("echoes", 27)):
        records = read_metrics(output / f"metrics-{name}.jsonl")
        assert [record.step for record in records] == list(range(num_steps))
        assert records[-1].loss < 0.8 * records[0].loss
    validation = json.loads((output / "validation.json").read_text(encoding="utf-8"))
    assert list(validation) == ["sums"]
    looks = read_evaluations(output / "evaluations-sums.jsonl")
    assert [look.step for look in looks] == [10, 20, 30, 40]
    assert validation["sums"]["after"] == pytest.approx(min(look.loss for look in looks), abs=1e-5)
    assert validation["sums"]["after"] < 0.8 * validation["sums"]["before"]


def test_two_replicas_export_the_best_weights_too(tmp_path: Path) -> None:
    job = write_job(tmp_path)
    # At such a rate it gets worse again.
    rough = JOB.replace("learning_rate: 5e-3", "learning_rate: 2").replace("eval_steps: 10", "eval_steps: 5")
    job.write_text(rough.replace("{stages: 2}", "{stages: 1, replicas: 2}"), encoding="utf-8")
    code, out, err = finish(start(command(*LORAPLEX, "train", job, "--device", "cpu"), tmp_path), seconds=120)
    assert code == 0, out + err
    looks = read_evaluations(tmp_path / "output" / "evaluations-sums.jsonl")
    best = min(looks, key=lambda look: look.loss)
    assert best.step < max(look.step for look in looks)
    validation = json.loads((tmp_path / "output" / "validation.json").read_text(encoding="utf-8"))
    assert validation["sums"]["after"] == pytest.approx(best.loss, abs=1e-5)


def test_the_measured_order_is_the_programs(trained: tuple[Path, dict[str, object]]) -> None:
    output, _ = trained
    prepared = prepare(RunSettings(job_file=output.parent / "jobs.yaml"))
    timeline = Timeline.load(output / "timeline-measured.json").check()
    assert (timeline.source, timeline.num_stages) == ("measured", 2)
    assert timeline.frame["start_ms"].min() == 0.0
    for stage in range(2):
        spans = timeline.compute().query("stage == @stage").sort_values("start_ms", kind="stable")
        words = [action.text(stage=stage, num_stages=2) for action in prepared.program.actions(stage=stage)]
        found = spans["action"].tolist()
        assert [word for word in found if "E" not in word] == words
        # Each evaluation follows its step, every tenth of 42, and nothing but other steps stands between.
        first = [place for place, word in enumerate(found) if "E" in word and "E" not in found[place - 1]]
        steps = [[word for word in found[:place] if word.startswith(f"{stage}S0.")][-1] for place in first]
        assert steps == [f"{stage}S0.{step}" for step in (9, 19, 29, 39)]
        for place, step in zip(first, steps, strict=True):
            assert all(word.startswith(f"{stage}S") for word in found[found.index(step) : place])
    # On one clock, nothing arrives before it was sent: a forward ends on stage 0 before it starts on stage 1.
    ends = timeline.compute().set_index("action")["end_ms"]
    starts = timeline.compute().set_index("action")["start_ms"]
    for place in range(len(prepared.plan.microbatches)):
        assert ends[f"0F{place}"] <= starts[f"1F{place}"]
        assert ends[f"1B{place}"] <= starts[f"0B{place}"]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_peft_loads_the_adapters_and_gives_the_engines_logits(trained: tuple[Path, dict[str, object]]) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    output, _ = trained
    ids = torch.randint(0, 256, (1, 30), generator=torch.Generator().manual_seed(0))
    for name in ADAPTERS:
        folder = output / "adapters" / name
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        base = AutoModelForCausalLM.from_pretrained(config["base_model_name_or_path"])
        peft = PeftModel.from_pretrained(base, folder).eval()
        found = peft(input_ids=ids, use_cache=False).logits[0]
        torch.testing.assert_close(found, engine_logits(output, name, ids), atol=1e-4, rtol=0)
        with peft.disable_adapter():
            plain = peft(input_ids=ids, use_cache=False).logits[0]
        assert (found - plain).abs().max() > 0.1


def engine_logits(output: Path, name: str, ids: torch.Tensor) -> torch.Tensor:
    """Logits by the engine's stages, with the adapter's matrices folded into the weights by hand."""
    job = next(job for job in prepare(RunSettings(job_file=output.parent / "jobs.yaml")).plan.jobs if job.name == name)
    module = build_stage(output / "base-model", Layout.of(num_layers=4, stage=0, num_stages=1))
    own = weights(output)[name]
    for linear, frozen in (pair for group in module.groups() for pair in zip(group.names, group.linears, strict=True)):
        key = f"base_model.model.{linear}.lora_A.weight"
        if key in own:
            frozen.weight.data += job.lora.scaling() * own[key.replace("lora_A", "lora_B")] @ own[key]
    hidden = module(ids, rows=PackedRows.of([ids.shape[1]]))
    return module.head_norm(hidden[0]) @ module.head_weight().T


def test_adapter_config_holds_the_true_rank_and_the_targets_by_name(trained: tuple[Path, dict[str, object]]) -> None:
    output, _ = trained
    found = {
        name: json.loads((output / "adapters" / name / "adapter_config.json").read_text(encoding="utf-8"))
        for name in ADAPTERS
    }
    assert {name: (config["r"], config["use_rslora"], config["target_modules"]) for name, config in found.items()} == {
        "sums": (4, False, ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]),
        "echoes": (2, True, ["down_proj", "q_proj"]),
    }
