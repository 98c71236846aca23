"""What a look at the flows costs: information flow against a forward pass, gradient flow against forward and backward, and
both at their default number of images against an epoch of training on MNIST or CIFAR-10 (less the tenth that is held out).
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from slimcli.data.memory import ImageLoader
from slimcli.networks import resolve
from slimcli.pruning.dataflow import consecutive
from slimcli.pruning.flow import gradient_flow, information_flow
from slimcli.settings import FLOW_SAMPLES, GRADIENT_SAMPLES, FitSettings
from slimcli.training.engine import Engine

IMAGES, BATCH, ROUNDS, LIMIT = FLOW_SAMPLES, 128, 7, 1.15
OF_AN_EPOCH = 0.05
"""The most that a look at the information flow may cost of an epoch."""
NETWORKS = {"lenet5": ((1, 28, 28), 54_000), "resnet20-cifar": ((3, 32, 32), 45_000)}
"""The shape of its images, and how many an epoch has."""


def measure(arch: str) -> bool:
    """Print both ratios of one network; whether they are within the limit."""
    (shape, epoch), count = NETWORKS[arch], IMAGES
    model = resolve.build(arch, 10, shape).eval()
    images, labels = torch.randn(count, *shape), torch.randint(10, (count,))
    writers = consecutive(model, shape)
    weights = list(model.parameters())

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        return zip(images.split(BATCH), labels.split(BATCH), strict=True)

    @torch.no_grad()
    def forward() -> None:
        for part, _ in batches():
            model(part)

    def backward() -> None:
        for part, answers in batches():
            torch.autograd.grad(F.cross_entropy(model(part), answers), weights)

    raw = torch.randint(256, (count, *shape), dtype=torch.uint8)
    part = ImageLoader(raw, labels, (0.5,) * shape[0], (0.25,) * shape[0], BATCH, shuffle=True)
    trainer, trained = Engine(FitSettings(device="cpu")), copy.deepcopy(model)

    runs: dict[str, Callable[[], object]] = {
        "training": lambda: trainer.fit(trained, part, 1, "bench"),
        "forward": forward,
        "information": lambda: information_flow(model, batches(), writers=writers),
        "backward": backward,
        "gradient": lambda: gradient_flow(model, batches()),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(ROUNDS + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - started)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = {"information": middle["information"] / middle["forward"], "gradient": middle["gradient"] / middle["backward"]}
    print(
        f"{arch}, {count} images: information flow {ratios['information']:.2f} of a forward pass ({middle['forward']:.2f} s), "
        f"gradient flow {ratios['gradient']:.2f} of forward and backward ({middle['backward']:.2f} s)"
    )
    wanted = {"information": FLOW_SAMPLES, "gradient": GRADIENT_SAMPLES}
    shares = {name: middle[name] * wanted[name] / (middle["training"] * epoch) for name in ratios}
    print(
        f"{arch}: of an epoch of {epoch:,} images a look at the information flow takes {shares['information']:.1%}, at the "
        f"gradient flow {shares['gradient']:.1%}; of one of 16,000 images {shares['information'] * epoch / 16_000:.1%} and "
        f"{shares['gradient'] * epoch / 16_000:.1%}"
    )
    return max(ratios.values()) <= LIMIT and shares["information"] <= OF_AN_EPOCH


def main() -> int:
    """1 where a ratio is above the limit."""
    torch.manual_seed(0)
    met = [measure(arch) for arch in NETWORKS]
    print(f"asked for: at most {LIMIT} each, and at most {OF_AN_EPOCH:.0%} of an epoch for the information flow")
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
