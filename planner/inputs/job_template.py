"""The job file that `loraplex init` writes and `loraplex demo` runs."""

from pathlib import Path

from ..errors import JobError
from .read_table import DEMO_FOLDER

DEMO_JOBS = DEMO_FOLDER / "jobs.yaml"
"""Three adapters on built-in texts; works from wherever it lies."""


def write_job_template(path: Path) -> None:
    """Write the template to a new file, and the folders it lies in. Raises JobError if `path` is there already."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # "x" creates or fails in one step, so that not even a file made this moment is overwritten.
        with path.open("x", encoding="utf-8") as file:
            file.write(DEMO_JOBS.read_text(encoding="utf-8"))
    except FileExistsError as error:
        if not path.exists():
            raise JobError(f"{path}: cannot be written ({path.parent} is a file); name another place") from error
        raise JobError(f"{path}: exists already and is never overwritten; name another file or remove it") from error
    except OSError as error:
        raise JobError(f"{path}: cannot be written ({error.strerror}); name another place") from error
