"""The files of docs/examples that docs/simulate.md tells people to use."""

from pathlib import Path

from loraplex.planner.build_program import build_program
from loraplex.simulator.cluster_file import load_cluster
from loraplex.simulator.simulate import Hardware, simulate
from loraplex.simulator.sweep import run_sweep
from loraplex.simulator.sweep_file import load_sweep
from loraplex.tests.random_plans import random_plan
from loraplex.traces.profiles import load_profile, profile_names

EXAMPLES = Path(__file__).resolve().parents[2] / "docs/examples"


def test_profiles_in_the_box_say_where_they_come_from() -> None:
    origins = {name: load_profile(name).origin for name in profile_names()}
    assert origins["tiny-cpu"] == "measured"
    for model in ("llama-3.1-8b", "qwen2.5-32b", "llama-3.1-70b"):
        assert origins[f"{model}-nvidia-h200-measured"] == "measured"
    assert origins["llama-3.1-8b-nvidia-h100-80gb-hbm3-measured"] == "measured"
    assert origins["llama-70b-h100-published"] == "published"
    for name in origins:
        assert len(load_profile(name).source) > 20


def test_the_cluster_of_two_nodes() -> None:
    cluster = load_cluster(EXAMPLES / "two-nodes.yaml")
    plan = random_plan(3, num_stages=8)
    found = simulate(
        build_program(plan), plan, Hardware(profile=load_profile("llama-70b-h100-published"), cluster=cluster)
    )
    assert found.method == "simpy"
    assert set(found.timeline.frame["kind"]) == {"compute", "transfer", "wait"}


def test_the_what_if_sweep_runs(tmp_path: Path) -> None:
    sweep = load_sweep(EXAMPLES / "what-if.yaml")
    assert sweep.num_combinations() == 288
    table = run_sweep(sweep, folder=tmp_path)
    assert len(table) == 100
    assert table["error"].isna().all()
    assert table["profile"].nunique() == 2
