"""One training epoch of ResNet-20 on images of CIFAR-10's shape: a plain torch loop against ours, in each precision.

A slice of 2,048 images stands for the epoch; every variant trains on the same images, in turn, and medians are compared.
The plain loop indexes normalised float tensors and neither augments nor records; ours does both. Images per second; the
first epoch of a compiled variant (the compilation) is told apart and not counted. Random images: the time does not depend
on them. What bf16 costs in accuracy is another question: `docs/training.md` has the answer for this network.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from torch.nn import functional as F

from slimcli.data.memory import Augment, ImageLoader
from slimcli.networks.resolve import build
from slimcli.pruning.history import NormHistory
from slimcli.settings import FitSettings
from slimcli.training.engine import Engine

SHAPE, COUNT, BATCH, ROUNDS = (3, 32, 32), 2048, 128, 3
RAW = torch.randint(0, 256, (COUNT, *SHAPE), dtype=torch.uint8)
LABELS = torch.randint(0, 10, (COUNT,))


def plain(channels_last: bool) -> Callable[[], None]:
    """The loop that one would write by hand."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = build("resnet20-cifar", 10, SHAPE).train().to(memory_format=layout)
    images = ((RAW.float() / 255 - 0.5) / 0.25).to(memory_format=layout)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)

    def epoch() -> None:
        for chosen in torch.randperm(COUNT).split(BATCH):
            loss = F.cross_entropy(model(images[chosen]), LABELS[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return epoch


def ours(precision: str, compile: bool) -> Callable[[], None]:
    """Ours, augmentation and history included. All epochs are one phase, as in a run, so that compiling happens once."""
    model = build("resnet20-cifar", 10, SHAPE)
    engine, history = Engine(FitSettings(precision=precision, compile=compile, device="cpu")), NormHistory(model)
    loader = ImageLoader(RAW, LABELS, (0.5,) * 3, (0.25,) * 3, BATCH, True, Augment(4, True))

    def epoch() -> None:
        engine.fit(model, loader, 1, "bench", after_epoch=lambda *_: history.record())

    return epoch


VARIANTS: dict[str, Callable[[], Callable[[], None]]] = {
    "plain loop": partial(plain, False),
    "plain loop, channels-last": partial(plain, True),
    "ours, 32 bits": partial(ours, "32", False),
    "ours, bf16": partial(ours, "bf16", False),
    "ours, 32 bits, --compile": partial(ours, "32", True),
    "ours, bf16, --compile": partial(ours, "bf16", True),
}


def main() -> int:
    epochs = {name: make() for name, make in VARIANTS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in epochs}
    for _ in range(ROUNDS + 1):
        for name, epoch in epochs.items():
            started = time.perf_counter()
            epoch()
            seconds[name].append(time.perf_counter() - started)
    reference = median(seconds["plain loop"][1:])
    for name, (first, *rest) in seconds.items():
        speed = median(rest)
        print(f"{name:<28}{COUNT / speed:7,.0f} images/s, {reference / speed:.2f} times the plain loop (first {first:.1f} s)")
    default = f"ours, {'bf16' if 'bf16' in Engine(FitSettings(device='cpu')).precision else '32 bits'}"
    fastest = min((name for name in VARIANTS if "compile" not in name), key=lambda name: median(seconds[name][1:]))
    reached = default == fastest
    print(f"{'reached' if reached else 'NOT REACHED'}: the default here ({default}) is the fastest that needs no compiler")
    return int(not reached)


if __name__ == "__main__":
    sys.exit(main())
