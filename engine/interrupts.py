"""A Ctrl-C that gets lost comes again. Importing this needs no torch."""

import os
import signal
import sys
import threading

_AGAIN_S = 0.05
"""Time for the destructor to end in which the interrupt was lost."""


def interrupts_come_again() -> None:
    """Have an interrupt that Python drops, since it was raised in some object's __del__, be sent once more.

    Libraries run many a destructor while they are imported; Python would print where the interrupt was raised, and go
    on. Call it once in a process.
    """
    sys.unraisablehook = _send_again


def _send_again(unraisable: "sys.UnraisableHookArgs") -> None:
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        again = threading.Timer(_AGAIN_S, os.kill, (os.getpid(), signal.SIGINT))
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(unraisable)
