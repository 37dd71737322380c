"""A stage at work for seconds without a rest, as in training, for what a GPU takes longer then than in the rounds.

Between the runs of a round a GPU rests, since each is planned and set up, about a tenth of the time, and its clock
rises: an H100 at its limit of 690 W trained at 1512 MHz, 13.5 ms a layer and microbatch of 8,146 tokens, where the
rounds of the same hour said about 13.0 at about 1600 MHz (2026-11-26). traces/steady.py makes a factor of it.
"""

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from ..planner.program import ActionKind
from .measure import agreed_rounds, run_round
from .measure_rounds import seconds_since
from .pool_tokens import PoolTokens
from .profile_conditions import Condition, conditions_plan, every_so_many
from .recorder import now_ns
from .stage import Stage
from .stage_kinds import Setup, StageKind
from .stage_rounds import Passes, Row

_SHARE = 0.2
"""Of the time for all measuring: about four seconds."""
_LEAST_TURNS = 2
"""One in which the clock settles, and one that is timed."""


def steady_rows(setup: Setup, kind: StageKind, stage: Stage, rounds: pd.DataFrame) -> list[Row]:
    """Rows of the piece `steady`: what large microbatches take, in turn and back to back, once the clock has settled.

    `rounds`: what was measured so far, which says how often they fit into the time. All workers call it together.
    """
    conditions = steady_conditions(setup.conditions, every=kind.every)
    own = rounds["condition"].isin([condition.number for condition in conditions])
    stages = (rounds["piece"] == kind.piece) & (rounds["layers"] == kind.layers) & ~rounds["replayed"]
    turn_ms = float(rounds.loc[own & stages & (rounds["recompute"] == kind.recompute), "ms"].sum())
    afforded = max(_LEAST_TURNS, round(_SHARE * setup.seconds * 1e3 / turn_ms))
    turns = agreed_rounds(afforded, setup.transport, setup.num_workers)
    plan = conditions_plan(conditions * turns, setup.loras, num_stages=3)
    setup.transport.barrier()
    begin_ns = now_ns()
    spans = run_round(stage, plan, tokens=PoolTokens(stage.model.config.vocab_size))
    count = len(conditions)
    setup.tell(f"  {turns} turns of {count} large microbatches without a rest in {seconds_since(begin_ns)} s")
    passes = Passes(count)
    for word, action in (("forward", ActionKind.FORWARD), ("backward", ActionKind.BACKWARD)):
        ms = [taken for done, taken in spans if done.kind is action]
        # The later half; behind the turns stand the two that end everybody's batch.
        for number in range(turns // 2 * count, turns * count):
            passes.add(word, number % count, ms[number])
    return passes.rows(replace(kind, piece="steady"), conditions, plan, stage=stage)


def steady_conditions(conditions: Sequence[Condition], *, every: int) -> tuple[Condition, ...]:
    """Of every so many the large ones, and of those the ones of several samples, as far as there are any.

    A single long sample is half attention, which training hardly is, and which may draw less power than products do.
    """
    own = every_so_many(conditions, every=every, large=True) or tuple(conditions[::every])
    return tuple(condition for condition in own if len(condition.lengths) > 1) or own
