"""How many filters go."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from slimcli.errors import SettingsError
from slimcli.pruning.amounts import Adaptive, Fixed, per_group
from slimcli.pruning.sparsity import sap_share
from slimcli.records import ChannelGroup, Member


def group(channels: int, name: str = "g") -> ChannelGroup:
    return ChannelGroup(name, (Member(name, tuple(range(channels))),), channels)


def groups(*widths: int) -> list[ChannelGroup]:
    return [group(width, f"g{index}") for index, width in enumerate(widths)]


@given(st.integers(1, 500), st.integers(1, 600))
def test_a_share_is_rounded_up_and_takes_at_most_half(tenths: int, channels: int) -> None:
    text = f"{tenths / 10:g}%"
    expected = math.ceil(Fraction(tenths, 1000) * channels)
    assert Fixed(text, [group(channels)]).filters(group(channels)) == min(expected, channels // 2)


@pytest.mark.parametrize(
    ("text", "channels", "count"), [("10%", 20, 2), ("10%", 21, 3), ("30%", 10, 3), ("50%", 5, 2), ("0.1%", 8, 1)]
)
def test_shares_by_example(text: str, channels: int, count: int) -> None:
    assert Fixed(text, [group(channels)]).filters(group(channels)) == count


@given(st.sampled_from(["10%", "50%", "1", "7", "1000"]), st.integers(1, 40))
def test_at_least_one_goes_and_one_stays(text: str, channels: int) -> None:
    count = Fixed(text, [group(channels)]).filters(group(channels))
    assert 0 <= count <= channels // 2
    assert (count >= 1) == (channels >= 2)


def test_a_share_follows_the_group_as_it_shrinks() -> None:
    amount = Fixed("10%", [group(100)])
    assert [amount.filters(group(width)) for width in (100, 90, 81, 11, 10)] == [10, 9, 9, 2, 1]


def test_counts_belong_to_groups_in_order() -> None:
    network = groups(20, 50, 500)
    amount = Fixed("2,5,7", network)
    assert [amount.filters(g) for g in network] == [2, 5, 7]
    assert [Fixed("3", network).filters(g) for g in network] == [3, 3, 3]


@given(st.integers(1, 40), st.integers(2, 8), st.integers(2, 12))
def test_where_units_have_several_channels_as_many_go_as_hold_those_asked_for(count: int, per_unit: int, units: int) -> None:
    members = tuple(Member("g", tuple(range(first, first + units))) for first in range(0, units * per_unit, units))
    grouped = ChannelGroup("g", members, units)
    gone = Fixed(str(count), [grouped]).filters(grouped)
    assert gone == min(math.ceil(Fraction(count, per_unit)), units // 2, units - 2)  # one channel in each group is another conv
    assert per_group("--widths", [1, 2], [grouped, group(units * per_unit + 1, "h")]) == {"g": 1, "h": 2}


def test_counts_belong_to_widths_where_there_are_more_groups() -> None:
    network = groups(16, 16, 64, 32, 16, 64)
    amount = Fixed("2, 4, 8", network)
    assert [amount.filters(g) for g in network] == [2, 2, 8, 4, 2, 8]
    assert [amount.filters(group(9, g.name)) for g in network] == [2, 2, 4, 4, 2, 4]  # the same counts when the group is smaller


def test_a_number_of_counts_that_fits_nothing_is_refused() -> None:
    with pytest.raises(SettingsError, match="--amount has 2 numbers") as caught:
        Fixed("1,2", groups(16, 32, 64))
    assert "per width" in caught.value.hint
    with pytest.raises(SettingsError, match="--widths has 4"):
        per_group("--widths", [1, 2, 3, 4], groups(16, 32, 64))


@given(st.lists(st.integers(1, 64), min_size=1, max_size=8), st.data())
def test_every_group_gets_a_number(widths: list[int], data: st.DataObject) -> None:
    network = groups(*widths)
    size = data.draw(st.sampled_from([1, len(widths), len(set(widths))]))
    numbers = data.draw(st.lists(st.integers(1, 9), min_size=size, max_size=size))
    found = per_group("--widths", numbers, network)
    assert found.keys() == {g.name for g in network}
    assert set(found.values()) <= set(numbers)
    if size == len(widths):
        assert [found[g.name] for g in network] == numbers
    if size == 1:
        assert set(found.values()) == set(numbers)


@given(st.one_of(st.text(max_size=8), st.text("0123456789.,%-+e ", max_size=8)))
@example("")
@example("%")
@example("0%")
@example("51%")
@example("-10%")
@example("nan%")
@example("inf%")
@example("0")
@example("-1")
@example("2.5")
@example("1,,2")
@example("²")
@example("1_0")
@example("ten")
@example("1e-300%")
def test_any_text_is_an_amount_or_refused_in_a_sentence(text: str) -> None:
    network = groups(20, 20)
    try:
        amount = Fixed(text, network)
    except SettingsError as error:
        message, hint, counts = error.message, error.hint, [1]
    else:
        message, hint, counts = "--amount", "none needed", [amount.filters(g) for g in network]
    assert "--amount" in message
    assert hint
    assert all(1 <= count <= 10 for count in counts)


WEIGHTS = st.dictionaries(
    st.sampled_from(["a", "b", "c"]), st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=50).map(torch.tensor), min_size=3
)
STEPS = st.sampled_from([(0.5, 1.0), (1.0, 2.0)])


@given(WEIGHTS, STEPS, st.integers(1, 60), st.sampled_from(["layer", "global"]))
def test_the_adaptive_amount_takes_of_filters_the_share_of_their_weights(
    weights: dict[str, torch.Tensor], pq: tuple[float, float], channels: int, scope: str
) -> None:
    amount = Adaptive(*pq, gamma=1.0, beta=0.9, eta=0.0, scope=scope)
    tied = ChannelGroup("a", (Member("a", tuple(range(channels))), Member("b", tuple(range(channels)))), channels)
    together = weights.values() if scope == "global" else (weights["a"], weights["b"])
    share = sap_share(together, *pq)
    layers = {name: vector[:, None] for name, vector in weights.items()}  # filters of one weight: its magnitude is their norm
    assert amount.filters(tied, layers) == min(math.floor(share * channels), channels - 1)
    assert amount.shares(tied, layers) == {"weights": share, "norms": share}
    counts = amount.weights(weights)
    for name, vector in weights.items():
        share = sap_share(weights.values() if scope == "global" else [vector], *pq)
        assert counts[name] == min(math.floor(share * len(vector)), len(vector) - 1)


def test_norms_of_filters_hardly_differ_where_their_weights_do() -> None:
    torch.manual_seed(0)
    amount = Adaptive(1.0, 2.0, gamma=1.0, beta=0.9, eta=0.0, scope="layer")
    shares = amount.shares(group(64), {"g": torch.randn(64, 32, 3, 3)})
    assert shares["weights"] > 0.3
    assert shares["norms"] < 0.02


@given(WEIGHTS, st.sampled_from(["20%", "50%", "0.5%"]))
def test_a_share_of_weights_is_rounded_down_and_one_stays(weights: dict[str, torch.Tensor], text: str) -> None:
    counts = Fixed(text, [group(4)]).weights(weights)
    assert counts == {name: int(Fraction(text[:-1]) / 100 * len(vector)) for name, vector in weights.items()}


def test_counts_are_for_filters() -> None:
    with pytest.raises(SettingsError, match="counts filters"):
        Fixed("2,4", [group(4), group(8)]).weights({})


def test_more_than_half_goes_of_single_weights_alone() -> None:
    weights = {"a": torch.ones(10), "b": torch.ones(1)}
    assert Fixed("60%", [], single_weights=True).weights(weights) == {"a": 6, "b": 0}
    for text, single in (("60%", False), ("100%", True)):
        with pytest.raises(SettingsError, match="is outside"):
            Fixed(text, [], single_weights=single)
