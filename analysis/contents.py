"""What each microbatch of a plan holds, in words: for traces and wherever a microbatch is named to a reader."""

from ..planner.plan import Plan
from .units import tokens_text


def contents_of(plan: Plan) -> dict[int, str]:
    """`maths: 1,403 tokens, papers: 895 tokens` by microbatch."""
    return {
        index: ", ".join(
            f"{plan.jobs[adapter].name}: {tokens_text(tokens)} tokens" for adapter, tokens in batch.adapter_tokens()
        )
        for index, batch in enumerate(plan.microbatches)
    }
