"""What goes wrong while training runs. Bad input is the planner's JobError or PlanError instead."""


class EngineError(RuntimeError):
    """Training cannot go on. The message names the worker, the microbatch or the adapter."""


class PeerLostError(EngineError):
    """Another worker ended or fell silent while this one waited for it."""
