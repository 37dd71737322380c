"""A whole run inside one process, a thread per worker: for tests, and for parity checks on a user's jobs."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..planner.plan import Plan
from ..planner.program import Program
from .batch import Packer, TokenSource
from .errors import PeerLostError
from .execute import Executor
from .itinerary import itinerary
from .mailbox import Sums
from .metrics import StepRecord
from .recorder import Recorder
from .rendezvous import RendezvousTransport, Switchboard
from .stage import Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadedRun:
    """What is left when all threads are done, by worker."""

    recorders: tuple[Recorder, ...]
    records: tuple[StepRecord, ...]
    """Of all adapters, in the order in which the last stage of replica 0 took the steps."""


@dataclass(slots=True)
class _Outcome:
    records: list[StepRecord] = field(default_factory=list)
    errors: dict[int, BaseException] = field(default_factory=dict)


def run_in_threads(
    stages: Sequence[Stage],
    plan: Plan,
    program: Program,
    tokens: TokenSource,
    *,
    sums: Sequence[Sums] | None = None,
    after_leg: Callable[[int, int], None] | None = None,
    timeout_s: float = 60.0,
) -> ThreadedRun:
    """Run a Program on stages given by worker (replica after replica), over the strict rendezvous transport.

    `after_leg` hears (worker, place of the leg). Raises what broke first, not the losses of a peer that followed.
    """
    board = Switchboard(len(stages), timeout_s=timeout_s)
    recorders = tuple(Recorder(stage=stage.layout.stage, replica=stage.replica) for stage in stages)
    outcome = _Outcome()

    def work(worker: int) -> None:
        stage = stages[worker]

        def hear(record: StepRecord) -> None:
            if stage.replica == 0:
                outcome.records.append(record)

        def after(place: int) -> None:
            if after_leg is not None:
                after_leg(worker, place)

        try:
            executor = Executor(
                stage,
                plan,
                Packer(plan.jobs, tokens),
                RendezvousTransport(board, worker),
                recorder=recorders[worker],
                sums=sums[worker] if sums else None,
                on_step=hear,
                after_leg=after,
            )
            executor.run(itinerary(program, plan, stage=stage.layout.stage, replica=stage.replica))
        except BaseException as error:
            outcome.errors[worker] = error
            board.leave(worker, str(error))

    threads = [threading.Thread(target=work, args=(worker,), daemon=True) for worker in range(len(stages))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if outcome.errors:
        raise next(
            (error for error in outcome.errors.values() if not isinstance(error, PeerLostError)),
            next(iter(outcome.errors.values())),
        )
    return ThreadedRun(recorders=recorders, records=tuple(outcome.records))
