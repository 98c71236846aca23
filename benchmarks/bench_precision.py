"""One training epoch of ResNet-20 on images of CIFAR-10's shape: a plain torch loop against ours, in each precision.

A slice of 2,048 images stands for the epoch. In turn, every variant trains a new network for three epochs on the same
images, three times over; the medians of all epochs but each network's first are compared (a compiled network compiles in
its first). The plain loop indexes normalised float tensors and neither augments nor records; ours does both. Random images:
the time does not depend on them. What bf16 does to accuracy: `docs/training.md`.
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
from slimcli.training.engine import Engine, Epoch, FitState
from slimcli.training.group import Group

SHAPE, COUNT, BATCH, EPOCHS, ROUNDS = (3, 32, 32), 2048, 128, 3, 3
RAW = torch.randint(0, 256, (COUNT, *SHAPE), dtype=torch.uint8)
LABELS = torch.randint(0, 10, (COUNT,))


def plain(channels_last: bool) -> list[float]:
    """The loop that one would write by hand."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = build("resnet20-cifar", 10, SHAPE).train().to(memory_format=layout)
    images = ((RAW.float() / 255 - 0.5) / 0.25).to(memory_format=layout)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
    seconds = []
    for _ in range(EPOCHS):
        started = time.perf_counter()
        for chosen in torch.randperm(COUNT).split(BATCH):
            loss = F.cross_entropy(model(images[chosen]), LABELS[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        seconds.append(time.perf_counter() - started)
    return seconds


def ours(precision: str, compile: bool) -> list[float]:
    """Ours, augmentation and history included."""
    model = build("resnet20-cifar", 10, SHAPE)
    engine, history = Engine(FitSettings(precision=precision, compile=compile, device="cpu")), NormHistory(model)
    loader = ImageLoader(RAW, LABELS, (0.5,) * 3, (0.25,) * 3, BATCH, True, Augment(4, True))
    seconds = []

    def after_epoch(epoch: Epoch, _: FitState) -> None:
        history.record()
        seconds.append(epoch.seconds)

    engine.fit(model, loader, EPOCHS, "bench", after_epoch=after_epoch)
    return seconds


VARIANTS: dict[str, Callable[[], list[float]]] = {
    "plain loop": partial(plain, False),
    "plain loop, channels-last": partial(plain, True),
    "ours, 32 bits": partial(ours, "32", False),
    "ours, bf16": partial(ours, "bf16", False),
    "ours, 32 bits, --compile": partial(ours, "32", True),
    "ours, bf16, --compile": partial(ours, "bf16", True),
}


def main() -> int:
    rounds: dict[str, list[list[float]]] = {name: [] for name in VARIANTS}
    for _ in range(ROUNDS):
        for name, epochs in VARIANTS.items():
            rounds[name].append(epochs())
    seconds = {name: median(last for _, *rest in several for last in rest) for name, several in rounds.items()}
    for name, each in seconds.items():
        first = median(several[0] for several in rounds[name])
        times = seconds["plain loop"] / each
        print(f"{name:<28}{COUNT / each:7,.0f} images/s, {times:.2f} times the plain loop (a first epoch {first:.1f} s)")
    default = f"ours, {'bf16' if Group(FitSettings(device='cpu')).describe()['precision'] == 'bf16' else '32 bits'}"
    fastest = min((name for name in VARIANTS if "compile" not in name), key=lambda name: seconds[name])
    print(f"{'reached' if default == fastest else 'NOT REACHED'}: the default here ({default}) is the fastest without a compiler")
    return int(default != fastest)


if __name__ == "__main__":
    sys.exit(main())
