"""The option-A shortcut against a plain 1 x 1 convolution with ones and zeros."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from slimcli.networks.shortcut import ChannelPad


def reference(x: Tensor, selects: Tensor, stride: int) -> Tensor:
    """A strided 1 x 1 convolution whose kernel is the selection."""
    return F.conv2d(x, selects.to(x.dtype)[:, :, None, None], stride=stride)


def standard(inputs: int, outputs: int) -> Tensor:
    """The selection of the original: the inputs in the middle of the outputs, zeros around."""
    selects = torch.zeros(outputs, inputs)
    for channel in range(inputs):
        selects[(outputs - inputs) // 2 + channel, channel] = 1
    return selects


widths = st.integers(1, 7).flatmap(lambda inputs: st.tuples(st.just(inputs), st.integers(inputs, 16)))


@given(widths, st.integers(1, 3))
def test_a_fresh_shortcut_pads_with_zeros_on_both_sides(sizes: tuple[int, int], stride: int) -> None:
    inputs, outputs = sizes
    x = torch.randn(2, inputs, 6, 7)
    assert torch.equal(ChannelPad(inputs, outputs, stride)(x), reference(x, standard(inputs, outputs), stride))


@given(widths, st.integers(1, 2), st.data())
def test_removals_in_any_order_equal_slicing_the_reference(sizes: tuple[int, int], stride: int, data: st.DataObject) -> None:
    inputs, outputs = sizes
    shortcut, selects = ChannelPad(inputs, outputs, stride), standard(inputs, outputs)
    for _ in range(data.draw(st.integers(1, 4))):
        axis = data.draw(st.sampled_from(["inputs", "outputs"]))
        size = selects.shape[1] if axis == "inputs" else selects.shape[0]
        gone = (
            data.draw(st.sets(st.integers(0, max(0, size - 1)), max_size=size - 1 if axis == "outputs" else size))
            if size
            else set()
        )
        kept = [channel for channel in range(size) if channel not in gone]
        if axis == "inputs":
            shortcut.remove_inputs(list(gone))
            selects = selects[:, kept]
        else:
            shortcut.remove_outputs(list(gone))
            selects = selects[kept]
    assert torch.equal(shortcut.selects, selects.bool())
    x = torch.randn(2, selects.shape[1], 5, 6)
    expected = (
        reference(x, selects, stride) if selects.shape[1] else torch.zeros(2, len(selects), -(-5 // stride), -(-6 // stride))
    )
    assert torch.equal(shortcut(x), expected)


@given(widths, st.data())
def test_a_slim_shortcut_travels_in_the_state_dict(sizes: tuple[int, int], data: st.DataObject) -> None:
    inputs, outputs = sizes
    shortcut = ChannelPad(inputs, outputs, 2)
    shortcut.remove_inputs(sorted(data.draw(st.sets(st.integers(0, inputs - 1), max_size=inputs - 1))))
    shortcut.remove_outputs(sorted(data.draw(st.sets(st.integers(0, outputs - 1), max_size=outputs - 1))))
    state = copy.deepcopy(shortcut.state_dict())
    assert list(state) == ["selects"]
    again = ChannelPad(inputs, outputs, 2)
    again.adopt(state["selects"].clone())
    again.load_state_dict(state)
    x = torch.randn(2, shortcut.selects.shape[1], 4, 4)
    assert torch.equal(again(x), shortcut(x))
    assert torch.equal(copy.deepcopy(shortcut).double()(x.double()), shortcut(x).double())


def test_a_state_dict_without_selection_has_the_standard_padding() -> None:
    shortcut = ChannelPad(4, 8, 2)
    result = shortcut.load_state_dict({})
    assert not result.missing_keys
    x = torch.randn(2, 4, 4, 4)
    assert torch.equal(shortcut(x), reference(x, standard(4, 8), 2))


def test_a_loaded_selection_is_what_runs() -> None:
    """Equal shapes, another selection: the forward pass follows what was loaded, not what was built."""
    one, other = ChannelPad(4, 8, 1), ChannelPad(4, 8, 1)
    one.remove_outputs([0])
    other.remove_outputs([5])
    other.load_state_dict(one.state_dict())
    x = torch.randn(2, 4, 4, 4)
    assert torch.equal(other(x), one(x))


def test_gradients_reach_the_channels_that_are_read_and_no_others() -> None:
    shortcut = ChannelPad(3, 6, 1)
    shortcut.remove_outputs([2])  # where input 1 would have gone
    x = torch.randn(1, 3, 2, 2, requires_grad=True)
    shortcut(x).sum().backward()
    assert x.grad is not None
    assert x.grad[0, :, 0, 0].tolist() == [1, 0, 1]


@pytest.mark.parametrize("removed", [[], [0], [1, 3]])
def test_selection_and_its_indices_move_together(removed: list[int]) -> None:
    shortcut = ChannelPad(4, 8, 1)
    shortcut.remove_outputs(removed)
    assert {buffer.device.type for buffer in copy.deepcopy(shortcut).to("meta").buffers()} == {"meta"}
