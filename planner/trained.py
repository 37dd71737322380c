"""How much of a plan a run has trained on: adapters that were halted have left out the rest of theirs."""

from collections.abc import Collection, Mapping

from .plan import Plan


def trained_tokens(plan: Plan, *, last_steps: Mapping[str, int], microbatches: Collection[int] | None = None) -> int:
    """Real tokens of the batches up to each adapter's last step (all where it has none in `last_steps`).

    Of these microbatches only, where they are given: a resumed run has done but its own.
    """
    ends = [last_steps.get(job.name, len(job.global_batches)) for job in plan.jobs]
    return sum(
        sample.num_tokens
        for place, microbatch in enumerate(plan.microbatches)
        if microbatches is None or place in microbatches
        for sample in microbatch.samples
        if sample.global_batch <= ends[sample.adapter]
    )
