"""Independent work in processes, through joblib: results come in the order of the tasks, whatever the workers."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from ..errors import PlanError

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

    try:
        config = parallel_config(backend=backend, n_jobs=min(workers, len(tasks)))
    except (ValueError, ImportError) as error:
        raise PlanError(f"backend={backend!r} is not to be had ({error}); choose loky, or register it") from error
    with config:
        yield from Parallel(return_as="generator")(delayed(function)(task) for task in tasks)
