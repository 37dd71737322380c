"""How a process of a run ends when something goes wrong: one line on stderr, and an exit code that the launcher reads.

Importing this needs no torch.
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ..traces.errors import InputError
from .disk import disk_error
from .errors import BAD_INPUT, PEER_LOST, STOPPED, EngineError, PeerLostError, out_of_memory
from .interrupts import interrupts_come_again
from .watchdog import LAUNCHER

ALIKE_S = 10.0
"""Time for worker 0 to meet what another has met."""


@contextmanager
def ends_process(*, alike: bool = False) -> Iterator[None]:
    """Say what goes wrong inside in one line, and end the process.

    Exit code 2: bad input; 1: the work cannot go on; 3: a peer was lost; 130: told to stop. What nobody foresaw is
    raised. Where all workers do `alike`, and so meet the same bad input, worker 0 tells of it, and others only where
    nobody has ended them soon after.
    """
    worker = int(os.environ.get("RANK", "0"))
    # Until the watchdog, which has a hook of its own, is there.
    interrupts_come_again()
    try:
        yield
    except InputError as error:
        if alike and worker:
            # Not at once: the launcher ends all when the first has ended, and worker 0 may be a little slower.
            time.sleep(ALIKE_S)
        _end(f"error: {error}" if alike else f"error: worker {worker}: {error}", code=BAD_INPUT)
    except PeerLostError as error:
        _end(str(error), code=PEER_LOST)
    except EngineError as error:
        _end(str(error), code=1)
    except (RuntimeError, MemoryError) as error:
        told = out_of_memory(error)
        if told is None:
            raise
        _end(f"worker {worker}: {told}", code=1)
    except OSError as error:
        # What a library cleans up while it is interrupted may fail: shutil.rmtree closes a descriptor twice then.
        if isinstance(error.__context__, KeyboardInterrupt):
            _end_stopped(error.__context__, worker=worker)
        broken = disk_error(error)
        if broken is None:
            raise
        _end(f"worker {worker}: {broken}", code=1)
    except KeyboardInterrupt as error:
        _end_stopped(error, worker=worker)


def _end_stopped(interrupt: KeyboardInterrupt, *, worker: int) -> None:
    # Python's own handler, which is there before the watchdog's, names no signal. A launcher of ours tells of all.
    said = "" if LAUNCHER in os.environ else f"worker {worker} stopped ({str(interrupt) or 'SIGINT'})"
    _end(said, code=STOPPED)


def _end(message: str, *, code: int) -> None:
    if message:
        print(f"loraplex: {message}", file=sys.stderr, flush=True)
    # Not sys.exit: the process group's threads would wait for peers that may be gone.
    sys.stdout.flush()
    os._exit(code)
