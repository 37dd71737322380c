"""The command line: `loraplex COMMAND`. Each room's commands.py holds its commands; this file puts them together.

`demo` alone stands here: it walks the whole road by running the same command lines a user would type.
Everything heavy is imported inside the commands, so that `loraplex --help` answers at once.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .analysis import commands as analysis_commands
from .engine import bench_commands
from .engine import commands as engine_commands
from .engine.errors import STOPPED
from .engine.interrupts import interrupts_come_again
from .kernels import commands as kernels_commands
from .planner import commands as planner_commands
from .simulator import advise_commands, estimate_commands, sweep_commands
from .simulator import commands as simulator_commands
from .traces.errors import InputError


class _Commands(TyperGroup):
    """Commands whose complaint about an option's value shows that value, which typer leaves out."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            for detail in getattr(error.__cause__, "errors", tuple)()[:1]:
                error.message += f", not {detail['input']}"
            raise


app = typer.Typer(
    name="loraplex",
    cls=_Commands,
    help="Train many LoRA adapters on one frozen base model, exactly, and know beforehand how that will go.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
data = typer.Typer(help="Look at the data of a job file.", no_args_is_help=True)
bench = typer.Typer(help="Measure a room of this project against its goals and peers.", no_args_is_help=True)

app.command("init")(planner_commands.init)
app.add_typer(data, name="data")
data.command("show")(planner_commands.data_show)
app.command("plan")(planner_commands.plan)
app.command("check")(planner_commands.check)
app.command("profile")(engine_commands.profile)
app.command("simulate")(simulator_commands.simulate)
app.command("estimate")(estimate_commands.estimate)
app.command("advise")(advise_commands.advise)
app.command("train")(engine_commands.train)
app.command("compare")(analysis_commands.compare)
app.command("report")(analysis_commands.report)
app.command("parity")(engine_commands.parity)
app.command("merge")(engine_commands.merge)
app.command("sweep")(sweep_commands.sweep)
app.command("tune")(kernels_commands.tune)
app.add_typer(bench, name="bench")
bench.command("planner")(planner_commands.bench_planner)
bench.command("pipeline")(bench_commands.bench_pipeline)
bench.command("simulator")(sweep_commands.bench_simulator)
bench.command("kernels")(kernels_commands.bench_kernels)
bench.command("train")(bench_commands.bench_train)
bench.command("sharing")(analysis_commands.bench_sharing)


def _print_version(asked: bool) -> None:
    from importlib.metadata import PackageNotFoundError, version

    if not asked:
        return
    for name in ("loraplex", "torch", "triton", "transformers", "peft"):
        try:
            print(name, version(name))
        except PackageNotFoundError:
            print(name, "is not installed")
    print("python", sys.version.split()[0])
    raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print versions and exit.")
    ] = False,
) -> None:
    # What typer has no other place for: an option of no command.
    pass


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to fill.")] = Path("demo"),
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object (times in ms).")] = False,
) -> None:
    """Plan, simulate and really train three adapters on two processes of this machine, and compare."""
    import json as json_module

    from .traces.run_folder import COMMAND, COMPARISON, PLAN, PROFILE, SIMULATED

    jobs, plan, profile = output / "jobs.yaml", output / PLAN, output / PROFILE
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: is a file; give a folder with -o")
    if output.exists() and not jobs.exists() and any(output.iterdir()):
        raise InputError(f"{output}: holds files that no demo made; give an empty folder with -o")
    output.mkdir(parents=True, exist_ok=True)
    jobs.unlink(missing_ok=True)
    road = (
        ("init", jobs),
        ("plan", jobs, "-o", plan),
        ("profile", "tiny", "--job", jobs, "--device", "cpu", "-o", profile),
        ("simulate", plan, "--profile", profile, "-o", output),
        ("train", jobs, "--plan", plan, "--device", "cpu", "-o", output),
        ("compare", output),
        ("report", output),
    )
    lines = [" ".join(("loraplex", *map(str, words))) for words in road]
    with _quiet_if(json):
        for words, line in zip(road, lines, strict=True):
            print(f"\n$ {line}", flush=True)
            app([str(word) for word in words], standalone_mode=False)
    (output / COMMAND).write_text("\n".join(lines) + "\n", encoding="utf-8")
    if json:
        print(json_module.dumps(json_module.loads((output / COMPARISON).read_text(encoding="utf-8"))))
        return
    following = (
        (f"open {output}/report.html", "everything on one page"),
        (f"open {output}/trace.json", "in https://ui.perfetto.dev: both timelines"),
        ("loraplex init jobs.yaml", "your own adapters: edit it, then plan and train"),
        (f"loraplex parity {jobs}", "each adapter alone gives the same weights"),
    )
    print(
        f"\nAll of it is in {output}/: plan.json, {SIMULATED} and its measured twin, gantt.png, losses.png,\n"
        f"metrics of each adapter, and adapters/ that PeftModel.from_pretrained loads.\n"
        f"Next:\n" + "\n".join(f"  {command:<34}  {use}" for command, use in following)
    )


@contextmanager
def _quiet_if(json: bool) -> Iterator[None]:
    # With --json, stdout belongs to the one object alone.
    if not json:
        yield
        return
    with redirect_stdout(sys.stderr):
        yield


def _left_untold(ended: SystemExit) -> bool:
    # Whether this is a Ctrl-C that no command has told of: typer makes it an exit without a word.
    asked = ended.__context__
    return isinstance(asked, typer.Exit) and isinstance(asked.__cause__, KeyboardInterrupt)


def main() -> None:
    """Run a command. Bad input ends with exit code 2, Ctrl-C with 130, both in one message, never in a traceback."""
    interrupts_come_again()
    try:
        app()
    except SystemExit as ended:
        if _left_untold(ended):
            print("loraplex: stopped", file=sys.stderr)
        if ended.code == STOPPED and "torch" in sys.modules:
            # Threads of a backward that was interrupted are still there, for which torch aborts an ordinary end.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(STOPPED)
        raise
    except InputError as error:
        message = str(error)
    except OSError as error:
        message = str(error)
        if error.filename is not None:
            # Our own OSErrors say the mend after a semicolon; the system's say none.
            mend = "" if ";" in str(error.strerror) else "; name another path, or mend that one"
            message = f"{error.filename}: {error.strerror}{mend}"
            if isinstance(error, FileExistsError) and Path(error.filename).is_file():
                # Where a folder was to be made.
                message = f"{error.filename}: is a file; name a folder"
    else:
        return
    print(f"loraplex: error: {message}", file=sys.stderr)
    raise SystemExit(2)
