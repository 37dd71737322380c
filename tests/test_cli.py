"""The command line as a whole: it answers at once, and bad input ends in one message and exit code 2."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from loraplex.cli import app, bench, data
from loraplex.planner.overhead import OVERHEAD_TOKENS

ROOT = Path(__file__).resolve().parent.parent


def loraplex(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line in a fresh interpreter, installed or not."""
    script = f"import sys; sys.path.insert(0, {str(ROOT / '.pythonpath')!r}); from loraplex.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False, cwd=cwd
    )


def test_help_loads_nothing_heavy() -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT / '.pythonpath')!r}); sys.argv = ['loraplex', '--help']\n"
        "from loraplex.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    print('LOADED', *sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.rsplit("LOADED", 1)[1].split())
    assert loaded & {"torch", "triton", "transformers", "pandas", "numpy", "matplotlib", "pydantic", "pulp"} == set()


def test_versions_for_whoever_reports_a_fault() -> None:
    done = loraplex("--version")
    assert (done.returncode, done.stderr) == (0, "")
    names = [line.split()[0] for line in done.stdout.splitlines()]
    assert names == ["loraplex", "torch", "triton", "transformers", "peft", "python"]


INTERRUPTED = """
import sys; sys.path.insert(0, {path!r})
from loraplex import cli
if {torch}: sys.modules["torch"] = sys
def interrupted(): raise SystemExit({code})
cli.app = interrupted
import atexit; atexit.register(print, "an ordinary end")
cli.main()
"""


@pytest.mark.parametrize(
    ("torch", "code", "told"),
    [(True, 130, ""), (False, 130, "an ordinary end\n"), (True, 1, "an ordinary end\n")],
)
def test_a_command_stopped_amid_torch_ends_at_once(torch: bool, code: int, told: str) -> None:
    script = INTERRUPTED.format(path=str(ROOT / ".pythonpath"), torch=torch, code=code)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, told, "")


UNTOLD = """
import sys; sys.path.insert(0, {path!r}); sys.argv = ["loraplex", "--version"]
from loraplex import cli
def interrupted(name): raise {what}
import importlib.metadata; importlib.metadata.version = interrupted
cli.main()
"""


@pytest.mark.parametrize(("what", "told"), [("KeyboardInterrupt", "loraplex: stopped\n"), ("SystemExit(130)", "")])
def test_a_ctrl_c_that_no_command_tells_of_is_told_in_one_line(what: str, told: str) -> None:
    script = UNTOLD.format(path=str(ROOT / ".pythonpath"), what=what)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", told)


