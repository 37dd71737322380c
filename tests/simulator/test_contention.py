"""Who queues for what: ports inside a node, cards between nodes, buses; and what that does to a run."""

from dataclasses import replace

import pytest

from loraplex.planner.build_program import build_program
from loraplex.planner.costing import program_costs
from loraplex.simulator.cluster import Cluster, Link, Sharing
from loraplex.simulator.contention import message_channels
from loraplex.simulator.simulate import Hardware, simulate
from loraplex.simulator.to_timeline import action_words
from loraplex.tests.random_plans import even_plan
from loraplex.traces.costs import CostProfile, LinkCosts, uniform_profile


def ways(cluster: Cluster, *, num_stages: int, num_replicas: int = 1) -> dict[tuple[int, str], tuple[int, int]]:
    """(way out, way in) of everything that is sent, by (worker, word), of one microbatch a replica."""
    plan = even_plan(num_stages, num_replicas, num_replicas=num_replicas)
    profile = uniform_profile(forward_ms=1, backward_ms=1, num_stages=num_stages)
    graph = program_costs(build_program(plan), plan, profile).graph
    links = cluster.links(num_stages=num_stages, num_replicas=num_replicas, profiled=LinkCosts())
    channels = message_channels(cluster, graph, links)
    assert channels is not None
    rows = zip(
        graph.worker.tolist(), action_words(graph), channels.leaves.tolist(), channels.enters.tolist(), strict=True
    )
    return {(worker, word): (out, into) for worker, word, out, into in rows if out >= 0}


def test_inside_a_node_messages_queue_for_the_ports_of_their_gpus() -> None:
    # Ports out of GPUs 0 1 2 are 0 2 4, into them 1 3 5: what GPU 1 sends on and sends back shares its way out.
    assert ways(Cluster(contention=True), num_stages=3) == {
        (0, "0F0"): (0, 3),
        (1, "1F0"): (2, 5),
        (2, "2B0"): (4, 3),
        (1, "1B0"): (2, 1),
    }


def test_between_nodes_messages_queue_for_the_cards_of_their_nodes() -> None:
    # Nodes hold GPUs 0 1 | 2; cards come after six ports: out of the nodes 6 and 8, into them 7 and 9.
    assert ways(Cluster(gpus_per_node=2, contention=True), num_stages=3) == {
        (0, "0F0"): (0, 3),
        (1, "1F0"): (6, 9),
        (2, "2B0"): (8, 7),
        (1, "1B0"): (2, 1),
    }


def test_a_bus_is_one_way_for_all_of_its_node_and_a_card_of_its_own_is_a_port() -> None:
    cluster = Cluster(gpus_per_node=2, node_link=Link(shared_by="node"), network=Link(shared_by="gpu"), contention=True)
    assert ways(cluster, num_stages=2, num_replicas=2) == {
        (0, "0F0"): (16, 16),
        (1, "1B0"): (16, 16),
        (2, "0F1"): (17, 17),
        (3, "1B1"): (17, 17),
    }
    assert ways(replace(cluster, gpus_per_node=1), num_stages=2) == {(0, "0F0"): (0, 3), (1, "1B0"): (2, 1)}


def test_what_nobody_shares_does_not_queue() -> None:
    cluster = Cluster(node_link=Link(shared_by="nobody"), contention=True)
    assert ways(cluster, num_stages=3) == {}


def sending_profile(num_stages: int) -> CostProfile:
    """Even stages, messages of 100 bytes."""
    profile = uniform_profile(forward_ms=1, backward_ms=1, num_stages=num_stages)
    return replace(profile, link=replace(profile.link, bytes_per_token=1.0))


@pytest.mark.parametrize(
    ("cluster", "queues"),
    [
        (Cluster(gpus_per_node=1, network=Link(bytes_per_ms=25.0)), True),
        (Cluster(node_link=Link(bytes_per_ms=25.0)), True),
        (Cluster(node_link=Link(bytes_per_ms=25.0, shared_by="node")), True),
        # Latency alone fills nothing, bytes do.
        (Cluster(gpus_per_node=1, network=Link(latency_ms=4.0)), False),
        (Cluster(node_link=Link(latency_ms=4.0)), False),
        (Cluster(node_link=Link(bytes_per_ms=25.0, shared_by="nobody")), False),
    ],
)
def test_messages_of_4_ms_that_the_middle_stage_sends_on_and_back_hold_each_other_up(
    cluster: Cluster, queues: bool
) -> None:
    plan = even_plan(3, 6)
    program = build_program(plan)
    calm, contended = (
        simulate(program, plan, Hardware(profile=sending_profile(3), cluster=replace(cluster, contention=contention)))
        for contention in (False, True)
    )
    assert (contended.makespan_ms() > calm.makespan_ms()) is queues


@pytest.mark.parametrize(("shared_by", "second_ms"), [("gpu", 5.0), ("node", 9.0)])
def test_two_replicas_in_one_node_meet_on_a_bus_only(shared_by: Sharing, second_ms: float) -> None:
    # Both first stages send 100 bytes at 1 ms, 4 ms each: over ports of their own at once, over a bus in turn.
    plan = even_plan(2, 2, num_replicas=2)
    cluster = Cluster(node_link=Link(bytes_per_ms=25.0, shared_by=shared_by), contention=True)
    run = simulate(build_program(plan), plan, Hardware(profile=sending_profile(2), cluster=cluster))
    frame = run.timeline.compute()
    firsts = frame[frame["action"].str.startswith("1F") & (frame["microbatch"] < 2)]
    assert sorted(firsts["start_ms"].tolist()) == [5.0, second_ms]
