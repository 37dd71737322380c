"""What is said of systems that were foretold and executed."""

from loraplex.analysis.pipeline_results import PipelineRow, pipeline_row, pipeline_summary, pipeline_table
from loraplex.planner.jobs import Job, Sample
from loraplex.planner.plan import Plan, microbatch
from loraplex.planner.systems import SystemRun
from loraplex.traces.timeline import Source, Span, Timeline


def timeline(source: Source, *, second_start_ms: float) -> Timeline:
    """Two stages of 10 ms a forward and a backward."""
    spans = [
        Span(stage=0, action="0F0", microbatch=0, start_ms=0.0, end_ms=10.0),
        Span(stage=1, action="1F0", microbatch=0, start_ms=10.0, end_ms=20.0),
        Span(stage=1, action="1B0", microbatch=0, start_ms=20.0, end_ms=30.0),
        Span(stage=0, action="0B0", microbatch=0, start_ms=second_start_ms, end_ms=second_start_ms + 10.0),
    ]
    return Timeline.from_spans(spans, source=source, origin="by hand", num_stages=2)


def system(name: str, *, num_tokens: int) -> SystemRun:
    sample = Sample(adapter=0, global_batch=0, index=0, num_tokens=num_tokens, num_target_tokens=1)
    plan = Plan(
        jobs=(Job(name="one", global_batches=((sample,),)),),
        num_stages=2,
        microbatch_tokens=num_tokens,
        microbatches=(microbatch([sample]), microbatch([])),
    )
    return SystemRun(name=name, plans=(plan,), num_tokens=num_tokens, about="")


def test_a_row_holds_both_sides_and_how_far_apart_they_are() -> None:
    row = pipeline_row(
        system("ours", num_tokens=400),
        schedule="1f1b",
        simulated=timeline("simulated", second_start_ms=30.0),
        measured=timeline("measured", second_start_ms=40.0),
    )
    assert (row.system, row.schedule, row.num_microbatches, row.num_tokens) == ("ours", "1f1b", 1, 400)
    assert (row.measured_makespan_ms, row.simulated_makespan_ms, row.makespan_error) == (50.0, 40.0, 40 / 50 - 1)
    assert (row.measured_bubble_ratio, row.simulated_bubble_ratio) == (1 - 40 / 100, 1 - 40 / 80)
    assert row.bubble_ratio_difference == row.simulated_bubble_ratio - row.measured_bubble_ratio
    assert (row.tokens_per_s, row.simulated_tokens_per_s) == (8000.0, 10000.0)
    assert row.measured_busy_ms == row.simulated_busy_ms == (20.0, 20.0)


def test_the_table_has_a_figure_under_every_name() -> None:
    row = pipeline_row(
        system("ours", num_tokens=400),
        schedule="1f1b",
        simulated=timeline("simulated", second_start_ms=30.0),
        measured=timeline("measured", second_start_ms=40.0),
    )
    table = pipeline_table([row], title="two stages")
    assert [(str(column.header).replace("-\n", ""), *column.cells) for column in table.columns] == [
        ("system", "ours"),
        ("microbatches", "1"),
        ("tokens/s", "8,000"),
        ("makespan", "0.1 s"),
        ("simulated", "0.0 s"),
        ("error", "-20.0%"),
        ("bubble", "60.0%"),
        ("simulated", "50.0%"),
        ("off by", "-10.0"),
    ]


def test_the_verdict_names_the_worst_errors_and_compares_the_orders() -> None:
    def row(name: str, measured_ms: float, simulated_ms: float) -> PipelineRow:
        return pipeline_row(
            system(name, num_tokens=400),
            schedule="1f1b",
            simulated=timeline("simulated", second_start_ms=simulated_ms),
            measured=timeline("measured", second_start_ms=measured_ms),
        )

    rows = [row("slow", 60.0, 60.0), row("fast", 40.0, 30.0)]
    summary = pipeline_summary(rows)
    assert summary["measured_order"] == summary["simulated_order"] == ["fast", "slow"]
    assert summary["same_order"] is True
    assert summary["worst_makespan_error"] == 1 - 40 / 50
    wrong = pipeline_summary([row("slow", 60.0, 30.0), row("fast", 40.0, 60.0)])
    assert (wrong["measured_order"], wrong["same_order"]) == (["fast", "slow"], False)
    # Foretold to be equally fast, they may come in either order.
    assert pipeline_summary([row("slow", 60.0, 30.0), row("fast", 40.0, 30.0)])["same_order"] is True