COMMANDS = [
    "init",
    "demo",
    "plan",
    "check",
    "simulate",
    "estimate",
    "profile",
    "train",
    "parity",
    "merge",
    "compare",
    "report",
    "sweep",
    "tune",
    "data",
    "bench",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    done = loraplex(command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage" in done.stdout


def test_plan_tells_the_cost_that_it_assumes() -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT / '.pythonpath')!r}); sys.argv = ['loraplex', 'plan', '--help']\n"
        "from loraplex.planner import overhead\n"
        "overhead.OVERHEAD_TOKENS = 4321\n"
        "from loraplex.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "4,321" in done.stdout
    assert f"as much as {OVERHEAD_TOKENS:,} tokens" in (ROOT / "docs" / "planner.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "arguments",
    [("plan", "missing.yaml"), ("check", "missing.json"), ("simulate", "missing.json"), ("train", "missing.yaml")],
)
def test_a_missing_file_is_named_without_a_traceback(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = loraplex(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert arguments[1] in done.stderr
    assert "Traceback" not in done.stderr


SWEEP = """\
job: {adapters: [{lengths: gsm8k, num_samples: 8, global_batch_size: 4}]}
pipeline: {stages: [STAGES], microbatch_tokens: 4096}
profile: {name: llama-70b-h100-published}
"""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("demo", "-o", "there.txt"), "loraplex: error: there.txt: is a file; give a folder with -o\n"),
        (
            ("simulate", "--uniform", "1,2", "--microbatches", "3", "-o", "there.txt"),
            "loraplex: error: there.txt: is a file; name a folder\n",
        ),
        (
            ("plan", "jobs.yaml", "-o", "folder"),
            "loraplex: error: folder: is a folder; name a file to write\n",
        ),
        (
            ("sweep", "sweep.yaml", "-o", "swept"),
            "loraplex: error: sweep.yaml: none of its 1 point could be run, for example: pipeline.stages=-2 must be a "
            "whole number from 1 on; mend the file (swept/sweep.csv has every reason)\n",
        ),
    ],
)
def test_a_path_or_a_file_that_cannot_serve_is_named_with_what_to_do(
    arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    (tmp_path / "there.txt").write_text("mine\n", encoding="utf-8")
    (tmp_path / "folder").mkdir()
    (tmp_path / "sweep.yaml").write_text(SWEEP.replace("STAGES", "-2"), encoding="utf-8")
    assert loraplex("init", cwd=tmp_path).returncode == 0
    done = loraplex(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, message)
    assert (tmp_path / "there.txt").read_text(encoding="utf-8") == "mine\n"


@pytest.mark.parametrize("option", ["--workers", "--top"])
def test_a_sweep_needs_a_worker_and_a_point_to_show(option: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(SWEEP.replace("STAGES", "2"), encoding="utf-8")
    done = loraplex("sweep", "sweep.yaml", option, "0", cwd=tmp_path)
    assert done.returncode == 2
    assert option in done.stderr
    assert "Traceback" not in done.stderr


def test_tables_of_80_columns_name_every_adapter_in_full(tmp_path: Path) -> None:
    assert loraplex("init", cwd=tmp_path).returncode == 0
    planned = loraplex("plan", "jobs.yaml", cwd=tmp_path)
    assert "Next: loraplex train jobs.yaml --plan plan.json, or loraplex simulate plan.json --uni" in planned.stdout
    simulated = loraplex("simulate", "plan.json", "--uniform", "1,2", cwd=tmp_path)
    estimated = loraplex("estimate", "jobs.yaml", "--device-memory", "0.00001", cwd=tmp_path)
    for done in (planned, simulated, estimated):
        assert (done.returncode, done.stderr) == (0, "")
        assert "\N{HORIZONTAL ELLIPSIS}" not in done.stdout
    for name in ("arithmetic", "conversions"):
        assert f" {name} " in planned.stdout
        assert f" {name} " in simulated.stdout


def test_an_option_that_many_commands_have_is_explained_in_one_way() -> None:
    explained: dict[str, set[str | None]] = {"--device": set(), "--plan": set()}

    def walk(command: Any) -> None:
        for inner in getattr(command, "commands", {}).values():
            walk(inner)
        for parameter in command.params:
            for name in explained.keys() & set(parameter.opts):
                explained[name].add(parameter.help)

    walk(typer.main.get_command(app))
    assert explained == {
        "--device": {"auto (a GPU where there is one), cpu or cuda."},
        "--plan": {"Its plan.", "Plan of both; adds tokens and adapters."},
    }


def test_the_readme_lists_every_command() -> None:
    def names(typer_app: typer.Typer) -> set[str]:
        return {str(info.name or getattr(info.callback, "__name__", "")) for info in typer_app.registered_commands}

    rows = (ROOT / "README.md").read_text(encoding="utf-8").split("## Commands", 1)[1].split("\n## ", 1)[0]
    cells = [re.findall("`([^`]+)`", row.split("|")[1]) for row in rows.splitlines() if row.startswith("| `")]
    benches = next(cell for cell in cells if cell[0].startswith("bench "))
    assert {name.removeprefix("bench ") for name in benches} == names(bench)
    assert {name for cell in cells if cell is not benches for name in cell} == names(app) | {
        f"data {name}" for name in names(data)
    }


@pytest.mark.parametrize(
    ("option", "value", "rule"),
    [("--gpus", "0", "greater than or equal to 1"), ("--device-memory", "80GB", "a valid number")],
)
def test_a_complaint_about_an_option_shows_its_value(option: str, value: str, rule: str) -> None:
    with pytest.raises(typer.BadParameter) as error:
        app(["estimate", "jobs.yaml", option, value], standalone_mode=False)
    told = error.value.format_message()
    assert told.startswith(f"Invalid value for '{option}': Input should be {rule}")
    assert told.endswith(f", not {value}")
