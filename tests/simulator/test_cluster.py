"""Clusters: whose link is whose, disturbances, and their file."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from loraplex.planner.build_program import build_program
from loraplex.planner.costing import program_costs
from loraplex.planner.program import ActionKind
from loraplex.simulator.cluster import Cluster, Link, Pause, Restart, SlowWorker
from loraplex.simulator.cluster_file import cluster_of, load_cluster
from loraplex.simulator.errors import SimulationError
from loraplex.simulator.simulate import Hardware, hardware_costs, simulate
from loraplex.tests.random_plans import even_plan
from loraplex.traces.costs import LinkCosts, uniform_profile

PROFILE = uniform_profile(forward_ms=1, backward_ms=2, num_stages=4)
NODES = Cluster(
    gpus_per_node=2,
    node_link=Link(latency_ms=1.0, bytes_per_ms=100.0),
    network=Link(latency_ms=5.0, bytes_per_ms=10.0),
)


def test_the_network_lies_between_nodes_and_the_node_link_inside() -> None:
    links = NODES.links(num_stages=4, num_replicas=1, profiled=LinkCosts(bytes_per_token=2.0))
    # Devices 0 1 | 2 3: only 1 to 2, and back from 3 to 0, cross.
    assert [link.latency_ms for link in links] == [1.0, 5.0, 1.0, 5.0]
    assert {link.bytes_per_token for link in links} == {2.0}


def test_replicas_fill_nodes_one_after_another_and_reduce_over_the_slowest_link() -> None:
    links = NODES.links(num_stages=2, num_replicas=2, profiled=LinkCosts())
    assert [link.latency_ms for link in links] == [1.0, 1.0, 1.0, 1.0]
    assert NODES.replica_link(num_stages=2, num_replicas=2, profiled=LinkCosts()).latency_ms == 5.0


def test_a_cluster_that_says_nothing_changes_nothing() -> None:
    profiled = LinkCosts(latency_ms=0.5, bytes_per_ms=3.0, bytes_per_token=2.0)
    assert set(Cluster().links(num_stages=3, num_replicas=2, profiled=profiled)) == {profiled}


def test_a_slow_gpu_takes_longer_for_everything() -> None:
    plan = even_plan(4, 2)
    program = build_program(plan)
    cluster = Cluster(slow=(SlowWorker(stage=2, factor=1.5),))
    costs = hardware_costs(program, plan, Hardware(profile=PROFILE, cluster=cluster))
    forward = costs.graph.kind == int(ActionKind.FORWARD)
    assert [costs.duration_ms[forward & (costs.graph.worker == worker)].tolist() for worker in range(4)] == [
        [1.0, 1.0],
        [1.0, 1.0],
        [1.5, 1.5],
        [1.0, 1.0],
    ]


def test_jitter_is_seeded_and_keeps_the_mean() -> None:
    plan = even_plan(4, 2000)
    program = build_program(plan)

    def durations(seed: int) -> NDArray[np.float64]:
        hardware = Hardware(profile=PROFILE, cluster=Cluster(jitter=0.2, seed=seed))
        costs = hardware_costs(program, plan, hardware)
        return np.asarray(costs.duration_ms[costs.graph.kind == int(ActionKind.FORWARD)])

    assert (durations(1) == durations(1)).all()
    assert (durations(1) != durations(2)).any()
    assert durations(1).mean() == pytest.approx(1.0, abs=0.01)
    assert np.log(durations(1)).std() == pytest.approx(0.2, abs=0.01)


def test_pauses_of_one_worker_are_joined_in_order() -> None:
    plan = even_plan(4, 2)
    graph = program_costs(build_program(plan), plan, PROFILE).graph
    cluster = Cluster(
        pauses=(
            Pause(stage=1, at_ms=5.0, for_ms=2.0),
            Pause(stage=1, at_ms=1.0, for_ms=1.0),
            Pause(stage=1, at_ms=6.0, for_ms=3.0),
        )
    )
    assert cluster.paused(graph) == ((), ((1.0, 2.0), (5.0, 7.0), (7.0, 9.0)), (), ())
    assert cluster.paused(graph, begin_ms=6.0) == ((), ((0.0, 0.0), (0.0, 1.0), (1.0, 3.0)), (), ())


@pytest.mark.parametrize("place", [{"stage": 4}, {"stage": 0, "replica": 1}])
def test_a_worker_that_is_not_there_is_named(place: dict[str, int]) -> None:
    plan = even_plan(4, 2)
    cluster = Cluster(name="lab", slow=(SlowWorker(factor=2.0, **place),))
    with pytest.raises(SimulationError, match=r"cluster 'lab' names stage .* 4 stages and 1 replica"):
        simulate(build_program(plan), plan, Hardware(profile=PROFILE, cluster=cluster))


def test_a_file_says_all_of_it(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(
        """
