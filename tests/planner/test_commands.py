"""`loraplex plan` and `loraplex check` as a user meets them."""

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from loraplex.planner import commands
from loraplex.planner.errors import JobError, PlanError
from loraplex.planner.plan_file import load_plan

app = typer.Typer()
app.command("plan")(commands.plan)
app.command("check")(commands.check)


def run(*words: str) -> Any:
    result = CliRunner().invoke(app, list(words))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def lengths(tmp_path: Path) -> list[str]:
    """Options for two adapters of eight and six samples."""
    for name, values in (("poems", (60, 51, 47, 40, 33, 25, 18, 9)), ("mails", (70, 20, 20, 10, 10, 5))):
        text = "\n".join(["num_tokens", *map(str, values)])
        (tmp_path / f"{name}.csv").write_text(text, encoding="utf-8")
    return [
        *("--lengths", f"poems={tmp_path}/poems.csv", "--lengths", f"mails={tmp_path}/mails.csv"),
        *("--global-batch-size", "4", "--global-batch-size", "3", "--microbatch-tokens", "100", "--stages", "2"),
    ]


def test_plan_from_lengths_and_check_it(tmp_path: Path, lengths: list[str]) -> None:
    path = tmp_path / "plan.json"
    result = run("plan", *lengths, "-o", str(path), "--json")
    told = json.loads(result.stdout)
    assert {key: told[key] for key in ("num_microbatches", "stall_slots", "slots", "lower_bound", "gap", "valid")} == {
        "num_microbatches": 6,
        "stall_slots": 0,
        "slots": 6,
        "lower_bound": 6,
        "gap": 0.0,
        "valid": True,
    }
    assert told["strategy"] in ("stream", "greedy", "exact")
    assert told["seconds"] > 0
    assert load_plan(path).num_stages == 2
    checked = run("check", str(path), "--json")
    assert checked.exit_code == 0
    assert json.loads(checked.stdout) == {
        "valid": True,
        "violations": [],
        "slots": 6,
        "lower_bound": 6,
        "gap": 0.0,
        "num_microbatches": 6,
        "strategy": told["strategy"],
    }


def test_people_get_a_line_and_a_table(tmp_path: Path, lengths: list[str]) -> None:
    result = run("plan", *lengths, "-o", str(tmp_path / "plan.json"), "--strategy", "greedy")
    assert "microbatches in" in result.stdout
    assert "poems" in result.stdout
    assert f"Next: loraplex simulate {tmp_path / 'plan.json'} --uniform 1,2\n" in result.stdout


def test_check_prints_every_violation_and_exits_1(tmp_path: Path, lengths: list[str]) -> None:
    path = tmp_path / "plan.json"
    run("plan", *lengths, "-o", str(path))
    document = json.loads(path.read_text(encoding="utf-8"))
    document["microbatches"] = document["microbatches"][1:]
    path.write_text(json.dumps(document), encoding="utf-8")
    result = run("check", str(path))
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[0].startswith("fingerprint: the fingerprint does not fit the content")
    assert sum(line.startswith("samples: adapter '") for line in lines) >= 2
    assert f": {len(lines) - 1} violations; 5 microbatches, " in lines[-1]


def test_one_of_a_thing_is_told_as_one(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("num_tokens\n7\n", encoding="utf-8")
    path = tmp_path / "plan.json"
    rest = ("--global-batch-size", "1", "--microbatch-tokens", "100")
    planned = run("plan", "--lengths", f"one={tmp_path / 'one.csv'}", *rest, "-o", str(path))
    assert planned.stdout.startswith("1 microbatch in 1 slot (at least 1;")
    assert "valid; 1 microbatch, 1 slot, at least 1" in run("check", str(path)).stdout
    document = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(document | {"fingerprint": "0" * 64}), encoding="utf-8")
    assert ": 1 violation; 1 microbatch, " in run("check", str(path)).stdout


def test_a_capacity_is_chosen_under_a_profile(tmp_path: Path, lengths: list[str]) -> None:
    more = ["--microbatch-tokens", "200", "--profile", "llama-70b-h100-published"]
    result = run("plan", *lengths, *more, "-o", str(tmp_path / "plan.json"))
    assert "microbatch_tokens=100:" in result.stdout
    assert "microbatch_tokens=200:" in result.stdout
    assert load_plan(tmp_path / "plan.json").microbatch_tokens in (100, 200)


def test_plan_a_job_file(tmp_path: Path) -> None:
    (tmp_path / "jobs.yaml").write_text(
        "base_model: tiny\nsequence_len: 256\nmicrobatch_tokens: 512\npipeline: {stages: 2}\n"
        "adapters:\n  - {name: numbers, global_batch_size: 8, max_steps: 3,\n"
        "     datasets: [{path: data.jsonl, type: prompt_completion}]}\n",
        encoding="utf-8",
    )
    rows = [json.dumps({"prompt": f"{number} plus one is", "completion": f" {number + 1}"}) for number in range(40)]
    (tmp_path / "data.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    result = run("plan", str(tmp_path / "jobs.yaml"), "-o", str(tmp_path / "plan.json"), "--json")
    plan = load_plan(tmp_path / "plan.json")
    assert json.loads(result.stdout)["valid"] is True
    assert (plan.num_stages, plan.microbatch_tokens, len(plan.jobs[0].global_batches)) == (2, 512, 3)
    assert len(plan.data_fingerprint) == 64
    with pytest.raises(JobError, match="--stages 5 exceeds the 4 layers of tiny"):
        run("plan", str(tmp_path / "jobs.yaml"), "-o", str(tmp_path / "plan.json"), "--stages", "5")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give either a job file or --lengths"),
        (["--lengths", "a=b.csv"], "--lengths needs --microbatch-tokens and --global-batch-size"),
        (["jobs.yaml", "--lengths", "a=b.csv"], "and not both"),
        (["jobs.yaml", "--num-batches", "3"], "go with --lengths"),
    ],
)
def test_options_that_do_not_go_together(words: list[str], message: str) -> None:
    with pytest.raises(JobError, match=message):
        run("plan", *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workers", "0"], "--workers 0 must be 1 or more; raise it"),
        (["--backend", "x"], "--backend x is unknown; choose one of loky, dask, ray"),
        (["--overlong", "x"], "--overlong x is unknown; choose one of error, truncate, skip"),
    ],
)
def test_options_that_a_small_plan_would_not_even_use_are_checked(
    lengths: list[str], words: list[str], message: str
) -> None:
    with pytest.raises(JobError) as caught:
        run("plan", *lengths, *words)
    assert str(caught.value) == message


def test_bad_values_reach_the_user(tmp_path: Path, lengths: list[str]) -> None:
    with pytest.raises(PlanError, match="num_stages=0"):
        run("plan", *lengths, "--stages", "0", "-o", str(tmp_path / "plan.json"))
    with pytest.raises(PlanError, match="cannot be read"):
        run("check", str(tmp_path / "absent.json"))
    assert not (tmp_path / "plan.json").exists()
