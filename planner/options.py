"""Options that several commands have, written once."""

from pathlib import Path
from typing import Annotated

import typer

JobFile = Annotated[Path, typer.Argument(help="A jobs.yaml.", show_default=False)]
PlanOfJobs = Annotated[Path | None, typer.Option("--plan", help="Its plan.", show_default="made now")]
Device = Annotated[str, typer.Option("--device", help="auto (a GPU where there is one), cpu or cuda.")]
Recompute = Annotated[
    str | None,
    typer.Option(
        "--recompute", help="none, selective, full, or auto: the fastest that fits.", show_default="the job file's"
    ),
]
DeviceMemory = Annotated[
    float | None,
    typer.Option(
        "--device-memory",
        metavar="GIB",
        help="Memory of each GPU.",
        show_default="this machine's, else the profile's",
    ),
]
DrawnWeights = Annotated[
    bool, typer.Option("--random-weights", help="Draw the weights: a config.json or a shape is enough.")
]
MicrobatchTokens = Annotated[int, typer.Option("--microbatch-tokens", help="Tokens a microbatch may hold.", min=16)]
GlobalBatchSize = Annotated[int, typer.Option("--global-batch-size", help="Samples of an adapter to a step.", min=1)]
ResultsFolder = Annotated[Path, typer.Option("--output", "-o", help="Folder of the results.")]
RESULTS = Path("analysis/results")
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
JsonMs = Annotated[bool, typer.Option("--json", help="Print one JSON object (times in ms).")]
JsonMsBytes = Annotated[bool, typer.Option("--json", help="Print one JSON object (times in ms, memory in bytes).")]
