"""The package imports without torch and triton, and does not stand in the way of others."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run_python(code: str, path: str = ".pythonpath") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={"PYTHONPATH": path, "PATH": ""}, capture_output=True, text=True
    )


def test_neither_torch_nor_triton_is_imported() -> None:
    done = run_python(
        "import sys; sys.modules['torch'] = sys.modules['triton'] = None\n"
        "import loraplex.kernels as k; print(k.Segment(first_row=0, num_rows=1, adapter=0))"
    )
    assert done.stdout == "Segment(first_row=0, num_rows=1, adapter=0)\n", done.stderr


def test_transformers_imports_from_the_repository_root() -> None:
    # as `python -c` at the root does: there a plain `kernels` is this folder, not the package of that name
    done = run_python("import kernels; assert not hasattr(kernels, '__version__'); import transformers; print('yes')",
                      path=".")  # fmt: skip
    assert done.stdout.strip().endswith("yes"), done.stderr


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    import loraplex.kernels

    assert callable(loraplex.kernels.multi_lora_linear)
    with pytest.raises(AttributeError, match="no attribute 'grouped'"):
        _ = loraplex.kernels.grouped
