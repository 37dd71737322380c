"""What sets the time of a run."""

from loraplex.analysis.limits import time_limit
from loraplex.analysis.metrics import summarize

from .conftest import MakeTimeline


def test_a_pipeline_of_few_microbatches_waits_to_be_filled(make_1f1b: MakeTimeline) -> None:
    # Both stages compute 6 of 9 ms; the first waits 2 ms for its first backward.
    limit = time_limit(summarize(make_1f1b(num_stages=2, num_microbatches=2)))
    assert (
        limit == "filling the pipeline: few microbatches for so many stages (22% of the time of the busiest stage, 0)"
    )


def test_a_busy_stage_sets_the_pace(make_1f1b: MakeTimeline) -> None:
    # 30 of 33 ms.
    limit = time_limit(summarize(make_1f1b(num_stages=2, num_microbatches=10)))
    assert limit == "stage 0, which computes 91% of the time"
