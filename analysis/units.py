"""Numbers as short texts with their unit; '-' where there is none. Tables, plots and the report share them."""


def ms_text(ms: float | None) -> str:
    """A duration: 850 us, 12.3 ms, 4.56 s, 12 min 30 s, 3 h 05 min."""
    if ms is None:
        return "-"
    if ms < 1.0:
        return f"{_three(ms * 1e3)} us" if ms else "0 ms"
    if ms < 999.5:
        return f"{_three(ms)} ms"
    seconds = ms / 1e3
    if seconds < 99.95:
        return f"{_three(seconds)} s"
    if seconds < 3600:
        return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
    return f"{int(seconds) // 3600} h {int(seconds) % 3600 // 60:02d} min"


def percent(ratio: float | None) -> str:
    """A ratio in percent with one decimal."""
    return "-" if ratio is None else f"{ratio * 100:.1f} %"


def signed_percent(ratio: float | None) -> str:
    """A relative difference in percent, with its sign."""
    return "-" if ratio is None else f"{ratio * 100:+.1f} %"


def difference_text(left: float | None, right: float | None) -> str:
    """Difference of two ratios in percentage points."""
    return "-" if left is None or right is None else f"{(left - right) * 100:+.1f} points"


def rate_text(tokens_per_s: float | None) -> str:
    """Tokens per second."""
    if tokens_per_s is None:
        return "-"
    return f"{tokens_per_s:,.0f}" if tokens_per_s >= 100 else f"{tokens_per_s:.3g}"


def tokens_text(tokens: float | None) -> str:
    """A count, with thousands set apart."""
    return "-" if tokens is None else f"{tokens:,.0f}"


def bytes_text(num_bytes: float | None) -> str:
    """An amount of memory in the binary unit that fits."""
    if num_bytes is None:
        return "-"
    amount = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{_three(amount)} {unit}" if unit != "B" else f"{amount:.0f} B"
        amount /= 1024
    return f"{_three(amount)} TiB"


def _three(number: float) -> str:
    # Three digits that count, zeros among them: 2.80, not 2.8.
    return f"{number:#.3g}".removesuffix(".")
