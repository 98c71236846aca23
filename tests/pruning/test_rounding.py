"""Rounded widths: multiples within the budget, next to its even share, as many above it as the budget allows."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from slimcli.pruning.rounding import widths_within
from slimcli.records import ChannelGroup, Member


def test_two_groups_are_rounded_next_to_the_even_share() -> None:
    """LeNet-5 at half of its MACs: 8 and 48 would use more of the budget, and leave the first layer little."""
    groups = [group("conv1", 20, 1), group("conv2", 50, 1)]

    def macs(units: Mapping[str, int]) -> int:
        first, second = units["conv1"], units["conv2"]
        return 25 * 576 * first + 25 * 64 * first * second + 16 * 500 * second + 5000

    found = widths_within(groups, {"conv1": 8, "conv2": 8}, lambda units: macs(units) <= 2293000 / 2)
    assert found is not None
    share, units = found
    assert 0.6 < share < 0.7
    assert units == {"conv1": 16, "conv2": 24}


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
    found = widths_within(groups, dict.fromkeys((each.name for each in groups), multiple), lambda units: cost(units) <= most)
    least = {
        each.name: min((u for u in range(each.least, each.channels) if u * each.per_unit % multiple == 0), default=each.channels)
        for each in groups
    }
    assert (found is None) == (cost(least) > most)
    if found is None:
        return
    share, units = found
    assert cost(units) <= most
    for each in groups:
        kept = units[each.name]
        assert kept == each.channels or kept * each.per_unit % multiple == 0
        assert least[each.name] <= kept <= each.channels
    for each in groups:
        even = share * each.channels
        choices = [*(u for u in range(least[each.name], each.channels) if u * each.per_unit % multiple == 0), each.channels]
        below = max((at for at, u in enumerate(choices) if u <= even), default=0)
        assert units[each.name] in choices[: below + 2]
        wider = min((u for u in choices if u > units[each.name]), default=None)
        if wider is not None and wider <= even:  # it gave way to another
            assert cost({**units, each.name: wider}) > most
    if budget == 1:
        assert units == {each.name: each.channels for each in groups}
