"""The parts that processes take of a batch are the whole batch, whatever is in it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slimcli.errors import DataError
from slimcli.networks.tasks import moved, part_of


def batch_of(count: int) -> tuple[Any, ...]:
    return torch.arange(count), {"boxes": torch.arange(count * 2).view(count, 2), "kind": "plain"}, [torch.arange(count) + 9]


@given(st.integers(0, 9), st.integers(1, 4))
def test_the_parts_make_up_the_batch(count: int, world: int) -> None:
    whole = batch_of(count)
    parts = [part_of(whole, rank, world) for rank in range(world)]
    order = torch.cat([torch.arange(count)[rank::world] for rank in range(world)])
    assert torch.equal(torch.cat([part[0] for part in parts]), whole[0][order])
    assert torch.equal(torch.cat([part[1]["boxes"] for part in parts]), whole[1]["boxes"][order])
    assert torch.equal(torch.cat([part[2][0] for part in parts]), whole[2][0][order])
    assert all(part[1]["kind"] == "plain" for part in parts)


def test_what_belongs_to_no_image_cannot_be_shared() -> None:
    with pytest.raises(DataError, match=r"batch of 4 images holds a tensor of shape \(3,\)"):
        part_of((torch.zeros(4), torch.zeros(3)), 0, 2)


def test_moving_keeps_the_structure() -> None:
    whole = batch_of(3)
    there = moved(whole, torch.device("meta"))
    assert there[0].device.type == there[1]["boxes"].device.type == there[2][0].device.type == "meta"
    assert there[1]["kind"] == "plain"
