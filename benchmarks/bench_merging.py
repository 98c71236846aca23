"""What tying weights and teaching cost: a ResNet-20 epoch with each, against a plain one. One epoch of each, in turn."""

from __future__ import annotations

import statistics
import sys
import time

import torch

from slimcli.data.memory import Augment, ImageLoader
from slimcli.networks.resnet import resnet20
from slimcli.pruning import merging, surgery
from slimcli.pruning.wiring import wiring_of
from slimcli.settings import FitSettings
from slimcli.training.engine import Engine
from slimcli.training.losses import Objective, Teacher

SHAPE, IMAGES, ROUNDS = (3, 32, 32), 2048, 5
TIED, TAUGHT = 1.15, 1.6


def main() -> int:
    """Print the ratios; 1 where one is above what was asked for."""
    torch.manual_seed(0)
    images = torch.randint(256, (IMAGES, *SHAPE), dtype=torch.uint8)
    labels = torch.randint(10, (IMAGES,))
    loader = ImageLoader(images, labels, (0.5,) * 3, (0.25,) * 3, 128, shuffle=True, augment=Augment(4, flip=True))
    model = resnet20(10, SHAPE)
    engine = Engine(FitSettings(device="cpu"))
    groups = [group for group in surgery.find_groups(model, SHAPE) if group.prunable]
    wirings = wiring_of(model, SHAPE, groups)
    ties = []
    for group in groups:
        pairs = tuple((2 * number, 2 * number + 1) for number in range(group.channels // 8))  # a quarter of the filters in pairs
        ties.append(merging.TiedUnits(wirings[group.name], pairs, merging.is_scalable(model, SHAPE, wirings[group.name])))
    objectives = {
        "plain": Objective(),
        "tied": Objective(constraint=merging.WeightTie(ties)),
        "taught": Objective(teacher=Teacher(model, 0.5, 4.0)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in objectives}
    for number in range(ROUNDS + 1):
        for name, objective in objectives.items():
            started = time.perf_counter()
            engine.fit(model, loader, 1, "bench", objective)
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - started)
    plain, tied, taught = (statistics.median(seconds[name]) for name in objectives)
    met = tied / plain <= TIED and taught / plain <= TAUGHT
    print(f"a plain epoch of {IMAGES} images {plain:.2f} s, tied {tied:.2f} s, taught by itself {taught:.2f} s")
    print(f"tied: {tied / plain:.2f} of a plain epoch (asked for: at most {TIED})")
    print(f"taught: {taught / plain:.2f} of a plain epoch (asked for: at most {TAUGHT})")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
