"""What actions of a Program wait for besides activations and gradients: short messages and the other replicas."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from .program import ActionKind, Program

Index = NDArray[np.int64]
_GRADIENTS = (int(ActionKind.BACKWARD), int(ActionKind.BACKWARD_WEIGHT))


def further_waits(program: Program, *, offsets: Index) -> Iterator[tuple[int, int, int]]:
    """(action, awaited action, stages that the message between them passes), actions numbered through."""
    stages, replicas = program.num_stages, program.num_replicas
    # With replicas the norms go up after each Reduce; in one pipeline alone they ride, unless the backward is split.
    split = replicas == 1 and any(
        bool((columns.kind == int(ActionKind.BACKWARD_WEIGHT)).any()) for columns in program.workers
    )
    for reduce, awaited in reduce_chain(program, offsets=offsets):
        yield reduce, awaited, 1
    for replica in range(replicas):
        first_worker = replica * stages
        tails = [_tail(program, worker) for worker in range(first_worker, first_worker + stages)]
        if replicas > 1:
            yield from _reduce_waits(program, offsets=offsets, replica=replica)
        if split:
            yield from _norm_waits(program, offsets=offsets)
        for stage in range(1, stages):
            worker, root = first_worker + stage, first_worker
            if tails[stage] < len(program.workers[worker]) and tails[0] > 0:
                tail = int(offsets[worker]) + tails[stage]
                yield tail, int(offsets[root]) + tails[0] - 1, stage
                if split:
                    for other in range(1, stages):
                        if other != stage and tails[other] > 0:
                            awaited = int(offsets[first_worker + other]) + tails[other] - 1
                            yield tail, awaited, other + stage


def _tail(program: Program, worker: int) -> int:
    # Place of the first of the Steps that end a worker's actions; the number of actions where it ends otherwise.
    others = np.flatnonzero(program.workers[worker].kind != int(ActionKind.STEP))
    return int(others[-1]) + 1 if len(others) else 0


def _reduce_waits(program: Program, *, offsets: Index, replica: int) -> Iterator[tuple[int, int, int]]:
    stages = program.num_stages
    for stage in range(stages):
        workers = [other * stages + stage for other in range(program.num_replicas)]
        places = [_places(program, worker, ActionKind.REDUCE) for worker in workers]
        for batch, place in places[replica].items():
            for other, theirs in enumerate(places):
                # Waiting for what stands before the others' Reduce is waiting until they have arrived there.
                if other != replica and theirs.get(batch, 0) > 0:
                    yield int(offsets[workers[replica]]) + place, int(offsets[workers[other]]) + theirs[batch] - 1, 0


def reduce_chain(program: Program, *, offsets: Index) -> Iterator[tuple[int, int]]:
    """(Reduce, the same Reduce one stage later, whose norm it adds its own to); nothing without replicas."""
    for worker in range(len(program.workers)):
        if program.num_replicas == 1 or (worker + 1) % program.num_stages == 0:
            continue
        own, later = (_places(program, stage, ActionKind.REDUCE) for stage in (worker, worker + 1))
        for batch, place in own.items():
            if batch in later:
                yield int(offsets[worker]) + place, int(offsets[worker + 1]) + later[batch]


def _norm_waits(program: Program, *, offsets: Index) -> Iterator[tuple[int, int, int]]:
    # Where a split backward's message has left, each norm reaches stage 0 by its own: after the last weight gradient
    # before that stage's Step.
    steps = _places(program, 0, ActionKind.STEP)
    for stage in range(1, program.num_stages):
        gradients = np.flatnonzero(np.isin(program.workers[stage].kind, _GRADIENTS))
        for batch, place in _places(program, stage, ActionKind.STEP).items():
            before = int(np.searchsorted(gradients, place)) - 1
            if before >= 0 and batch in steps:
                yield int(offsets[0]) + steps[batch], int(offsets[stage]) + int(gradients[before]), stage


def _places(program: Program, worker: int, kind: ActionKind) -> dict[tuple[int, int], int]:
    # Where a worker's Reduces or Steps stand, by (adapter, global batch).
    columns = program.workers[worker]
    places = np.flatnonzero(columns.kind == int(kind))
    adapters, batches = columns.adapter[places].tolist(), columns.global_batch[places].tolist()
    return dict(zip(zip(adapters, batches, strict=True), places.tolist(), strict=True))
