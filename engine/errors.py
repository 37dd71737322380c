"""What goes wrong while training runs. Bad input is the planner's JobError or PlanError instead."""

PEER_LOST, STOPPED = 3, 130
"""Exit codes of a worker that lost a peer and of one that was told to stop; other failures are 1, bad input is 2."""


class EngineError(RuntimeError):
    """Training cannot go on. The message names the worker, the microbatch or the adapter."""


class PeerLostError(EngineError):
    """Another worker ended or fell silent while this one waited for it."""


class InterruptedRunError(EngineError):
    """The user, or whoever runs us, asked to stop."""
