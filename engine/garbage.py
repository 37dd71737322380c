"""Python's search for reference cycles, kept from interrupting the launching of kernels.

It walks all objects that live, of which torch, transformers and Triton hold a million, whenever enough new ones have
come: a tenth of the host's time where microbatches are small (docs/log.md). Training makes no cycles of its own; what
libraries make is looked for at optimizer steps, and between the rounds of a measurement, among the objects that are new
since.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def collecting_when_told() -> Iterator[Callable[[], None]]:
    """Nothing is collected inside but when the function that this yields is called, and then nothing older than this.

    Whoever has collection off keeps it off. Objects that somebody has put aside before are among the others afterwards.
    """
    if not gc.isenabled():
        yield lambda: None
        return
    # Nobody asks whether something was put aside before: Python counts it one by one, 37 to 54 ms where torch and
    # transformers are in (docs/log.md). To take it back costs its owner time at the next whole search, and no more.
    gc.freeze()
    gc.disable()
    try:
        yield _collect
    finally:
        gc.enable()
        gc.unfreeze()


def _collect() -> None:
    # All that is not put aside, however often it was looked at: about a millisecond.
    gc.collect()
