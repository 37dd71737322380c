"""What is left of a Program after a checkpoint: a cut after a slot, with everything as of that slot's backward."""

from dataclasses import replace

import numpy as np

from .program import ActionColumns, ActionKind, Program

_GRADIENTS = (int(ActionKind.BACKWARD), int(ActionKind.BACKWARD_WEIGHT))


def program_after(program: Program, *, slot: int) -> Program:
    """The actions still to run when every worker has finished the backward of `slot` (-1: all of them).

    Forwards and backwards of later slots are run anew, even if they had been through by then; Steps and Reduces remain
    if they stand after the backward of `slot` on their worker. With one replica a slot is a microbatch.
    """
    workers = tuple(_after(columns, slot=slot, num_replicas=program.num_replicas) for columns in program.workers)
    return replace(program, workers=workers)


def _after(columns: ActionColumns, *, slot: int, num_replicas: int) -> ActionColumns:
    on_microbatch = columns.microbatch >= 0
    earlier = on_microbatch & (columns.microbatch // num_replicas <= slot)
    gradients = np.flatnonzero(earlier & np.isin(columns.kind, _GRADIENTS))
    cut = int(gradients[-1]) if len(gradients) else -1
    kept = np.where(on_microbatch, ~earlier, np.arange(len(columns)) > cut)
    return ActionColumns(
        kind=columns.kind[kept],
        microbatch=columns.microbatch[kept],
        chunk=columns.chunk[kept],
        adapter=columns.adapter[kept],
        global_batch=columns.global_batch[kept],
    )
