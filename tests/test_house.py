"""The house: who may import whom, and what each room may pull in."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("analysis", "engine", "kernels", "planner", "simulator", "traces")
MAY_IMPORT = {
    "traces": set(),
    "kernels": set(),
    "planner": {"traces"},
    "simulator": {"planner", "traces"},
    "engine": {"planner", "kernels", "traces"},
    "analysis": {"planner", "traces"},
}


def imported_rooms(path: Path) -> set[str]:
    """Rooms that a file of a room imports, wherever in the file the import stands."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = ("loraplex", *package)[: len(package) + 2 - node.level]
            target = (*base, *(node.module.split(".") if node.module else ()))
            names = [(*target, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [(*(node.module or "").split("."), alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [tuple(alias.name.split(".")) for alias in node.names]
        else:
            continue
        found |= {name[1] for name in names if name[0] == "loraplex" and len(name) > 1 and name[1] in (*ROOMS, "cli")}
    return found


def sources(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def is_command_line(path: Path) -> bool:
    return path.name == "commands.py" or path.name.endswith("_commands.py")


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_the_rooms_below_it(room: str) -> None:
    # commands.py and *_commands.py are the command line's share of a room: they sit on top and may call anyone.
    wrong = {
        str(path.relative_to(ROOT)): sorted(imported_rooms(path) - MAY_IMPORT[room] - {room})
        for path in sources(room)
        if not is_command_line(path)
    }
    assert {path: rooms for path, rooms in wrong.items() if rooms} == {}


@pytest.mark.parametrize("room", ROOMS)
def test_nobody_but_the_command_line_imports_commands(room: str) -> None:
    users = [
        str(path.relative_to(ROOT))
        for path in sources(room)
        if not is_command_line(path)
        and any(
            isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[-1].endswith("commands")
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        )
    ]
    assert users == []


def modules_after(statement: str, *, cwd: Path | None = None) -> set[str]:
    """Top-level modules loaded by a fresh interpreter after a statement."""
    script = f"import sys; sys.path.insert(0, {str(ROOT / '.pythonpath')!r}); {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=cwd)
    return {name.split(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize("room", ["traces", "planner", "simulator", "analysis"])
def test_planning_and_simulating_import_neither_torch_nor_triton(room: str) -> None:
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sources(room)]
    statement = "; ".join(f"import loraplex.{name.removesuffix('.__init__')}" for name in names)
    assert modules_after(statement) & {"torch", "triton", "transformers"} == set()


def test_transformers_imports_with_the_repository_root_as_current_folder() -> None:
    # A folder `kernels` in the current folder shadows the package of that name that transformers looks for.
    assert "transformers" in modules_after(
        "sys.path.insert(0, ''); from transformers import LlamaForCausalLM", cwd=ROOT
    )


def test_the_house_check_sees_a_wrong_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "simulator").mkdir()
    for text, room in [
        ("from ..engine.stage import Stage", "engine"),
        ("from .. import kernels", "kernels"),
        ("import loraplex.analysis.plots", "analysis"),
        ("from loraplex.engine import stage", "engine"),
        ("def late():\n    from ..engine import stage", "engine"),
    ]:
        path = tmp_path / "simulator" / "wrong.py"
        path.write_text(text, encoding="utf-8")
        assert imported_rooms(path) == {room}


def test_one_file_writes_the_plain_style_of_tables() -> None:
    found = [
        path.relative_to(ROOT) for room in ROOMS for path in sources(room) if "SIMPLE_HEAD" in path.read_text("utf-8")
    ]
    assert list(map(str, found)) == ["planner/plain_table.py"]
