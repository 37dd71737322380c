"""A whole run inside one process, a thread per worker: for tests, and for parity checks on a user's jobs."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..planner.jobs import OnNonfinite
from ..planner.plan import Plan
from ..planner.program import Program
from .batch import TokenSource
from .errors import PeerLostError
from .execute import Executor
from .itinerary import itinerary
from .mailbox import Sums
from .metrics import StepRecord
from .packer import Packer
from .recorder import Recorder
from .rendezvous import RendezvousTransport, Switchboard
from .stage import Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadedRun:
    """What is left when all threads are done, by worker."""

    recorders: tuple[Recorder, ...]
    records: tuple[StepRecord, ...]
    """Of all adapters, in the order in which the last stage of replica 0 took the steps."""


@dataclass(frozen=True, slots=True)
class _Shared:
    # What the threads of one run have in common.
    plan: Plan
    program: Program
    tokens: TokenSource
    board: Switchboard
    on_nonfinite: OnNonfinite
    after_leg: Callable[[int, int], None] | None
    records: list[StepRecord] = field(default_factory=list)
    errors: dict[int, BaseException] = field(default_factory=dict)


def run_in_threads(
    stages: Sequence[Stage],
    plan: Plan,
    program: Program,
    tokens: TokenSource,
    *,
    sums: Sequence[Sums] | None = None,
    on_nonfinite: OnNonfinite = "stop",
    after_leg: Callable[[int, int], None] | None = None,
    timeout_s: float = 60.0,
) -> ThreadedRun:
    """Run a Program on stages given by worker (replica after replica), over the strict rendezvous transport.

    `after_leg` hears (worker, place of the leg). Raises what broke first, not the losses of a peer that followed.
    """
    board = Switchboard(len(stages), timeout_s=timeout_s, device=stages[0].device)
    shared = _Shared(plan, program, tokens, board, on_nonfinite, after_leg)
    recorders = tuple(
        Recorder(stage=stage.layout.stage, replica=stage.replica, device=stage.device) for stage in stages
    )
    for recorder in recorders:
        # The first mark waits for the whole device, which is forbidden while another thread captures a graph.
        recorder.mark()
    threads = [
        threading.Thread(
            target=_work,
            args=(shared, worker, stage, recorders[worker], sums[worker] if sums else Sums()),
            daemon=True,
        )
        for worker, stage in enumerate(stages)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in sorted(shared.errors.values(), key=lambda error: isinstance(error, PeerLostError)):
        raise error
    return ThreadedRun(recorders=recorders, records=tuple(shared.records))


def _work(shared: _Shared, worker: int, stage: Stage, recorder: Recorder, sums: Sums) -> None:
    after_leg = shared.after_leg
    try:
        executor = Executor(
            stage,
            shared.plan,
            Packer(shared.plan.jobs, shared.tokens, device=stage.device, buckets=stage.buckets),
            RendezvousTransport(shared.board, worker),
            recorder=recorder,
            sums=sums,
            on_nonfinite=shared.on_nonfinite,
            on_step=shared.records.append if stage.replica == 0 else None,
            after_leg=None if after_leg is None else lambda place: after_leg(worker, place),
        )
        executor.run(itinerary(shared.program, shared.plan, stage=stage.layout.stage, replica=stage.replica))
    except BaseException as error:
        shared.errors[worker] = error
        shared.board.leave(worker, str(error))
