"""How often a measurement is repeated."""

import gc

from loraplex.engine.measure_rounds import repeat
from loraplex.engine.rendezvous import RendezvousTransport, Switchboard


def rounds_of(*, seconds: float) -> tuple[int, list[str]]:
    """(rounds that were run, what was told)."""
    told: list[str] = []
    frozen: list[int] = []
    transport = RendezvousTransport(Switchboard(1, timeout_s=10), 0)
    repeat([lambda: frozen.append(gc.get_freeze_count())], transport, num_workers=1, seconds=seconds, tell=told.append)
    assert min(frozen) > 1000
    assert gc.get_freeze_count() == 0
    return len(frozen), told


def test_one_round_compiles_and_four_or_more_follow() -> None:
    assert rounds_of(seconds=0.0)[0] == 1 + 4
    count, told = rounds_of(seconds=60.0)
    assert count == 1 + 7
    assert [line.split(" s, ")[1].split(" of ")[0] for line in told] == ["then 7"]


def test_parts_take_turns() -> None:
    turns: list[str] = []
    transport = RendezvousTransport(Switchboard(1, timeout_s=10), 0)
    parts = [lambda: turns.append("shallow"), lambda: turns.append("deep")]
    repeat(parts, transport, num_workers=1, seconds=0.0, tell=lambda text: None)
    assert turns == ["shallow", "deep"] * 5
