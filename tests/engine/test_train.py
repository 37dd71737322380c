"""Training for real: a process per stage over gloo, from a job file to adapters that peft loads; killed and resumed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from loraplex.cli import main
from loraplex.engine import train as train_module
from loraplex.engine.batch import PackedRows
from loraplex.engine.evaluation_records import read_evaluations
from loraplex.engine.metrics import read_metrics
from loraplex.engine.model import Layout, build_stage
from loraplex.engine.prepare import RunSettings, prepare
from loraplex.planner.plan_file import load_plan, save_plan
from loraplex.traces.timeline import Timeline

ROOT = Path(__file__).resolve().parents[2]
ADAPTERS = ("sums", "echoes")
JOB = """\
base_model: tiny
sequence_len: 64
microbatch_tokens: 96
pipeline: {stages: 2}
output_dir: output
adapters:
  - name: sums
    r: 4
    learning_rate: 5e-3
    lora_dropout: 0.1
    global_batch_size: 4
    num_epochs: 3
    val_split: 0.2
    eval_steps: 10
    early_stopping_patience: 3
    load_best_model_at_end: true
    datasets: [{path: sums.jsonl}]
  - name: echoes
    r: 2
    use_rslora: true
    target_modules: [q_proj, down_proj]
    learning_rate: 1e-2
    global_batch_size: 3
    num_epochs: 3
    datasets: [{path: echoes.jsonl}]
"""


def command(*words: object) -> list[str]:
    return [sys.executable, *map(str, words)]


LORAPLEX = ("-c", "from loraplex.cli import main; main()")
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", 2, "-m", "loraplex.engine")


def start(words: Sequence[str], folder: Path) -> subprocess.Popen[str]:
    """A session of its own, as a terminal would start it."""
    paths = os.pathsep.join([str(ROOT / ".pythonpath"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    return subprocess.Popen(
        words,
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], *, seconds: float) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, out, err


def write_job(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    sums = [{"prompt": f"{a} + {b} =", "completion": f" {a + b}"} for a in range(7) for b in range(10)]
    echoes = [{"prompt": f"say {word * 3}:", "completion": f" {word * 3}"} for word in "abcdefghijklmnopqrstuvwxyz"]
    for name, records in (("sums", sums), ("echoes", echoes)):
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    job = folder / "jobs.yaml"
    job.write_text(JOB, encoding="utf-8")
    return job


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    """A run from start to end: its output folder and what --json said."""
    folder = tmp_path_factory.mktemp("trained")
    write_job(folder)
    code, out, err = finish(start(command(*LORAPLEX, "train", "jobs.yaml", "--json"), folder), seconds=120)
    assert code == 0, err
    return folder / "output", json.loads(out)


def weights(output: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {name: load_file(output / "adapters" / name / "adapter_model.safetensors") for name in ADAPTERS}


def same(one: dict[str, dict[str, torch.Tensor]], other: dict[str, dict[str, torch.Tensor]]) -> bool:
    return all(
        one[name].keys() == other[name].keys()
        and all(torch.equal(one[name][key], other[name][key]) for key in one[name])
        for name in ADAPTERS
    )


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


def workers_of(launcher: int) -> dict[int, int]:
    """Process id by worker number, of the launcher's children."""
    found = {}
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text(encoding="utf-8").split():
        environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        for entry in environment:
            if entry.startswith(b"RANK="):
                found[int(entry[5:])] = int(child)
    return found


