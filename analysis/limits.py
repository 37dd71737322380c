"""What sets the time of a run: its busiest stage, or the reason why even that one waits."""

from .metrics import Summary

_BUSY_SHARE = 0.9
"""A stage that computes so much of the time sets the pace; less, and its waits are worth a look."""
_WORDS = {
    "warmup": "filling the pipeline: few microbatches for so many stages",
    "cooldown": "draining the pipeline: few microbatches for so many stages",
    "dependency": "dependencies: forwards wait for optimizer steps",
    "transfer": "transfers between stages",
    "imbalance": "imbalance: stages or microbatches cost differently",
}


def time_limit(summary: Summary) -> str:
    """One line for people: a stage with its share of the makespan, or the cause that most of the bubble has."""
    busiest = max(summary.stages, key=lambda stage: stage.busy_ms)
    share = busiest.busy_ms / summary.makespan_ms if summary.makespan_ms else 0.0
    own = busiest.bubble_ms_by_cause
    if share >= _BUSY_SHARE or not own:
        return f"stage {busiest.stage}, which computes {share:.0%} of the time"
    cause = max(own, key=lambda name: own[name])
    lost = own[cause] / summary.makespan_ms
    return f"{_WORDS.get(cause, cause)} ({lost:.0%} of the time of the busiest stage, {busiest.stage})"
