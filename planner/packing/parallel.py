"""Independent work in processes, through joblib: results come in the order of the tasks, whatever the workers."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TypeVar

from ..errors import PlanError

_REMOTE = ("dask", "ray")
_ROUNDS = 4
"""Tasks for each worker between two looks at what is done."""
Task = TypeVar("Task")
Result = TypeVar("Result")


def side_by_side(
    function: Callable[[Task], Result], tasks: Sequence[Task], *, workers: int, backend: str = "loky"
) -> Iterator[Result]:
    """function(task) for each task, in order.

    `backend` is a joblib backend: loky, its default, is processes on this machine. dask and ray, for those who outgrow
    it, are started here: dask joins the scheduler that DASK_SCHEDULER_ADDRESS names, or starts processes of its own;
    ray joins the cluster that RAY_ADDRESS names, or starts one. With one worker or one task nothing is started.
    """
    if workers <= 1 or len(tasks) <= 1:
        yield from map(function, tasks)
        return
    from joblib import Parallel, delayed, parallel_config

    with ExitStack() as stack:
        try:
            stack.enter_context(_ready(backend, workers=workers))
            stack.enter_context(parallel_config(backend=backend, n_jobs=min(workers, len(tasks))))
        except (ValueError, ImportError) as error:
            raise PlanError(
                f"backend={backend!r} is not to be had ({error}); choose loky, or install the package of that name"
            ) from error
        if backend not in _REMOTE:
            yield from Parallel(return_as="generator")(delayed(function)(task) for task in tasks)
            return
        # They hand results back only all at once: some at a time, so that what is done is seen and kept.
        for first in range(0, len(tasks), _ROUNDS * workers):
            yield from Parallel()(delayed(function)(task) for task in tasks[first : first + _ROUNDS * workers])


@contextmanager
def _ready(backend: str, *, workers: int) -> Iterator[None]:
    if backend == "dask":
        from dask.distributed import Client

        local = {} if "DASK_SCHEDULER_ADDRESS" in os.environ else {"n_workers": workers, "threads_per_worker": 1}
        with Client(**local):
            yield
    elif backend == "ray":
        from ray.util.joblib import register_ray

        register_ray()
        yield
    else:
        yield
