"""What the wheel holds: every package, the data files, no tests; and lower bounds only."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
ROOMS = ("analysis", "engine", "kernels", "planner", "simulator", "traces")
DATA_FOLDERS = {
    "analysis": ("assets",),
    "kernels": ("tuned",),
    "planner": ("inputs/demo", "inputs/shapes"),
    "traces": ("data",),
}


def test_every_package_folder_is_listed() -> None:
    # A package missing from the list works in an editable install and is absent from the wheel.
    folders = {
        ".".join(("loraplex", *path.parent.relative_to(ROOT).parts))
        for room in ROOMS
        for path in (ROOT / room).rglob("__init__.py")
    }
    assert sorted(PYPROJECT["tool"]["setuptools"]["packages"]) == sorted({"loraplex", *folders})


def test_the_command_line_is_the_only_module_at_the_root() -> None:
    # Any other file here would ship as a module of the package.
    assert sorted(path.name for path in ROOT.glob("*.py")) == ["__init__.py", "cli.py"]


def test_dependencies_have_lower_bounds_only() -> None:
    project = PYPROJECT["project"]
    asked = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    assert [line for line in asked if re.search(r"==|<|~=", line.split(";")[0])] == []


def test_every_dependency_is_pinned_for_the_demo() -> None:
    project = PYPROJECT["project"]
    asked = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower().splitlines()
    pinned = {line.split("==")[0].replace("_", "-") for line in lines if "==" in line}
    names = {re.split(r"[^A-Za-z0-9_.-]", line)[0].lower().replace("_", "-") for line in asked}
    assert names - pinned == set()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Names of the files in a wheel built from this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "source"
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in tracked.split("\0"):
        source = ROOT / name
        if name and source.is_file() and not name.startswith(".pythonpath"):
            target = copy / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    build = "import setuptools.build_meta as m, sys; print(m.build_wheel(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", build, str(folder)], cwd=copy, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def test_the_wheel_holds_every_module_and_data_file_and_no_test(wheel: list[str]) -> None:
    modules = {f"loraplex/{path.relative_to(ROOT)}" for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    folders = [ROOT / room / name for room, names in DATA_FOLDERS.items() for name in names]
    data = {f"loraplex/{path.relative_to(ROOT)}" for folder in folders for path in folder.rglob("*") if path.is_file()}
    data.add("loraplex/kernels/bench_grid.json")
    shipped = {name for name in wheel if not name.startswith("loraplex-")}
    assert (modules | data | {"loraplex/__init__.py", "loraplex/cli.py", "loraplex/py.typed"}) - shipped == set()
    assert [name for name in shipped if "test" in name.lower() or not name.startswith("loraplex/")] == []
