"""Independent work in processes, through joblib: results come in the order of the tasks, whatever the workers."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


def side_by_side(
    function: Callable[[Task], Result], tasks: Sequence[Task], *, workers: int, backend: str = "loky"
) -> Iterator[Result]:
    """function(task) for each task, in order.

    `backend` is a joblib backend: loky, its default, is processes on this machine; dask and ray, registered as
    joblib documents, are for those who outgrow it. With one worker or one task nothing is started.
    """
    if workers <= 1 or len(tasks) <= 1:
        yield from map(function, tasks)
        return
    from joblib import Parallel, delayed, parallel_config

    with parallel_config(backend=backend, n_jobs=min(workers, len(tasks)), inner_max_num_threads=None):
        yield from Parallel(return_as="generator")(delayed(function)(task) for task in tasks)
