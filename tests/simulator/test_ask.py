"""What-if questions as the command line asks them."""

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from loraplex.planner.plan_file import save_plan
from loraplex.simulator.ask import Question, answer
from loraplex.simulator.commands import simulate
from loraplex.simulator.errors import SimulationError
from loraplex.simulator.sweep_commands import sweep
from loraplex.tests.random_plans import random_plan
from loraplex.traces.errors import InputError

app = typer.Typer()
app.command()(simulate)
app.command()(sweep)


def run(*words: str) -> Any:
    """What a command prints with --json."""
    done = CliRunner().invoke(app, [*words, "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    return json.loads(done.stdout)


def quiet(label: str, share: float) -> None:
    """A progress callback that tells nobody."""


@pytest.mark.parametrize(
    ("schedule", "makespan_ms"),
    [("gpipe", 33.0), ("1f1b", 33.0), ("interleaved-2", 28.5), ("zb-h1", 24.0 + 3 * (1 + 1.5 - 0.5))],
)
def test_a_textbook_question(schedule: str, makespan_ms: float) -> None:
    found = run("simulate", "--uniform", "1,2,0.5", "--stages", "4", "--microbatches", "8", "--schedule", schedule)
    assert found["makespan_ms"] == pytest.approx(makespan_ms)
    assert found["bubble_ratio"] == pytest.approx(1 - 24 / makespan_ms)
    assert sum(found["bubble_ms_by_cause"].values()) == pytest.approx(4 * (makespan_ms - 24))
    assert {"tokens_per_s", "peak_memory_bytes", "stages"} <= set(found)


def test_a_plan_on_a_profile_with_rivals_and_pictures(tmp_path: Path) -> None:
    plan = random_plan(4, num_stages=3, max_adapters=3)
    save_plan(plan, tmp_path / "plan.json")
    found = run(
        "simulate", str(tmp_path / "plan.json"), "--profile", "llama-70b-h100-published", "--compare-systems",
        "-o", str(tmp_path / "out"),
    )  # fmt: skip
    names = ["sequential-fixed", "sequential-padded", "sequential-packed", "mlora", "lorafusion", "loraplex"]
    assert [system["system"] for system in found["systems"]] == names
    assert found["systems"][-1]["makespan_ms"] == pytest.approx(found["makespan_ms"])
    assert found["profile"]["origin"] == "published"
    assert json.loads((tmp_path / "out/summary.json").read_text(encoding="utf-8")) == found
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {
        "plan.json", "timeline-simulated.json", "trace.json", "program.txt", "command.txt",
        "gantt.svg", "gantt.png", "memory.svg", "waste.svg", "bubbles.svg",
    } <= written  # fmt: skip


def test_costs_without_memory_draw_no_picture_of_it(tmp_path: Path) -> None:
    (tmp_path / "memory.png").write_bytes(b"of an earlier answer")
    run("simulate", "--uniform", "1,2", "--stages", "2", "--microbatches", "2", "-o", str(tmp_path))
    assert (tmp_path / "gantt.png").is_file()
    assert not list(tmp_path.glob("memory.*"))


def test_a_program_as_text_is_read_back_and_replayed(tmp_path: Path) -> None:
    words = ("simulate", "--uniform", "1,2", "--stages", "2", "--microbatches", "2")
    gpipe = run(*words, "--schedule", "gpipe", "-o", str(tmp_path / "out"))
    text = (tmp_path / "out/program.txt").read_text(encoding="utf-8")
    assert text == "0F0 0F1 0B0 0B1 0S0.0\n1F0 1F1 1B0 1B1 1S0.0\n"
    again = run(*words, "--program", str(tmp_path / "out/program.txt"))
    assert again == gpipe | {"schedule": "program"}
    # The last stage alone turns round: 1F1B by hand.
    (tmp_path / "mine.txt").write_text(text.replace("1F0 1F1 1B0", "1F0 1B0 1F1"), encoding="utf-8")
    mine = run(*words, "--program", str(tmp_path / "mine.txt"))
    assert (mine["schedule"], mine["makespan_ms"]) == ("mine", gpipe["makespan_ms"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "0F0 0B0 0F1 0B1 0S0.0\n1F0 1F1 1B0 1B1 1S0.0\n",
            "schedule 'mine' deadlocks: 0B0 waits to start -> 1F1 waits to start -> 0B0 waits to start",
        ),
        ("0F0 0F1 0B0 0B1 0S0.0\n", "program text has 1 line; it needs one for each of 1 replica x 2 stages"),
        ("0F0 0F1 0B0 0B1 0S0.0\n1F0 1F1 1X0 1B1 1S0.0\n", "program line 2: '1X0' is no action"),
        ("0F0 0F1 0B0 0B1 0S0.0\n1F0 1F1 1B0 1S0.0\n", "stage 1: 1S0.0 comes before 1 of its backwards"),
    ],
)
def test_a_program_that_cannot_run_is_told_so(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text(text, encoding="utf-8")
    question = Question(uniform="1,2", num_stages=2, num_microbatches=2, program=tmp_path / "mine.txt")
    with pytest.raises(InputError) as raised:
        answer(question, progress=quiet)
    assert message in str(raised.value)


def test_both_methods_answer_alike(tmp_path: Path) -> None:
    save_plan(random_plan(9, num_stages=4), tmp_path / "plan.json")
    words = (
        "simulate",
        str(tmp_path / "plan.json"),
        "--profile",
        "llama-70b-h100-published",
        "--layers",
        "21,20,20,19",
    )
    simpy, recurrence = (run(*words, "--method", method) for method in ("simpy", "recurrence"))
    assert {**simpy, "method": ""} == {**recurrence, "method": ""}


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (Question(), "no plan was given"),
        (Question(num_microbatches=4), "no plan was given"),
        (Question(num_microbatches=4, uniform="1,2", profile="x"), "give one of the two, and not both"),
        (Question(plan=Path("plan.json"), num_microbatches=4), "both a plan"),
        (Question(plan=Path("nowhere.json"), profile="x"), "nowhere.json: cannot be read"),
        (Question(num_microbatches=4, uniform="1,2", method="magic"), "method='magic' is unknown"),
        (Question(num_microbatches=4, uniform="1,2", kernels="fastest"), "kernels='fastest' is unknown"),
        (Question(num_microbatches=4, uniform="1,2", kernels="frozen"), "kernels='frozen' is not in this profile"),
        (Question(num_microbatches=4, uniform="1,2", layers="1,2"), "layers_per_stage"),
        (Question(num_microbatches=4, uniform="1,2", layers="a,b"), "layers='a,b' must be numbers"),
        (Question(num_microbatches=4, uniform="1,2", schedule="2f2b"), "schedule '2f2b' is unknown"),
        (
            Question(num_microbatches=4, uniform="1,2", schedule="gpipe", program=Path("mine.txt")),
            "both --program mine.txt and --schedule gpipe",
        ),
        (Question(num_microbatches=4, uniform="1,2", program=Path("nowhere.txt")), "nowhere.txt: cannot be read"),
        (Question(num_microbatches=4, uniform="1,2", cluster=Path("nowhere.yaml")), "nowhere.yaml: cannot be read"),
    ],
)
def test_a_bad_question_is_told_so(question: Question, message: str) -> None:
    with pytest.raises(InputError, match=message):
        answer(question, progress=quiet)


