"""What surrounds each action: waits, messages and receives posted ahead, on an example small enough to read whole."""

import re

from loraplex.engine.itinerary import Leg, itinerary
from loraplex.engine.message import Message
from loraplex.engine.transport import Direction
from loraplex.planner.build_program import build_program
from loraplex.planner.jobs import Job, job_from_lengths
from loraplex.planner.plan import Plan, microbatch


def example() -> Plan:
    """Two adapters with two global batches of one sample each, taking turns: 0, 1, 0, 1."""
    jobs: tuple[Job, ...] = tuple(
        job_from_lengths(adapter=adapter, name=f"job{adapter}", lengths=[10, 20], global_batch_size=1)
        for adapter in range(2)
    )
    order = [(0, 0), (1, 0), (0, 1), (1, 1)]
    microbatches = tuple(microbatch(jobs[adapter].global_batches[batch]) for adapter, batch in order)
    return Plan(jobs=jobs, num_stages=2, microbatch_tokens=32, microbatches=microbatches)


def name(message: Message | None) -> str:
    """`F2+0.0`: the hidden states of microbatch 2 with the norm of adapter 0's batch 0; `B` a gradient, `-` nothing."""
    if message is None:
        return "-"
    letter = "F" if message.direction is Direction.DOWN else "B"
    place = str(message.microbatch) if message.microbatch >= 0 else ""
    return "+".join([letter + place, *(f"{adapter}.{batch}" for adapter, batch in message.batches)])


def table(legs: tuple[Leg, ...]) -> list[str]:
    """One line a leg: word, receives posted before it, what it waits for, what it sends."""
    return [
        f"{leg.word} post {','.join(map(name, leg.post)) or '-'} wait {name(leg.receive)} send {name(leg.send)}"
        for leg in legs
    ]


def test_the_first_stage() -> None:
    plan = example()
    program = build_program(plan)
    assert program.to_text().splitlines()[0] == "0F0 0F1 0B0 0S0.0 0F2 0B1 0S1.0 0F3 0B2 0B3 0S0.1 0S1.1"
    assert table(itinerary(program, plan, stage=0)) == [
        "0F0 post - wait - send F0",
        "0F1 post B0+0.0 wait - send F1",
        "0B0 post - wait B0+0.0 send -",
        "0S0.0 post - wait - send -",
        # The total of adapter 0 goes down with the forward that its step stands before.
        "0F2 post B1+1.0 wait - send F2+0.0",
        "0B1 post - wait B1+1.0 send -",
        "0S1.0 post - wait - send -",
        "0F3 post B2+0.1 wait - send F3+1.0",
        "0B2 post B3+1.1 wait B2+0.1 send -",
        "0B3 post - wait B3+1.1 send -",
        "0S0.1 post - wait - send -",
        # Totals that no forward follows go down in one message after the last step.
        "0S1.1 post - wait - send F+0.1+1.1",
    ]


def test_the_last_stage() -> None:
    plan = example()
    assert table(itinerary(build_program(plan), plan, stage=1)) == [
        "1F0 post F0 wait F0 send -",
        # Receives are posted one forward or backward ahead; a step in between does not count.
        "1B0 post F1 wait - send B0+0.0",
        "1F1 post - wait F1 send -",
        "1B1 post F2+0.0 wait - send B1+1.0",
        "1S0.0 post - wait F2+0.0 send -",
        "1F2 post - wait F2+0.0 send -",
        "1B2 post F3+1.0 wait - send B2+0.1",
        "1S1.0 post - wait F3+1.0 send -",
        "1F3 post - wait F3+1.0 send -",
        "1B3 post F+0.1+1.1 wait - send B3+1.1",
        "1S0.1 post - wait F+0.1+1.1 send -",
        "1S1.1 post - wait F+0.1+1.1 send -",
    ]


def test_norms_are_taken_where_a_batch_ends() -> None:
    plan = example()
    for stage in range(2):
        closed = {leg.word[1:]: leg.closes for leg in itinerary(build_program(plan), plan, stage=stage) if leg.closes}
        assert closed == {"B0": ((0, 0),), "B1": ((1, 0),), "B2": ((0, 1),), "B3": ((1, 1),)}


def test_a_single_stage_waits_for_nothing() -> None:
    plan = Plan(jobs=example().jobs, num_stages=1, microbatch_tokens=32, microbatches=example().microbatches)
    lines = table(itinerary(build_program(plan), plan, stage=0))
    assert all(re.fullmatch(r"\S+ post - wait - send -", line) for line in lines)


def test_with_replicas_norms_are_taken_after_the_sum_and_travel_alone() -> None:
    one = example()
    plan = Plan(jobs=one.jobs, num_stages=2, num_replicas=2, microbatch_tokens=32, microbatches=one.microbatches)
    assert table(itinerary(build_program(plan), plan, stage=0, replica=1)) == [
        "0F1 post B1 wait - send F1",
        "0B1 post B+0.0,B+1.0 wait B1 send -",
        "0R0.0 post - wait B+0.0 send -",
        "0R1.0 post - wait B+1.0 send -",
        "0S0.0 post - wait - send -",
        "0S1.0 post - wait - send -",
        "0F3 post B3 wait - send F3+0.0+1.0",
        "0B3 post B+0.1,B+1.1 wait B3 send -",
        "0R0.1 post - wait B+0.1 send -",
        "0R1.1 post - wait B+1.1 send -",
        "0S0.1 post - wait - send -",
        "0S1.1 post - wait - send F+0.1+1.1",
    ]
    assert table(itinerary(build_program(plan), plan, stage=1, replica=1)) == [
        "1F1 post F1 wait F1 send -",
        "1B1 post F3+0.0+1.0 wait - send B1",
        "1R0.0 post - wait - send B+0.0",
        "1R1.0 post - wait - send B+1.0",
        "1S0.0 post - wait F3+0.0+1.0 send -",
        "1S1.0 post - wait F3+0.0+1.0 send -",
        "1F3 post - wait F3+0.0+1.0 send -",
        "1B3 post F+0.1+1.1 wait - send B3",
        "1R0.1 post - wait - send B+0.1",
        "1R1.1 post - wait - send B+1.1",
        "1S0.1 post - wait F+0.1+1.1 send -",
        "1S1.1 post - wait F+0.1+1.1 send -",
    ]
