"""Widths for a latency: within it, multiples, and nothing is given up that saves no time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from slimcli.pruning.pacing import widths_in_time
from tests.pruning.test_rounding import group


def chain(steps: int) -> Callable[[Mapping[str, int]], float]:
    """The time of a chain of layers whose widths are computed in steps."""

    def time_of(units: Mapping[str, int]) -> float:
        widths = [3, *(math.ceil(each / steps) * steps for each in units.values())]
        return 1 + sum(before * after for before, after in pairwise(widths))

    return time_of


@given(
    st.lists(st.integers(1, 100), min_size=1, max_size=5),
    st.sampled_from([1, 4, 8]),
    st.sampled_from([1, 16]),
    st.floats(0.05, 1),
)
def test_widths_are_within_the_time(sizes: list[int], multiple: int, steps: int, share: float) -> None:
    groups = [group(f"g{number}", units, 1) for number, units in enumerate(sizes)]
    dense, time_of = {each.name: each.channels for each in groups}, chain(steps)
    limit = share * time_of(dense)
    found = widths_in_time(groups, dict.fromkeys(dense, multiple), dense, time_of, limit)
    narrowest = {name: min(multiple, channels) for name, channels in dense.items()}
    assert (found is None) == (time_of(narrowest) > limit)
    if found is None:
        return
    assert time_of(found) <= limit
    assert all(kept == dense[name] or kept % multiple == 0 for name, kept in found.items())
    for name, kept in found.items():  # no group could be wider, alone
        wider = min(dense[name], (kept // multiple + 1) * multiple)
        assert wider == kept or time_of({**found, name: wider}) > limit
    if share == 1:
        assert found == dense


def test_what_saves_no_time_stays() -> None:
    groups = [group("free", 64, 1), group("costly", 64, 1)]
    found = widths_in_time(groups, {"free": 4, "costly": 4}, {"free": 64, "costly": 64}, lambda units: units["costly"], 32)
    assert found == {"free": 64, "costly": 32}


def test_time_goes_first_where_most_of_it_is_saved() -> None:
    """Three quarters of the time are in one of two equal groups."""
    groups = [group("short", 64, 1), group("long", 64, 1)]
    found = widths_in_time(
        groups, {"short": 8, "long": 8}, {"short": 64, "long": 64}, lambda units: units["short"] + 3 * units["long"], 200
    )
    assert found is not None
    assert found["long"] < found["short"]
