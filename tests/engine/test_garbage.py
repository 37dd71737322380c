"""Reference cycles are looked for at optimizer steps, not whenever Python likes."""

import gc
import weakref

import pytest

from loraplex.engine.garbage import collecting_when_told


class Cycle:
    def __init__(self) -> None:
        self.own = self


def test_cycles_wait_for_a_step() -> None:
    with collecting_when_told() as collect:
        assert not gc.isenabled()
        seen = weakref.ref(Cycle())
        many = [[] for _ in range(100_000)]  # type: ignore[var-annotated]
        assert seen() is not None
        collect()
        assert seen() is None
    assert gc.isenabled()
    assert len(many) == 100_000


def test_what_lived_through_a_step_is_found_at_the_next() -> None:
    with collecting_when_told() as collect:
        kept = Cycle()
        seen = weakref.ref(kept)
        collect()
        assert seen() is not None
        del kept
        collect()
        assert seen() is None


def test_what_somebody_has_put_aside_is_not_looked_at_inside_and_back_afterwards() -> None:
    gc.disable()
    seen = weakref.ref(Cycle())
    gc.enable()
    gc.freeze()
    with collecting_when_told() as collect:
        collect()
        assert seen() is not None
    assert gc.get_freeze_count() == 0
    gc.collect()
    assert seen() is None


def test_nobody_counts_what_is_put_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    # Python walks all of it for that, at every pass of a measurement.
    counted: list[str] = []
    for name in ("get_freeze_count", "get_objects", "get_stats"):
        monkeypatch.setattr(gc, name, lambda name=name: counted.append(name))
    with collecting_when_told() as collect:
        collect()
    assert counted == []


def test_a_cycle_of_before_waits_for_the_end() -> None:
    gc.disable()
    seen = weakref.ref(Cycle())
    gc.enable()
    with collecting_when_told() as collect:
        collect()
        assert seen() is not None
    gc.collect()
    assert seen() is None


def test_collection_is_on_again_after_an_error_and_stays_off_where_it_was_off() -> None:
    try:
        with collecting_when_told():
            raise RuntimeError
    except RuntimeError:
        assert gc.isenabled()
    gc.disable()
    with collecting_when_told() as collect:
        collect()
    assert not gc.isenabled()
    gc.enable()
