"""Numbers as the pages write them."""

from __future__ import annotations

from slimcli.measures import measure_of, value_of
from slimcli.records import JsonDict


def score(facts: JsonDict) -> str:
    """The score that a record of metrics holds, with its unit."""
    measure = measure_of(facts)
    return measure.figure(value_of(facts)) + measure.unit


def scored(facts: JsonDict) -> str:
    """The score with its name before it."""
    return f"{measure_of(facts).title} {score(facts)}"


def score_change(before: JsonDict, after: JsonDict) -> str:
    """How the score changed: top-1 in points, others in their own unit."""
    measure = measure_of(before)
    return signed_text(measure.change(value_of(after), value_of(before))) + (" points" if measure.is_top1 else "")


def signed_text(text: str) -> str:
    """A figure without the sign where it is zero."""
    return text if float(text) else text[1:]


def signed(value: float, digits: int = 2) -> str:
    """With its sign, and without one where it rounds to zero."""
    return signed_text(f"{value:+.{digits}f}")


def change(before: float, after: float) -> str:
    """The relative change in percent."""
    return f"{signed(100 * (after / before - 1), 1)} %" if before else ""


def percent(fraction: float) -> str:
    """A fraction of one in percent."""
    return f"{100 * fraction:.1f} %"


def plural(number: int, noun: str) -> str:
    """A count of things."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def size(count: int) -> str:
    """Bytes in decimal units; megabytes down to 0.1, so that two sizes of one table mostly share the unit."""
    return f"{count / 1e6:,.2f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def milliseconds(value: float) -> str:
    """About three significant digits."""
    return f"{value:,.{3 if value < 1 else 2 if value < 10 else 1}f} ms"


def interval(ratio: JsonDict) -> str:
    """A ratio of latencies with its 95 % interval."""
    return f"{ratio['ratio']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"


def speedup(ratio: JsonDict) -> str:
    """A ratio of latencies in words: nothing is faster whose interval holds one."""
    if ratio["low"] <= 1 <= ratio["high"]:
        return "not measurably faster"
    return times(ratio["ratio"], "faster", "slower")


def times(ratio: float, less: str, more: str) -> str:
    """How much smaller or faster (`less`) something became; below one it is the other (`more`)."""
    if ratio < 1:
        ratio, less = 1 / ratio, more
    if ratio < 1.005:
        return f"no {less}"
    return f"{ratio:.{2 if ratio < 1.1 else 1}f} times {less}"


def duration(seconds: float) -> str:
    """Seconds below two minutes, then minutes, then hours."""
    minutes = int(seconds) // 60
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
