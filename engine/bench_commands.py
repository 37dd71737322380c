"""The command line's share of the engine, second part: `bench pipeline` and `bench train`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..planner.options import (
    RESULTS,
    Device,
    DrawnWeights,
    GlobalBatchSize,
    Json,
    JsonMs,
    MicrobatchTokens,
    ResultsFolder,
)

if TYPE_CHECKING:
    from ..planner.systems import SystemRun
    from ..traces.costs import CostProfile


def bench_pipeline(
    model: Annotated[str, typer.Option(help="A built-in shape, or tiny.")] = "llama-3.1-8b",
    layers: Annotated[int, typer.Option(help="Decoder layers of it, over all stages.", min=1)] = 12,
    stages: Annotated[
        int, typer.Option(help="Processes: a GPU each where there are as many, else one for all.", min=2)
    ] = 4,
    microbatch_tokens: MicrobatchTokens = 4096,
    batches: Annotated[int, typer.Option(help="Global batches of each of the four adapters.", min=1)] = 8,
    global_batch_size: GlobalBatchSize = 16,
    device: Device = "auto",
    thread_percentage: Annotated[
        str, typer.Option(help="Share of the GPU for each process (MPS), or auto: find it. Unused on a CPU.")
    ] = "12",
    profile: Annotated[
        Path | None, typer.Option(help="Cost profile to foretell with.", show_default="measured first")
    ] = None,
    output: ResultsFolder = RESULTS,
    json: JsonMs = False,
) -> None:
    """Profile, plan, simulate and execute six systems on real stages, and compare what was foretold with what was."""
    import json as json_module
    import shlex
    import sys

    from rich.console import Console

    from ..analysis.pipeline_results import pipeline_document, pipeline_row, pipeline_table, write_pipeline
    from ..simulator.simulate import Hardware
    from ..simulator.systems import one_after_another, replay_system
    from .bench_pipeline import BenchRequest
    from .bench_pipeline_run import Foretold, run_bench
    from .errors import STOPPED, EngineError, InterruptedRunError

    request = BenchRequest(
        model=model,
        num_layers=layers,
        num_stages=stages,
        microbatch_tokens=microbatch_tokens,
        num_batches=batches,
        global_batch_size=global_batch_size,
        device=device,
        thread_percentage=thread_percentage,
        profile_file=profile,
    )

    def foretell(system: "SystemRun", known: "CostProfile") -> Foretold:
        result = replay_system(system, Hardware(profile=known))
        return Foretold(schedule=result.schedule, timeline=result.timeline)

    try:
        with Console(stderr=True).status("pipeline") as status:
            done = run_bench(request, foretell=foretell, say=status.update)
    except EngineError as error:
        print(f"loraplex: {error}", file=sys.stderr)
        raise typer.Exit(STOPPED if isinstance(error, InterruptedRunError) else 1) from None
    rows = [
        pipeline_row(
            one.system,
            schedule=one.foretold.schedule,
            simulated=one.foretold.timeline,
            measured=one_after_another(one.measured),
        )
        for one in done.outcomes
    ]
    document = pipeline_document(rows, facts=done.facts, command=shlex.join(["loraplex", *sys.argv[1:]]))
    stem = write_pipeline(document, rows, output)
    done.profile.save(stem.with_name(f"{stem.name}-profile.json"))
    if json:
        print(json_module.dumps(document))
    else:
        console = Console(soft_wrap=True)
        console.print(pipeline_table(rows, title=f"{done.facts['gpu']}: measured and simulated"))
        console.print(
            f"wrote {stem}.json, .csv, .png, .svg and {stem.name}-profile.json", markup=False, highlight=False
        )


def bench_train(
    model: Annotated[str, typer.Option(help="A built-in shape, a model folder, a hub id, or tiny.")] = "llama-3.1-8b",
    random_weights: DrawnWeights = False,
    load_in_4bit: Annotated[
        bool, typer.Option("--load-in-4bit", help="Our engine with the layers' linears in NF4.")
    ] = False,
    num_layers: Annotated[
        int | None, typer.Option(help="Only so many layers, with random weights.", min=1, show_default="all")
    ] = None,
    device: Device = "auto",
    attention: Annotated[
        str, typer.Option(help="Of all packed systems: torch, flash (FlashAttention-4), or auto: flash where it is.")
    ] = "auto",
    systems: Annotated[
        list[str] | None, typer.Option("--system", help="Measure only these; may be repeated.", show_default="all")
    ] = None,
    workloads: Annotated[
        list[str] | None, typer.Option("--workload", help="mix or dialogsum; may be repeated.", show_default="both")
    ] = None,
    dropouts: Annotated[
        list[float] | None, typer.Option("--dropout", help="May be repeated.", min=0.0, show_default="0 and 0.1")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Measure each figure for about so long, once warm.", min=0.1)] = 5.0,
    microbatch_tokens: MicrobatchTokens = 8192,
    global_batch_size: GlobalBatchSize = 16,
    recompute: Annotated[str, typer.Option(help="Our engine's: none, selective or full.")] = "selective",
    growth: Annotated[bool, typer.Option("--growth", help="Our engine over adapters and microbatch sizes.")] = False,
    lengths: Annotated[
        Path | None,
        typer.Option(
            help="Folder of NAME.csv with num_tokens, the data sets themselves.", show_default="the shipped tables"
        ),
    ] = None,
    output: ResultsFolder = RESULTS,
    add: Annotated[
        bool, typer.Option("--add", help="Keep what today's file has, but for what is measured again.")
    ] = False,
    json: Json = False,
) -> None:
    """Measure training of four adapters: this engine beside transformers, PEFT, Liger and the frozen model.

    Every system runs in a process of its own. Writes JSON, CSV and a plot.
    """
    import datetime
    import json as json_module
    import shlex
    import sys
    from contextlib import closing

    from rich.console import Console

    from .bench_train import ask_all, make_questions, surroundings
    from .bench_train_report import (
        check_no_earlier,
        joined_with_earlier,
        results_table,
        with_record,
        write_json,
        write_results,
    )
    from .bench_train_spec import SYSTEMS
    from .devices import resolved_device
    from .errors import STOPPED

    device = resolved_device(device)
    questions = make_questions(
        model=model,
        random_weights=random_weights,
        load_in_4bit=load_in_4bit,
        num_layers=num_layers,
        device=device,
        attention=attention,
        systems=tuple(systems or ()),
        workloads=tuple(workloads or ()),
        dropouts=tuple(dropouts or ()),
        seconds=seconds,
        microbatch_tokens=microbatch_tokens,
        global_batch_size=global_batch_size,
        recompute=recompute,
        growth=growth,
        lengths_folder=lengths,
    )
    around = surroundings(device)
    console = Console(stderr=True)
    date = datetime.date.today().isoformat()
    document: dict[str, Any] = {
        "command": shlex.join(["loraplex", *sys.argv[1:]]),
        "date": date,
        "model": model,
        "load_in_4bit": load_in_4bit,
        "growth": growth,
        **around,
        "systems": {question.system: SYSTEMS[question.system] for question in questions},
        "records": [],
    }
    kinds = [word for word, holds in (("growth", growth), ("nf4", load_in_4bit)) if holds]
    stem = "-".join(["train", *kinds, *around["gpu"].lower().split(), date])
    if add:
        document = joined_with_earlier(output, stem, document)
    else:
        check_no_earlier(output, stem)
    try:
        with closing(ask_all(questions)) as answers:
            for record in answers:
                console.print(json_module.dumps(record), soft_wrap=True, markup=False, highlight=False)
                document["records"] = with_record(document["records"], record)
                write_json(output, stem, document)
    except KeyboardInterrupt:
        kept = f"; what was measured is in {output / stem}.json" if document["records"] else ""
        print(f"loraplex: stopped{kept}", file=sys.stderr)
        raise typer.Exit(STOPPED) from None
    paths = write_results(output, stem, document)
    if json:
        print(json_module.dumps(document))
    else:
        # Wide enough for names and figures where no terminal says how wide it is.
        Console(width=max(Console().width, 120)).print(results_table(document["records"]))
        for path in paths:
            Console(soft_wrap=True).print(f"wrote {path}", markup=False, highlight=False)