name: lab
gpus_per_node: 4
node_link: {latency_ms: 0.01, gb_per_s: 450}
network: {latency_ms: 0.03, shared_by: gpu}
contention: true
overlapped: false
memory_gib: 80
jitter: 0.05
seed: 7
slow: [{stage: 2, factor: 1.3}]
pauses: [{stage: 1, replica: 1, at_ms: 100, for_ms: 50}]
restart: {at_ms: 5000, for_ms: 800, checkpoint_every: 20}
""",
        encoding="utf-8",
    )
    assert load_cluster(path) == Cluster(
        name="lab",
        gpus_per_node=4,
        node_link=Link(latency_ms=0.01, bytes_per_ms=450e6),
        network=Link(latency_ms=0.03, shared_by="gpu"),
        contention=True,
        overlapped=False,
        memory_bytes=80 * 1024**3,
        jitter=0.05,
        seed=7,
        slow=(SlowWorker(stage=2, factor=1.3),),
        pauses=(Pause(stage=1, replica=1, at_ms=100.0, for_ms=50.0),),
        restart=Restart(at_ms=5000.0, for_ms=800.0, checkpoint_every=20),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("jitter: -0.1", r"jitter=-0.1: input should be greater than or equal to 0"),
        ("jitter: .nan", r"jitter=nan"),
        ("speed: 3", "speed is unknown; remove it or mend its name"),
        ("slow: [{stage: 1}]", r"slow.0.factor is missing"),
        ("slow: [{stage: 1, factor: 0}]", r"slow.0.factor=0: input should be greater than 0"),
        ("node_link: {gb_per_s: 0}", "node_link.gb_per_s=0"),
        ("network: {shared_by: all}", "network.shared_by='all': input should be 'gpu', 'node' or 'nobody'"),
        ("gpus_per_node: 1.5", "gpus_per_node=1.5"),
        ("pauses: [{for_ms: 1}]", "pauses.0={'for_ms': 1}: needs one of at_ms .a moment. and within_ms"),
        ("restart: {at_ms: 1, within_ms: 2, for_ms: 1, checkpoint_every: 1}", "restart=.* needs one of at_ms"),
        ("restart: {at_ms: 1, for_ms: 1, checkpoint_every: 0}", "restart.checkpoint_every=0"),
        ("[1, 2]", "the file=\\[1, 2\\]"),
        ("a: [", ":1: expected the node content, but found '<stream end>'; only plain YAML is read"),
        ("seed: 1\nseed: 2", ":2: the key 'seed' is given twice; keep one"),
    ],
)
def test_a_bad_file_is_named_by_field_and_value(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SimulationError, match=message) as raised:
        load_cluster(path)
    assert str(raised.value).startswith(f"{path}:")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SimulationError, match=r"nowhere.yaml: cannot be read"):
        load_cluster(tmp_path / "nowhere.yaml")


def test_what_is_not_said_is_drawn_by_the_seed_alone() -> None:
    content = {"seed": 1, "slow": [{"factor": 2.0}], "pauses": [{"within_ms": 10, "for_ms": 1}]}
    content |= {"restart": {"within_ms": 100, "for_ms": 1, "checkpoint_every": 2}}
    cluster = cluster_of(content, where="cluster")
    assert cluster == cluster_of(content, where="cluster")
    others = [cluster_of(content | {"seed": seed}, where="cluster") for seed in range(200)]
    assert others[1] == cluster
    # Another entry more leaves the draws of the first alone.
    longer = cluster_of(content | {"slow": [{"factor": 2.0}, {"stage": 0, "factor": 3.0}]}, where="cluster")
    assert longer.slow[0] == cluster.slow[0]
    assert longer.pauses == cluster.pauses
    plan = even_plan(2, 2, num_replicas=2)
    graph = program_costs(build_program(plan), plan, PROFILE).graph
    for places in ([each.slow[0] for each in others], [each.pauses[0] for each in others]):
        counts = np.bincount([cluster.worker(place, graph) for place in places])
        assert len(counts) == 4
        assert (counts > 25).all()
    restarts = [each.restart.at_ms for each in others if each.restart is not None]
    assert len(restarts) == len(others)
    for moments, end in (([each.pauses[0].at_ms for each in others], 10.0), (restarts, 100.0)):
        assert 0 <= min(moments) < 0.1 * end
        assert 0.9 * end < max(moments) < end