def test_a_plan_without_costs_is_told_both_options(tmp_path: Path) -> None:
    save_plan(random_plan(4, num_stages=2), tmp_path / "plan.json")
    with pytest.raises(InputError, match="no costs were given; give --profile, a file that"):
        answer(Question(plan=tmp_path / "plan.json"), progress=quiet)


def test_a_profile_for_other_layers_is_refused(tmp_path: Path) -> None:
    save_plan(random_plan(4, num_stages=3), tmp_path / "plan.json")
    question = Question(plan=tmp_path / "plan.json", profile="llama-70b-h100-published", layers="10,10,12")
    with pytest.raises(InputError, match=r"layers_per_stage=\(10, 10, 12\) must be 3 positive numbers .* 80 layers"):
        answer(question, progress=quiet)


def test_the_recurrence_refuses_contention(tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text("contention: true", encoding="utf-8")
    question = Question(num_microbatches=4, uniform="1,2", cluster=tmp_path / "cluster.yaml", method="recurrence")
    with pytest.raises(SimulationError, match="knows neither contention nor pauses"):
        answer(question, progress=quiet)


def test_a_sweep_from_file_to_table(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(
        """
job: {adapters: [{lengths: gsm8k, num_samples: 32, global_batch_size: 8}]}
pipeline: {stages: [2, 4], microbatch_tokens: 2048, schedule: [1f1b, gpipe]}
profile: llama-70b-h100-published
""",
        encoding="utf-8",
    )
    found = run("sweep", str(tmp_path / "sweep.yaml"), "-o", str(tmp_path / "out"), "--workers", "1", "--top", "2")
    assert (found["num_points"], found["num_failed"]) == (4, 0)
    assert found["axes"] == ["pipeline.stages", "pipeline.schedule"]
    assert len(found["best"]) == 2
    assert found["best"][0]["tokens_per_s"] >= found["best"][1]["tokens_per_s"]
    assert found["pictures"] == ["tokens-per-s-by-pipeline-stages.svg", "tokens-per-s-by-pipeline-schedule.svg"]
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"sweep.csv", *found["pictures"]}
    shown = CliRunner().invoke(app, ["sweep", str(tmp_path / "sweep.yaml"), "-o", str(tmp_path / "out")])
    assert "best 4 of 4 points" in shown.stdout
