"""Rounds of the same measurement, as many as the time allows, with as little as possible in their way."""

import gc
from collections.abc import Callable, Sequence

from .garbage import collecting_when_told
from .measure import agreed_rounds
from .recorder import now_ns
from .transport import Transport

_LEAST_ROUNDS = 4
"""One may count bytes and not time; the median of three is of none that was disturbed."""
_MOST_ROUNDS = 7


def repeat(
    parts: Sequence[Callable[[], None]],
    transport: Transport,
    *,
    num_workers: int,
    seconds: float,
    tell: Callable[[str], None],
) -> None:
    """Once to compile, then at least four times, and for about `seconds`. All workers call it together.

    A round is every part once, in turn. `tell` hears what it took.
    """

    def one_round() -> None:
        for part in parts:
            transport.barrier()
            part()
            collect()

    # Of what is there already.
    gc.collect()
    with collecting_when_told() as collect:
        begin_ns = now_ns()
        one_round()
        transport.barrier()
        first, begin_ns = seconds_since(begin_ns), now_ns()
        one_round()
        took_s = max((now_ns() - begin_ns) / 1e9, 1e-6)
        afforded = min(_MOST_ROUNDS, max(_LEAST_ROUNDS, int(seconds / took_s)))
        rounds = agreed_rounds(afforded, transport, num_workers)
        tell(f"  a first round of {first} s, then {rounds} of about {took_s:.1f} s")
        for _ in range(rounds - 1):
            one_round()


def seconds_since(begin_ns: int) -> str:
    """For people, to a tenth."""
    return f"{(now_ns() - begin_ns) / 1e9:.1f}"
