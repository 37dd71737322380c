"""Bad input, all kinds on one page: each ends in an InputError of one message that names file, line or field.

The command line turns every InputError into that message and exit code 2 (tests/test_cli.py).
"""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loraplex.engine.prepare import prepare
from loraplex.engine.run_settings import RunSettings
from loraplex.planner.commands import data_show, init
from loraplex.planner.inputs.load_jobs import load_jobs
from loraplex.planner.inputs.read_jobfile import read_jobfile
from loraplex.planner.make_plan import make_plan
from loraplex.planner.plan_file import save_plan
from loraplex.traces.errors import InputError

JOBS = """\
base_model: tiny
sequence_len: 64
pipeline: {stages: 2}
adapters:
  - name: one
    r: 4
    global_batch_size: 2
    datasets: [{path: one.jsonl}]
  - name: two
    datasets: [{path: two.json, type: alpaca}]
"""
ONE = "".join(json.dumps({"prompt": f"{number}+1=", "completion": str(number + 1)}) + "\n" for number in range(5))
TWO = json.dumps([{"instruction": "Go.", "input": "", "output": "Gone."}])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A job file and its texts, all good."""
    (tmp_path / "jobs.yaml").write_text(JOBS, encoding="utf-8")
    (tmp_path / "one.jsonl").write_text(ONE, encoding="utf-8")
    (tmp_path / "two.json").write_text(TWO, encoding="utf-8")
    return tmp_path


def edit(folder: Path, name: str, old: str, new: str) -> None:
    path = folder / name
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def plan(folder: Path) -> Path:
    """A plan of the job file as it is now."""
    loaded = load_jobs(folder / "jobs.yaml")
    made = make_plan(
        loaded.jobs,
        num_stages=loaded.settings.num_stages,
        microbatch_tokens=loaded.settings.microbatch_tokens,
        data_fingerprint=loaded.fingerprint,
        strategy="greedy",
    )
    save_plan(made, folder / "plan.json")
    return folder / "plan.json"


def run(folder: Path) -> None:
    """All that `loraplex train` reads and checks before it starts a process."""
    prepare(RunSettings(job_file=folder / "jobs.yaml", plan_file=folder / "plan.json"))


def test_good_input_is_taken(folder: Path) -> None:
    plan(folder)
    run(folder)


@pytest.mark.parametrize(
    ("file", "old", "new", "place", "reason"),
    [
        ("jobs.yaml", "one.jsonl", "gone.jsonl", "jobs.yaml:8: adapters[0].datasets[0].path", "there is no file"),
        ("one.jsonl", ONE, "", "one.jsonl", "holds no records"),
        ("two.json", TWO, "[]", "two.json", "holds no records"),
        ("one.jsonl", '"3"', '""', "one.jsonl:3", "nothing to learn"),
        ("two.json", "Gone.", "", "two.json, record 1", "nothing to learn"),
        ("one.jsonl", '"4"}', '"4"', "one.jsonl:4", "not readable as JSON"),
        ("two.json", "}]", "}", "two.json", "not readable as JSON"),
        ("two.json", "output", "outputs", "two.json, record 1", "output is missing"),
        ("jobs.yaml", "alpaca", "messages", "two.json, record 1", "must be a list of messages"),
        ("jobs.yaml", "sequence_len: 64", "sequence_len: 40", "two.json, record 1", "1 in 1 sample that exceed"),
        ("jobs.yaml", "name: two", "name: ONE", "jobs.yaml:9: adapters[1].name", "must differ"),
        ("jobs.yaml", "name: two", "name: ../x", "jobs.yaml:9: adapters[1].name", "becomes a folder"),
        ("jobs.yaml", "name: two", "name: /etc", "jobs.yaml:9: adapters[1].name", "becomes a folder"),
        ("jobs.yaml", "name: two", "name: ..", "jobs.yaml:9: adapters[1].name", "becomes a folder"),
        ("jobs.yaml", "r: 4", "target_modules: [x]", "jobs.yaml:6: adapters[0].target_modules", "matches no linear"),
        ("jobs.yaml", "r: 4", "r: 0", "jobs.yaml:6: adapters[0].r", "greater than or equal to 1, not 0"),
        ("jobs.yaml", "r: 4", "r: -1", "jobs.yaml:6: adapters[0].r", "greater than or equal to 1, not -1"),
        ("jobs.yaml", "r: 4", "rank: 4", "jobs.yaml:6: adapters[0].rank", "it is called r here"),
        ("jobs.yaml", "stages: 2", "stages: 5", "jobs.yaml:3: pipeline.stages", "exceed the 4 layers"),
        (
            "jobs.yaml",
            "r: 4",
            "val_split: 0.2\n    eval_steps: 9\n    load_best_model_at_end: true",
            "jobs.yaml:7: adapters[0].eval_steps",
            "9 exceeds the 2 steps of 'one', so that nothing is evaluated and load_best_model_at_end has no effect",
        ),
        ("jobs.yaml", "tiny", "mistake", "jobs.yaml:1: base_model", "is no folder"),
        ("jobs.yaml", "tiny", "llama-3.1-8b", "jobs.yaml:1: base_model", "is a shape without a tokenizer"),
        ("jobs.yaml", "tiny", "!!python/object/apply:os.abort []", "jobs.yaml:1", "only plain YAML is read"),
        ("jobs.yaml", "stages: 2}", "stages: 2", "jobs.yaml:", "only plain YAML is read"),
        ("jobs.yaml", JOBS, "", "jobs.yaml", "is empty"),
    ],
)
def test_a_bad_job_file_or_text(folder: Path, file: str, old: str, new: str, place: str, reason: str) -> None:
    edit(folder, file, old, new)
    with pytest.raises(InputError) as error:
        data_show(folder / "jobs.yaml")
    assert str(error.value).startswith(f"{folder}/{place}")
    assert reason in str(error.value)


@pytest.mark.parametrize(("choice", "read", "kept"), [("truncate", 5, 5), ("skip", 5, 4)])
def test_long_samples_by_choice(folder: Path, choice: str, read: int, kept: int) -> None:
    edit(folder, "one.jsonl", '"3"', json.dumps("3" * 100))
    with pytest.raises(InputError, match=r"one\.jsonl:3: 105 tokens, the most of 1 in 5 samples that exceed"):
        data_show(folder / "jobs.yaml")
    edit(folder, "jobs.yaml", "sequence_len: 64", f"sequence_len: 64\nlong_samples: {choice}")
    loaded = load_jobs(folder / "jobs.yaml")
    assert (loaded.counts[0].num_read, loaded.jobs[0].num_samples()) == (read, kept)


@pytest.mark.parametrize(
    ("file", "old", "new", "reason"),
    [
        ("one.jsonl", '"3"', '"4"', "was made for other data"),
        ("jobs.yaml", "base_model: tiny", "base_model: tiny\nseed: 1", "was made for other data"),
        ("jobs.yaml", "name: two", "name: three", "trains the adapters"),
        ("jobs.yaml", "r: 4", "r: 5", "holds other lora of adapter 'one'"),
        ("jobs.yaml", "r: 4", "learning_rate: 1e-5\n    r: 4", "holds other optimizer of adapter 'one'"),
        ("jobs.yaml", "size: 2", "size: 3", "trains adapter 'one' for 3 steps, the job file for 2; make it anew"),
        ("jobs.yaml", "size: 2", "size: 2\n    num_epochs: 2", "trains adapter 'one' for 3 steps, the job file for 6;"),
        ("plan.json", '"num_stages": 2', '"num_stages": 3', "the plan was edited by hand"),
        ("plan.json", "{", "[", "line 2"),
    ],
)
def test_a_plan_of_something_else_or_edited(folder: Path, file: str, old: str, new: str, reason: str) -> None:
    plan(folder)
    edit(folder, file, old, new)
    with pytest.raises(InputError) as error:
        run(folder)
    assert str(error.value).startswith(f"{folder}/plan.json")
    assert reason in str(error.value)


def test_a_run_cannot_be_resumed_with_another_job(folder: Path) -> None:
    path = plan(folder)
    edit(folder, "jobs.yaml", "r: 4", "r: 5")
    with pytest.raises(InputError, match=r"plan.json holds other lora .*; let .*jobs.yaml and its texts be what they"):
        prepare(RunSettings(job_file=folder / "jobs.yaml", plan_file=path, resume=True))
    edit(folder, "jobs.yaml", "r: 5", "r: 4\n    max_steps: 9")
    with pytest.raises(
        InputError, match=r"for 3 steps, the job file for 9; a run goes on as it was planned, .*, with init_adapter"
    ):
        prepare(RunSettings(job_file=folder / "jobs.yaml", plan_file=path, resume=True))
    path.unlink()
    with pytest.raises(InputError, match=r"plan.json does not exist, so there is no run to go on with; train without"):
        prepare(RunSettings(job_file=folder / "jobs.yaml", plan_file=path, resume=True))


def test_missing_files_are_named(folder: Path) -> None:
    with pytest.raises(InputError, match=r"none\.yaml: cannot be read \(No such file or directory\)"):
        data_show(folder / "none.yaml")
    with pytest.raises(InputError, match=r"plan\.json does not exist; make it with loraplex plan"):
        run(folder)


def test_init_overwrites_nothing(folder: Path) -> None:
    with pytest.raises(InputError, match=r"jobs\.yaml: exists already"):
        init(folder / "jobs.yaml")
    assert (folder / "jobs.yaml").read_text(encoding="utf-8") == JOBS


WRECKS = [
    "null",
    "~",
    "1.5",
    "[]",
    "{}",
    "&a",
    "*a",
    "!!binary aGk=",
    "2020-01-01",
    ".nan",
    "? ",
    "<<: ",
    "|",
    "\t",
    "- ",
]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, len(JOBS)), cut=st.integers(0, 20), wreck=st.sampled_from(WRECKS))
def test_a_job_file_wrecked_anywhere_is_read_or_named(tmp_path: Path, at: int, cut: int, wreck: str) -> None:
    path = tmp_path / "jobs.yaml"
    path.write_text(JOBS[:at] + wreck + JOBS[at + cut :], encoding="utf-8")
    complaint = str(path)
    try:
        read_jobfile(path)
    except InputError as error:
        complaint = str(error)
    assert complaint.startswith(str(path))
