"""Images per second of `slim train`'s loop against a plain torch loop with the same batch size over in-memory tensors.

The plain loop indexes normalised float tensors and steps torch's SGD; it neither augments nor records. Ours does both.
Random images: the time does not depend on them. Interleaved, medians compared.
"""

from __future__ import annotations

import sys
import time
from statistics import median

import torch
from torch.nn import functional as F

from slimcli.data.memory import Augment, ImageLoader
from slimcli.networks.resolve import build
from slimcli.pruning.history import NormHistory
from slimcli.settings import FitSettings
from slimcli.training.engine import Engine

BATCH, ROUNDS = 128, 5
CASES = (("lenet5", (1, 28, 28), 128 * 60, Augment(1)), ("resnet20-cifar", (3, 32, 32), 128 * 8, Augment(4, True)))


def plain(arch: str, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Images per second of one epoch of the loop that one would write by hand."""
    model = build(arch, 10, tuple(images.shape[1:])).train()  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
    started = time.perf_counter()
    for chosen in torch.randperm(len(images)).split(BATCH):
        loss = F.cross_entropy(model(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return len(images) / (time.perf_counter() - started)


def ours(arch: str, loader: ImageLoader, shape: tuple[int, int, int]) -> float:
    """Images per second of one epoch of ours, augmentation and history included."""
    model = build(arch, 10, shape)
    engine, history = Engine(FitSettings()), NormHistory(model)
    started = time.perf_counter()
    engine.fit(model, loader, 1, "bench", after_epoch=lambda *_: history.record())
    return loader.samples / (time.perf_counter() - started)


def main() -> int:
    failed = 0
    for arch, shape, count, augment in CASES:
        raw = torch.randint(0, 256, (count, *shape), dtype=torch.uint8)
        labels = torch.randint(0, 10, (count,))
        loader = ImageLoader(raw, labels, (0.5,) * shape[0], (0.25,) * shape[0], BATCH, True, augment)
        images = (raw.float() / 255 - 0.5) / 0.25
        speeds = [(plain(arch, images, labels), ours(arch, loader, shape)) for _ in range(ROUNDS + 1)][1:]
        by_hand, by_slim = (median(column) for column in zip(*speeds, strict=True))
        ratio = by_slim / by_hand
        failed += ratio < 1
        print(f"{arch}: plain loop {by_hand:,.0f} images/s, ours {by_slim:,.0f} images/s: {ratio:.2f} times")
        print(f"{'reached' if ratio >= 1 else 'NOT REACHED'}: at least as fast")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
