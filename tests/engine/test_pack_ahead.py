"""When the host packs microbatches: before it waits, so that packing costs no time where there is a wait anyway."""

from loraplex.engine.itinerary import itinerary
from loraplex.engine.pack_ahead import packed_before
from loraplex.planner.build_program import build_program
from loraplex.planner.jobs import job_from_lengths
from loraplex.planner.plan import Plan, microbatch


def packing(*, stage: int) -> str:
    """Microbatch 2 packed before `0B0` waits is `0B0:2`; one adapter, two batches of three samples, two stages."""
    job = job_from_lengths(adapter=0, name="job", lengths=[10] * 6, global_batch_size=3)
    samples = [sample for batch in job.global_batches for sample in batch]
    plan = Plan(
        jobs=(job,), num_stages=2, microbatch_tokens=16, microbatches=tuple(microbatch([one]) for one in samples)
    )
    legs = itinerary(build_program(plan, schedule="1f1b-flush"), plan, stage=stage)
    packed = ("-" if action is None else str(action.microbatch) for action in packed_before(legs))
    return " ".join(f"{leg.word}:{number}" for leg, number in zip(legs, packed, strict=True))


def test_the_next_forward_is_packed_before_a_gradient_is_waited_for() -> None:
    # Microbatch 2 while the gradient of 0 is on its way, so that nothing need be packed when forward 2 begins. Not 3
    # while that of 2 is: a step stands between, and says whether the adapter goes on.
    assert packing(stage=0) == "0F0:0 0F1:1 0B0:2 0F2:2 0B1:- 0B2:- 0S0.0:- 0F3:3 0F4:4 0B3:5 0F5:5 0B4:- 0B5:- 0S0.1:-"


def test_the_last_stage_packs_while_hidden_states_are_on_their_way() -> None:
    assert packing(stage=1) == "1F0:0 1B0:- 1F1:1 1B1:- 1F2:2 1B2:- 1S0.0:- 1F3:3 1B3:- 1F4:4 1B4:- 1F5:5 1B5:- 1S0.1:-"
