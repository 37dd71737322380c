"""The command line as a whole: it answers at once, and bad input ends in one message and exit code 2."""

import subprocess
import sys
from pathlib import Path

import pytest

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
    "data",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    done = loraplex(command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [("plan", "missing.yaml"), ("check", "missing.json"), ("simulate", "missing.json"), ("train", "missing.yaml")],
)
def test_a_missing_file_is_named_without_a_traceback(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = loraplex(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert arguments[1] in done.stderr
    assert "Traceback" not in done.stderr
