"""What a look at the flows costs: information flow against a forward pass, gradient flow against forward and backward."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from slimcli.networks import resolve
from slimcli.pruning.flow import consecutive, gradient_flow, information_flow

IMAGES, BATCH, ROUNDS, LIMIT = 2048, 128, 7, 1.15
NETWORKS = {"lenet5": (1, 28, 28), "resnet20-cifar": (3, 32, 32)}


def measure(arch: str) -> bool:
    """Print both ratios of one network; whether they are within the limit."""
    shape, count = NETWORKS[arch], IMAGES
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

    runs: dict[str, Callable[[], object]] = {
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
    return max(ratios.values()) <= LIMIT


def main() -> int:
    """1 where a ratio is above the limit."""
    torch.manual_seed(0)
    met = [measure(arch) for arch in NETWORKS]
    print(f"asked for: at most {LIMIT} each")
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
