"""Rounded widths: multiples within the budget, and none could be wider on its own without leaving it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from slimcli.pruning.rounding import widths_within
from slimcli.records import ChannelGroup, Member


def group(name: str, units: int, per_unit: int) -> ChannelGroup:
    return ChannelGroup(name, tuple(Member(name, tuple(range(at, units * per_unit, per_unit))) for at in range(per_unit)), units)


@given(
    st.lists(st.tuples(st.integers(1, 200), st.sampled_from([1, 1, 2, 3])), min_size=1, max_size=6),
    st.sampled_from([1, 4, 8, 16]),
    st.floats(0.01, 1),
)
def test_widths_are_multiples_within_the_budget(sizes: list[tuple[int, int]], multiple: int, budget: float) -> None:
    groups = [group(f"g{number}", units, per_unit) for number, (units, per_unit) in enumerate(sizes)]

    def cost(units: Mapping[str, int]) -> int:
        """As of a chain of layers: each costs its width times that of the one before."""
        widths = [3, *(units[each.name] * each.per_unit for each in groups)]
        return sum(before * after for before, after in pairwise(widths))

    most = budget * cost({each.name: each.channels for each in groups})
    found = widths_within(groups, multiple, lambda units: cost(units) <= most)
    least = {
        each.name: min((u for u in range(each.least, each.channels) if u * each.per_unit % multiple == 0), default=each.channels)
        for each in groups
    }
    assert (found is None) == (cost(least) > most)
    if found is None:
        return
    _, units = found
    assert cost(units) <= most
    for each in groups:
        kept = units[each.name]
        assert kept == each.channels or kept * each.per_unit % multiple == 0
        assert least[each.name] <= kept <= each.channels
    for each in groups:  # none could be wider on its own
        wider = next((u for u in range(units[each.name] + 1, each.channels) if u * each.per_unit % multiple == 0), each.channels)
        assert wider == units[each.name] or cost({**units, each.name: wider}) > most
    if budget == 1:
        assert units == {each.name: each.channels for each in groups}
