"""Where channels go when tensors are flattened, cut and put side by side, against the tensors themselves."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from hypothesis import given
from hypothesis import strategies as st

from slimcli.pruning.index_mapping import Cut, Flattened, Shifted, Unflattened


class Index(NamedTuple):
    """A channel, and the channel of the root that it goes with: what torch-pruning hands over."""

    idx: int
    root_idx: int


SIZES = st.lists(st.integers(1, 4), min_size=1, max_size=4)


@given(SIZES, st.data())
def test_a_flattened_axis_is_where_a_reshape_puts_it(shape: list[int], data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    width, behind = shape[axis], math.prod(shape[axis + 1 :])
    there, back = Flattened(math.prod(shape[:axis]), width, behind), Unflattened(width, behind)
    flat = torch.arange(width).reshape(-1, *[1] * (len(shape) - axis - 1)).expand(shape).flatten().tolist()
    for channel in range(width):
        places = [each.idx for each in there([Index(channel, 7)])]
        assert sorted(places) == [place for place, other in enumerate(flat) if other == channel]
        assert back([Index(place, 7) for place in places]) == [Index(channel, 7)]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.data())
def test_a_part_of_a_concatenation_is_where_it_is_put(widths: list[int], data: st.DataObject) -> None:
    part = data.draw(st.integers(0, len(widths) - 1))
    start = sum(widths[:part])
    whole = torch.cat([torch.full((width,), number) for number, width in enumerate(widths)])
    places = [each.idx for each in Shifted(start)([Index(channel, channel) for channel in range(widths[part])])]
    assert places == (whole == part).nonzero().flatten().tolist()
    found = Cut(start, start + widths[part])([Index(place, place) for place in range(len(whole))])
    assert found == [Index(place - start, place) for place in places]
