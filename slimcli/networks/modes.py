"""Using a network and leaving it, and the random numbers, as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor, nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards every module is back in the mode it was in (some may be frozen in eval on purpose)."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


_IN_USUAL_LAYOUT: WeakSet[type[nn.Module]] = WeakSet()
"""Kinds of networks whose code only runs in the usual layout (`x.view(len(x), -1)` behind a conv)."""


@torch.no_grad()
def try_layout(model: nn.Module, images: Tensor) -> None:
    """Note of networks of this kind that they stay in the usual layout, where they do not run on the images in channels-last."""
    with evaluating(model), channels_last(model):
        try:
            model(images)
        except RuntimeError:
            _IN_USUAL_LAYOUT.add(type(model))


def keeps_layout(model: nn.Module) -> bool:
    """Whether the network stays in the usual layout: that, or it has convs over volumes, for which there is no other."""
    return type(model) in _IN_USUAL_LAYOUT or any(each.dim() == 5 for each in model.parameters())


@contextmanager
def channels_last(model: nn.Module) -> Iterator[None]:
    """Convolutions in channels-last layout (up to three times as fast on CPUs, faster on tensor cores), where they are not.

    Afterwards back in the layout that a loaded network has: kernels differ in the last bits between layouts. A network that
    `keeps_layout` stays as it is.
    """
    images = [each for each in model.parameters() if each.dim() == 4]
    if keeps_layout(model) or all(each.is_contiguous(memory_format=torch.channels_last) for each in images):
        yield
        return
    model.to(memory_format=torch.channels_last)
    try:
        yield
    finally:
        model.to(memory_format=torch.contiguous_format)


@contextmanager
def same_random_numbers(model: nn.Module) -> Iterator[None]:
    """Afterwards the generators stand where they stood (a network may draw in eval mode too, a loader from Python and numpy)."""
    cuda = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    pythons, numpys = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=sorted(index for index in cuda if index is not None)):
            yield
    finally:
        random.setstate(pythons)
        np.random.set_state(numpys)
