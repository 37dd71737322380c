"""Numbers as texts."""

import pytest

from loraplex.analysis.units import (
    bytes_text,
    difference_text,
    ms_text,
    percent,
    rate_text,
    signed_percent,
    tokens_text,
)


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (None, "-"),
        (0.0, "0 ms"),
        (0.0123, "12.3 us"),
        (1.5, "1.50 ms"),
        (999.4, "999 ms"),
        (999.6, "1.00 s"),
        (12_345, "12.3 s"),
        (99_960, "1 min 39 s"),
        (750_000, "12 min 30 s"),
        (11_100_000, "3 h 05 min"),
    ],
)
def test_durations(ms: float | None, text: str) -> None:
    assert ms_text(ms) == text


def test_the_other_units() -> None:
    assert [percent(0.1234), percent(None), signed_percent(-0.05), signed_percent(None)] == [
        "12.3 %",
        "-",
        "-5.0 %",
        "-",
    ]
    assert [difference_text(0.3, 0.25), difference_text(None, 0.2)] == ["+5.0 points", "-"]
    assert [rate_text(12345.6), rate_text(1.234), rate_text(None)] == ["12,346", "1.23", "-"]
    assert [tokens_text(1234567), tokens_text(None)] == ["1,234,567", "-"]
    assert [bytes_text(512), bytes_text(3 * 2**30), bytes_text(2**40), bytes_text(None)] == [
        "512 B",
        "3.00 GiB",
        "1.00 TiB",
        "-",
    ]