def wait_until(ready: Callable[[], bool], *, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "it never came so far"
        time.sleep(0.02)


def has_steps(output: Path, count: int) -> bool:
    path = output / "metrics-sums.jsonl"
    return path.is_file() and len(path.read_text(encoding="utf-8").splitlines()) >= count


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A run with checkpoints that has taken some steps."""
    write_job(tmp_path)
    process = start(command(*LORAPLEX, "train", "jobs.yaml", "--checkpoint-every", 5), tmp_path)
    try:
        wait_until(lambda: has_steps(tmp_path / "output", 15))
        yield tmp_path, process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def test_a_killed_worker_ends_the_run_and_torchrun_resumes_it_to_the_same_bits(
    running: tuple[Path, subprocess.Popen[str]], trained: tuple[Path, dict[str, object]]
) -> None:
    folder, process = running
    workers = workers_of(process.pid)
    os.kill(workers[1], signal.SIGKILL)
    begin = time.monotonic()
    code, _, err = finish(process, seconds=60)
    assert time.monotonic() - begin < 10
    assert code == 1
    assert "pp_rank 1 ended (killed by SIGKILL) at " in err
    assert "microbatch" in err
    assert "Traceback" not in err
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers.values())
    assert not (folder / "output" / "adapters").exists()
    assert not (folder / "output" / ".run").exists()
    assert any((folder / "output" / "checkpoints").iterdir())

    code, _, err = finish(start(command(*TORCHRUN, "jobs.yaml", "--resume"), folder), seconds=120)
    assert code == 0, err
    assert same(weights(folder / "output"), weights(trained[0]))
    looks = [read_evaluations(output / "evaluations-sums.jsonl") for output in (folder / "output", trained[0])]
    assert looks[0] == looks[1]
    for name in ADAPTERS:
        mine, whole = (read_metrics(output / f"metrics-{name}.jsonl") for output in (folder / "output", trained[0]))
        assert [(record.step, record.loss) for record in mine] == [(record.step, record.loss) for record in whole]


def test_a_stopped_run_goes_on_with_other_stages(
    running: tuple[Path, subprocess.Popen[str]], trained: tuple[Path, dict[str, object]]
) -> None:
    folder, process = running
    os.killpg(process.pid, signal.SIGINT)
    finish(process, seconds=60)
    (folder / "jobs.yaml").write_text(JOB.replace("stages: 2", "stages: 3"), encoding="utf-8")
    begun = load_plan(folder / "output" / "plan.json")
    code, _, err = finish(start(command(*LORAPLEX, "train", "jobs.yaml", "--resume"), folder), seconds=120)
    assert code == 0, err
    plan = load_plan(folder / "output" / "plan.json")
    assert (begun.num_stages, plan.num_stages) == (2, 3)
    assert plan.microbatches[:5] == begun.microbatches[:5]
    for name in ADAPTERS:
        mine, whole = (read_metrics(output / f"metrics-{name}.jsonl") for output in (folder / "output", trained[0]))
        assert [record.step for record in mine] == [record.step for record in whole]
        # Rounding alone tells them apart, and grows with the steps.
        assert all(abs(one.loss - other.loss) < 1e-2 for one, other in zip(mine, whole, strict=True))


def test_ctrl_c_ends_all_workers_and_names_where_they_were(running: tuple[Path, subprocess.Popen[str]]) -> None:
    folder, process = running
    workers = workers_of(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    begin = time.monotonic()
    code, _, err = finish(process, seconds=60)
    assert time.monotonic() - begin < 10
    assert code == 130
    assert "stopped; pp_rank 0 was at " in err
    assert "pp_rank 1 was at " in err
    assert "Traceback" not in err
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers.values())
    assert not (folder / "output" / "adapters").exists()


def no_plan(folder: Path, text: str) -> None:
    (folder / "plan.json").unlink()


def a_plan_for_other_data(folder: Path, text: str) -> None:
    line = '{"prompt": "1", "completion": "2"}\n'
    (folder / "sums.jsonl").write_text(line * 5, encoding="utf-8")


def a_plan_for_another_rate(folder: Path, text: str) -> None:
    (folder / "jobs.yaml").write_text(JOB.replace("5e-3", "6e-3"), encoding="utf-8")


def a_plan_for_other_adapters(folder: Path, text: str) -> None:
    (folder / "jobs.yaml").write_text(JOB.replace("name: sums", "name: totals"), encoding="utf-8")


def a_rank_beyond_the_kernels(folder: Path, text: str) -> None:
    (folder / "jobs.yaml").write_text(JOB.replace("r: 4", "r: 300"), encoding="utf-8")


def a_plan_edited_by_hand(folder: Path, text: str) -> None:
    (folder / "plan.json").write_text(text.replace('"num_stages": 2', '"num_stages": 1'), encoding="utf-8")


def a_plan_whose_backwards_are_split(folder: Path, text: str) -> None:
    save_plan(replace(load_plan(folder / "plan.json"), schedule="zb-h1"), folder / "plan.json")


def a_plan_with_two_chunks_a_stage(folder: Path, text: str) -> None:
    save_plan(replace(load_plan(folder / "plan.json"), schedule="interleaved-2"), folder / "plan.json")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_plan, "plan.json does not exist; make it with loraplex plan "),
        (a_plan_for_other_data, "plan.json was made for other data (fingerprint "),
        (a_plan_for_another_rate, "plan.json holds other optimizer of adapter 'sums' than the job file; make it anew"),
        (a_plan_for_other_adapters, "plan.json trains the adapters ['sums', 'echoes'], the job file ['totals', 'ech"),
        (a_plan_edited_by_hand, "plan.json"),
        (a_plan_whose_backwards_are_split, "schedule 'zb-h1' holds BACKWARD_INPUT actions; the engine does not split"),
        (a_plan_with_two_chunks_a_stage, "schedule 'interleaved-2' has 2 model chunks a stage; the engine runs"),
        (a_rank_beyond_the_kernels, "jobs.yaml:8: adapters[0].r: input should be less than or equal to 256, not 300"),
    ],
)
def test_bad_input_ends_with_2_and_one_message_before_anything_starts(
    trained: tuple[Path, dict[str, object]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path, str], None],
    message: str,
) -> None:
    job = write_job(tmp_path)
    text = (trained[0] / "plan.json").read_text(encoding="utf-8")
    (tmp_path / "plan.json").write_text(text, encoding="utf-8")
    spoil(tmp_path, text)
    monkeypatch.setattr(sys, "argv", ["loraplex", "train", str(job), "--plan", str(tmp_path / "plan.json")])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert err.strip().splitlines()[-1].startswith("loraplex: error: ")
    assert message in err
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("schedule", ["zb-h1", "interleaved-2"])
def test_a_job_files_schedule_that_is_not_run_ends_with_2_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], schedule: str
) -> None:
    job = write_job(tmp_path)
    job.write_text(JOB.replace("{stages: 2}", f"{{stages: 2, schedule: {schedule}}}"), encoding="utf-8")
    monkeypatch.setattr(train_module, "launch", lambda *_, **__: pytest.fail("started"))
    monkeypatch.setattr(sys, "argv", ["loraplex", "train", str(job)])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert err.strip().splitlines()[-1].startswith(f"loraplex: error: schedule '{schedule}' ")
    assert "choose 1f1b, or simulate this one" in err.strip().splitlines()[-1]
