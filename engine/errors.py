"""What goes wrong while training runs. Bad input is the planner's JobError or PlanError instead."""

BAD_INPUT, PEER_LOST, STOPPED = 2, 3, 130
"""Exit codes of a worker that cannot use its input, lost a peer, or was told to stop; other failures are 1."""


class EngineError(RuntimeError):
    """Training cannot go on. The message names the worker, the microbatch or the adapter."""


class PeerLostError(EngineError):
    """Another worker ended or fell silent while this one waited for it."""


class DiskError(EngineError):
    """Something could not be written. The message names the path."""


class InterruptedRunError(EngineError):
    """The user, or whoever runs us, asked to stop."""


_FULL = ("out of memory", "alloc_failed", "can't allocate memory", "not enough memory")
"""What CUDA, Triton, cuBLAS and torch's allocator of host memory say, none of them as an OutOfMemoryError."""


def out_of_memory(error: RuntimeError | MemoryError) -> EngineError | None:
    """What to tell of a device or a machine that is full, and how to mend it; None for another error."""
    said = str(error)
    # By name, so that importing this needs no torch.
    known = type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError)
    if not known and not any(words in said.lower() for words in _FULL):
        return None
    what = said.partition(" Of the allocated memory")[0].partition("\n")[0] or "of the machine"
    return EngineError(
        f"out of memory ({what}); lower microbatch_tokens, set recompute to more, or give the pipeline more stages"
    )
