"""Plan files: what is written is read back, and what is wrong is refused with its place."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from loraplex.planner.errors import PlanError
from loraplex.planner.jobs import LoraSettings, OptimizerSettings
from loraplex.planner.plan import Microbatch, Plan, SolverRecord
from loraplex.planner.plan_file import is_sealed, load_plan, plan_fingerprint, save_plan
from loraplex.tests.random_jobs import jobs_of
from loraplex.tests.random_plans import plans


def small_plan() -> Plan:
    first, second = jobs_of([[[4, 3], [5]], [[6]]])
    first = replace(
        first,
        lora=LoraSettings(r=8, lora_alpha=16, target_modules=("q_proj", "v_proj"), use_rslora=True),
        optimizer=OptimizerSettings(learning_rate=1e-4, max_grad_norm=None),
        seed=3,
        deadline_ms=1e6,
    )
    samples = [sample for batch in first.global_batches for sample in batch]
    return Plan(
        jobs=(first, second),
        num_stages=2,
        microbatch_tokens=10,
        microbatches=(
            Microbatch(samples=(samples[0], *second.global_batches[0])),
            Microbatch(samples=(samples[1],)),
            Microbatch(samples=(samples[2],)),
        ),
        strategy="stream",
        adapter_groups=((0, 1),),
        lower_bound_slots=4,
        solver=(SolverRecord(instance="step 0", status="optimal", num_microbatches=2, lower_bound=2, seconds=0.25),),
        data_fingerprint="ab" * 32,
        seconds=1.5,
    )


def test_a_plan_comes_back_as_it_was(tmp_path: Path) -> None:
    save_plan(small_plan(), tmp_path / "plan.json")
    loaded = load_plan(tmp_path / "plan.json")
    assert loaded == small_plan()
    assert (loaded.seconds, loaded.solver[0].seconds) == (1.5, 0.25)
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plan=plans(max_replicas=3))
def test_random_plans_come_back_and_keep_their_fingerprint(plan: Plan, tmp_path: Path) -> None:
    save_plan(plan, tmp_path / "plan.json")
    loaded = load_plan(tmp_path / "plan.json")
    assert loaded == plan
    assert plan_fingerprint(loaded) == plan_fingerprint(plan)


def test_people_can_read_it(tmp_path: Path) -> None:
    save_plan(small_plan(), tmp_path / "plan.json")
    lines = (tmp_path / "plan.json").read_text(encoding="utf-8").splitlines()
    assert '  {"tokens": 10, "samples": {"a0": [0], "a1": [0]}},' in lines
    assert "    [[0, 4, 4], [1, 3, 3]]," in lines
    summary = json.loads("\n".join(lines))["summary"]
    assert {name: summary[name] for name in ("slots", "stall_slots", "gap", "tokens")} == {
        "slots": 4,
        "stall_slots": 1,
        "gap": 0.0,
        "tokens": 18,
    }


def test_the_fingerprint_ignores_timings_and_nothing_else() -> None:
    plan = small_plan()
    timed = replace(plan, seconds=9.0, solver=(replace(plan.solver[0], seconds=9.0),))
    assert plan_fingerprint(timed) == plan_fingerprint(plan)
    changed = [
        replace(plan, num_stages=3),
        replace(plan, microbatch_tokens=11),
        replace(plan, schedule="gpipe"),
        replace(plan, strategy="milp"),
        replace(plan, lower_bound_slots=3),
        replace(plan, data_fingerprint=""),
        replace(plan, adapter_groups=()),
        replace(plan, solver=()),
        replace(plan, jobs=(replace(plan.jobs[0], seed=4), plan.jobs[1])),
        replace(plan, jobs=(replace(plan.jobs[0], weight=2.0), plan.jobs[1])),
        replace(plan, microbatches=(plan.microbatches[1], plan.microbatches[0], plan.microbatches[2])),
    ]
    fingerprints = [plan_fingerprint(other) for other in (plan, *changed)]
    assert len(set(fingerprints)) == len(fingerprints)


def edited(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A plan file after someone has been at it."""
    path = tmp_path / "plan.json"
    save_plan(small_plan(), path)
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def test_an_edited_plan_is_refused_with_the_mend(tmp_path: Path) -> None:
    path = edited(tmp_path, lambda document: document.update(strategy="milp"))
    with pytest.raises(PlanError, match=r"plan.json: fingerprint .* edited by hand or damaged; make it anew with lora"):
        load_plan(path)
    assert not is_sealed(path)
    assert load_plan(path, check=False).strategy == "milp"


def test_an_edited_fingerprint_is_refused(tmp_path: Path) -> None:
    path = edited(tmp_path, lambda document: document.update(fingerprint="0" * 64))
    with pytest.raises(PlanError, match="fingerprint 000000000000"):
        load_plan(path)


