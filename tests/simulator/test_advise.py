"""`loraplex advise`: of all ways to lay a job file on so many GPUs, the ones that fit, the fastest first."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from loraplex.planner.errors import PlanError
from loraplex.planner.gpus import Gpus
from loraplex.planner.inputs.load_jobs import load_jobs
from loraplex.simulator.advise import AdviseRequest, advise, microbatch_sizes
from loraplex.simulator.advise_commands import advise as command
from loraplex.simulator.asked_gpus import AskedGpus
from loraplex.simulator.errors import SimulationError
from loraplex.simulator.estimate_commands import estimate
from loraplex.tests.simulator.made_up import PROFILE as MADE_UP
from loraplex.traces.costs import CostTerms, LinkCosts, PassCosts

app = typer.Typer()
app.command("advise")(command)
app.command()(estimate)

JOBS = """
base_model: llama-3.1-8b
random_weights: true
sequence_len: 2048
defaults: {global_batch_size: 4}
adapters:
  - {name: one, datasets: [{path: lengths.csv, type: lengths}]}
  - {name: two, datasets: [{path: lengths.csv, type: lengths}]}
"""
AS_NOW = "pipeline: {stages: 2}\nmicrobatch_tokens: 4096\n"
PROFILE = replace(
    MADE_UP,
    source="a microsecond a token and layer, and as much as 100 tokens beside",
    forward=PassCosts(linears={"fused": CostTerms(per_token_ms=0.001, fixed_ms=0.1)}),
    backward=PassCosts(linears={"fused": CostTerms(per_token_ms=0.002, fixed_ms=0.2)}),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lengths = [300, 1000, 700, 500] * 4
    (tmp_path / "lengths.csv").write_text("num_tokens\n" + "\n".join(map(str, lengths)), encoding="utf-8")
    (tmp_path / "jobs.yaml").write_text(JOBS + AS_NOW, encoding="utf-8")
    PROFILE.save(tmp_path / "profile.json")
    return tmp_path


def run(word: str, folder: Path, *words: str) -> Any:
    given = [word, str(folder / "jobs.yaml"), "--profile", str(folder / "profile.json"), *words]
    done = CliRunner().invoke(app, [*given, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def shown(folder: Path, *words: str) -> str:
    given = ["advise", str(folder / "jobs.yaml"), "--profile", str(folder / "profile.json"), *words]
    done = CliRunner().invoke(app, given, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_every_way_goes_as_estimate_foretells_of_a_job_file_that_says_so(folder: Path) -> None:
    found = run("advise", folder, "--gpus", "4", "--batches", "0")
    assert (found["num_gpus"], found["profile"], found["num_batches"], found["impossible"]) == (4, "made-up", 4, [])
    assert {(way["num_stages"], way["num_replicas"]) for way in found["layouts"]} == {(1, 4), (2, 2), (4, 1)}
    rates = [way["tokens_per_s"] for way in found["layouts"]]
    assert rates == sorted(rates, reverse=True)
    for way in found["layouts"]:
        (folder / "jobs.yaml").write_text(
            f"{JOBS}pipeline: {{stages: {way['num_stages']}, replicas: {way['num_replicas']}}}\n"
            f"microbatch_tokens: {way['microbatch_tokens']}\nrecompute: {way['recompute']}\n",
            encoding="utf-8",
        )
        foretold = run("estimate", folder)
        assert [foretold[name] for name in ("peak_memory_bytes", "fits", "recompute")] == [
            way["peak_bytes"], way["fits"], way["recompute"],
        ]  # fmt: skip
        assert foretold["tokens_per_s"] == pytest.approx(way["tokens_per_s"])
        assert foretold["bubble_ratio"] == pytest.approx(way["bubble_ratio"])


def test_what_does_not_fit_stands_behind_what_does_however_fast(folder: Path) -> None:
    # 32 layers of weights take 32 MiB on one stage, which is the fastest, and 8 on four.
    (folder / "jobs.yaml").write_text(f"{JOBS}{AS_NOW}recompute: none\n", encoding="utf-8")
    rates = {way["num_stages"]: way["tokens_per_s"] for way in run("advise", folder, "--gpus", "4")["layouts"]}
    assert max(rates, key=lambda stages: rates[stages]) == 1
    found = run("advise", folder, "--gpus", "4", "--device-memory", str(24 / 1024))["layouts"]
    assert [way["fits"] for way in found] == sorted((way["fits"] for way in found), reverse=True)
    assert {way["num_stages"] for way in found if way["fits"]} == {2, 4}
    assert {way["num_stages"] for way in found if not way["fits"]} == {1}
    text = shown(folder, "--gpus", "4", "--device-memory", str(24 / 1024))
    assert "4 GPUs of 24.0 MiB, by made-up" in text
    assert "pipeline: {stages: 2, replicas: 2}" in text
    assert "does not fit" in text


def test_the_job_files_own_way_is_always_shown(folder: Path) -> None:
    # Without --gpus on a machine that has none: as many as the job file has workers.
    found = run("advise", folder)
    assert found["num_gpus"] == 2
    (own,) = (way for way in found["layouts"] if way["is_job_files"])
    assert (own["num_stages"], own["num_replicas"], own["microbatch_tokens"]) == (2, 1, 4096)
    assert "as now" in shown(folder, "--top", "1")
    best = found["layouts"][0]
    (folder / "jobs.yaml").write_text(
        f"{JOBS}pipeline: {{stages: {best['num_stages']}, replicas: {best['num_replicas']}}}\n"
        f"microbatch_tokens: {best['microbatch_tokens']}\n",
        encoding="utf-8",
    )
    assert "the job file has the best of them already" in shown(folder)


def test_where_nothing_fits_it_says_so(folder: Path) -> None:
    assert "none of them fits; loraplex estimate tells what would help" in shown(folder, "--device-memory", "0.001")


def test_what_cannot_be_planned_in_any_way_is_a_mistake_and_not_an_answer(folder: Path) -> None:
    with pytest.raises(PlanError, match="on 100,000 GPUs can be planned, for example 1 stage, 100,000 replicas, 2"):
        shown(folder, "--gpus", "100000")


def test_only_the_first_global_batches_are_looked_at_unless_all_are_asked_for(folder: Path) -> None:
    assert run("advise", folder, "--batches", "3")["num_batches"] == 3
    assert "over the first 3 global batches of each adapter" in shown(folder, "--batches", "3")


def test_it_is_told_that_messages_count_as_free_where_no_link_is_known(folder: Path) -> None:
    assert "messages between GPUs count as free" in shown(folder)
    (folder / "cluster.yaml").write_text("node_link: {latency_ms: 0.01, gb_per_s: 20}\n", encoding="utf-8")
    assert "free" not in shown(folder, "--cluster", str(folder / "cluster.yaml"))
    slow = LinkCosts(latency_ms=5.0, bytes_per_ms=1e6, bytes_per_token=8192.0)
    replace(PROFILE, name="linked", link=slow).save(folder / "profile.json")
    assert "free" not in shown(folder)
    # One GPU sends nothing.
    PROFILE.save(folder / "profile.json")
    assert "free" not in shown(folder, "--gpus", "1")


def test_this_machines_gpus_are_what_it_is_for(folder: Path) -> None:
    request = AdviseRequest(
        job_file=folder / "jobs.yaml",
        profile=str(folder / "profile.json"),
        gpus=AskedGpus(machine=lambda: Gpus(free_bytes=(2e7, 3e7))),
    )
    advice = advise(request)
    assert advice.gpus.free_bytes == (2e7, 3e7)
    assert {(one.layout.num_stages, one.layout.num_replicas) for one in advice.candidates} == {(1, 2), (2, 1)}


def test_sizes_are_multiples_of_sequence_len_and_the_job_files_own(folder: Path) -> None:
    def sizes(sequence_len: int, own: int) -> tuple[int, ...]:
        text = JOBS.replace("sequence_len: 2048", f"sequence_len: {sequence_len}") + f"microbatch_tokens: {own}\n"
        (folder / "jobs.yaml").write_text(text, encoding="utf-8")
        return microbatch_sizes(load_jobs(folder / "jobs.yaml", allow_lengths=True).settings)

    assert sizes(1024, 3000) == (1024, 2048, 3000, 4096, 8192)
    assert sizes(6000, 12_000) == (6000, 12_000)
    assert sizes(20_000, 50_000) == (20_000, 50_000)


def test_wrong_input_is_told(folder: Path) -> None:
    replace(PROFILE, name="another", num_layers=16).save(folder / "profile.json")
    with pytest.raises(PlanError, match="profile 'another' is of a model of 16 layers"):
        run("advise", folder)
    with pytest.raises(SimulationError, match=r"--device-memory -1\.0 must be above 0 GiB"):
        run("advise", folder, "--device-memory", "-1")