def test_a_sealed_plan_that_breaks_rules_is_refused(tmp_path: Path) -> None:
    plan = small_plan()
    save_plan(replace(plan, microbatches=plan.microbatches[:-1]), tmp_path / "plan.json")
    assert is_sealed(tmp_path / "plan.json")
    with pytest.raises(PlanError, match="breaks 2 rules, first: adapter 'a0', global batch 1, sample 2 is missing"):
        load_plan(tmp_path / "plan.json")


def sample_row(document: dict[str, Any]) -> list[Any]:
    row: list[Any] = document["jobs"][0]["global_batches"][0][0]
    return row


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(version=2), "version 2 is unknown, this loraplex reads version 1"),
        (lambda d: d.update(version=True), "version True is unknown"),
        (lambda d: d.update(format="torch"), "'format' is not 'loraplex-plan'"),
        (lambda d: d.update(run="rm -rf /"), r"fields missing \[\], unknown \['run'\]"),
        (lambda d: d.pop("jobs"), r"fields missing \['jobs'\]"),
        (lambda d: d.update(num_stages="2"), "num_stages: '2' must be an integer"),
        (lambda d: d.update(num_stages=0), "num_stages: 0 must be an integer between 1"),
        (lambda d: d.update(num_stages=10**9), "num_stages: 1000000000 must be an integer"),
        (lambda d: d.update(num_stages=2.0), "num_stages: 2.0 must be an integer"),
        (lambda d: d.update(microbatch_tokens=-5), "microbatch_tokens: -5"),
        (lambda d: d.update(lower_bound_slots=-1), "lower_bound_slots: -1"),
        (lambda d: d.update(seconds="fast"), "seconds: 'fast' must be a number"),
        (lambda d: d.update(jobs={}), "jobs: {} must be a list"),
        (lambda d: d.update(adapter_groups=[["nobody"]]), "'nobody' is the name of no job"),
        (lambda d: d["jobs"][0].update(name=""), r"jobs\[0\]: name"),
        (lambda d: d["jobs"][1].update(name="a0"), "jobs share a name"),
        (lambda d: d["jobs"][0].update(seed=1.5), r"jobs\[0\]: seed"),
        (lambda d: d["jobs"][0]["lora"].update(r=0), "lora: r: 0"),
        (lambda d: d["jobs"][0]["lora"].update(use_rslora=1), "use_rslora=1 must be true or false"),
        (lambda d: d["jobs"][0]["lora"].update(lora_dropout=1.5), "lora_dropout: 1.5 must be a number between 0 and 1"),
        (lambda d: d["jobs"][0]["optimizer"].update(lr_scheduler="magic"), "lr_scheduler='magic' must be one of"),
        (lambda d: d["jobs"][0]["optimizer"].update(betas=[0.9]), "betas=.* must be two numbers"),
        (lambda d: d["jobs"][0].update(sample_fields=["x"]), "sample_fields"),
        (lambda d: sample_row(d).pop(), r"must be \[index, num_tokens, num_target_tokens\]"),
        (lambda d: sample_row(d).__setitem__(1, 0), "num_tokens of sample 0: 0 must be"),
        (lambda d: sample_row(d).__setitem__(1, 2**40), "num_tokens of sample 0"),
        (lambda d: sample_row(d).__setitem__(1, None), "num_tokens of sample 0: None"),
        (lambda d: sample_row(d).__setitem__(0, 1), "index 1 stands twice"),
        (lambda d: d["microbatches"][0].update(samples=[]), r"microbatches\[0\]: samples=\[\] must map"),
        (lambda d: d["microbatches"][0]["samples"].update(a0=[99]), "adapter 'a0' has no sample 99"),
        (lambda d: d["microbatches"][0]["samples"].update(ghost=[0]), "'ghost' is the name of no job"),
        (lambda d: d["solver"][0].update(status=5), r"solver\[0\]: status: 5 must be a text"),
    ],
)
def test_every_wrong_value_is_named(tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        load_plan(edited(tmp_path, change), check=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1"),
        ("{", "line 1"),
        ("[1, 2]", "'format' is not"),
        ('{"format": "loraplex-plan", "format": "loraplex-plan"}', "'format' stands twice"),
        ('{"format": NaN}', "NaN is no number a plan may hold"),
        ("[" * 100_000, "nested too deeply"),
        ('{"format": 1' + "0" * 5000 + "}", "make it anew"),
    ],
)
def test_files_that_are_no_plans(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(PlanError, match=message):
        load_plan(path)


def test_files_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_bytes(b"\x80\x04\x95pickle")
    with pytest.raises(PlanError, match="not a text file in UTF-8"):
        load_plan(tmp_path / "plan.json")
    with pytest.raises(PlanError, match="cannot be read"):
        load_plan(tmp_path / "absent.json")


def test_a_failed_write_leaves_the_old_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "plan.json"
    save_plan(small_plan(), path)
    monkeypatch.setattr("loraplex.planner.plan_file._pretty", lambda document: iter(["{", 5]))
    with pytest.raises(TypeError):
        save_plan(replace(small_plan(), num_stages=3), path)
    assert load_plan(path) == small_plan()
    assert [entry.name for entry in tmp_path.iterdir()] == ["plan.json"]
