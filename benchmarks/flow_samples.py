"""How many images a flow must be measured on: the stop decisions of each number against those of the whole training set.

    python benchmarks/flow_samples.py lenet5 fashion-mnist
    python benchmarks/flow_samples.py resnet20-cifar cifar10 --checkpoint FILE --images 20000 \
        --epochs 2 --iterations 4 --samples 512 2048 8192

Along SAP's iterations (p, q = 0.5, 1; single weights) the network is measured after each removal and each epoch of retraining,
on the first N images for each N, and on all. A decision is the epoch at which the rule `if` (or `gf`) stops the retraining of an
iteration, without an epsilon and for several, and the number of epochs that `flow` gives it. Each N has its own dense flow, and
its own epsilons (the same shares of the mean distance on N images): a relative distance has another scale on another number of
images, and who names an epsilon names it for the number that is used. A study tells much only where many of the decisions on all
images fall between the first and the last epoch: how many is printed.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from slimcli.data.sources import open_data
from slimcli.networks import checkpoint, resolve
from slimcli.pipeline.looks import FLOW_IMAGES
from slimcli.pruning import flow, masks
from slimcli.pruning.dataflow import consecutive
from slimcli.pruning.gap import gap, surviving
from slimcli.pruning.sparsity import sap_amount
from slimcli.pruning.stopping import FlowNoNearer, FlowWithin, Look, Rule, allotment
from slimcli.settings import TrainSettings
from slimcli.training.engine import Engine, Epoch, FitState, seed_everything

SAMPLES = (128, 256, 512, 1024, 2048, 4096, 8192)
FACTORS = (0.8, 1.0, 1.25)
"""The epsilons, of the mean distance: a number of images that only suits one epsilon suits none."""
KINDS = ("if", "gf")
MOST = 20
"""Epochs of one retraining."""


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("arch")
    parser.add_argument("data")
    parser.add_argument("--checkpoint")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--images", type=int)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--samples", type=int, nargs="+", default=SAMPLES)
    parser.add_argument("--mean", type=float, nargs="+")
    parser.add_argument("--std", type=float, nargs="+")
    options = parser.parse_args()
    settings = TrainSettings(
        arch=options.arch,
        data=options.data,
        train_samples=options.images,
        lr=options.lr,
        label_smoothing=0.0,
        mean=options.mean,
        std=options.std,
    )
    engine = Engine(settings)
    data = open_data(settings, batch_size=128, seed=0, device=str(engine.device))
    if options.checkpoint:
        model = checkpoint.load(Path(options.checkpoint), options.arch).build()
    else:
        model = resolve.build(options.arch, data.classes, data.shape)
        engine.fit(model, data.train, 10, "dense")
    model.to(engine.device).eval()
    writers = consecutive(model, data.shape)
    sizes = [*(count for count in options.samples if count < data.train.samples), data.train.samples]

    def batches(count: int) -> Iterator[tuple[Tensor, Tensor]]:
        seed_everything(0, FLOW_IMAGES)
        return islice(data.train.epoch(0), -(-count // 128))

    seconds = {(kind, count): 0.0 for kind in KINDS for count in sizes}

    def measured(network: nn.Module) -> dict[tuple[str, int], flow.Flow]:
        found: dict[tuple[str, int], flow.Flow] = {}
        for kind, count in seconds:
            started = time.perf_counter()
            found[kind, count] = (
                flow.information_flow(network, batches(count), writers=writers)
                if kind == "if"
                else flow.gradients(network, batches(count))
            )
            if engine.device.type == "cuda":
                torch.cuda.synchronize()
            seconds[kind, count] = time.perf_counter() - started
        return found

    def distance(kind: str, now: flow.Flow, then: flow.Flow, held: masks.Masks | None = None) -> float:
        if kind == "gf":
            now, then = (flow.filter_gradients(model, each, held) for each in (now, then))
        elif held is not None:
            now, then = (surviving(each, masks.dead_filters(model, held)) for each in (now, then))
        return gap(now, then).total

    dense = measured(model)
    started = time.perf_counter()
    engine.fit(copy.deepcopy(model), data.train, 1, "timed", schedule="constant")
    epoch_seconds = time.perf_counter() - started
    held, total = masks.full(model), masks.alive(masks.full(model))
    looks: list[dict[tuple[str, int], list[Look]]] = []
    owed, allotted = dict.fromkeys(sizes, 0.0), {count: list[int]() for count in sizes}
    for iteration in range(1, options.iterations + 1):
        counts = {name: sap_amount(vector, 0.5, 1.0) for name, vector in masks.survivors(model, held).items()}
        before = measured(model)
        held = masks.without_smallest(model, held, counts)
        masks.apply(model, held)
        after = measured(model)
        for size in sizes:
            broken = distance("if", after["if", size], before["if", size], held)
            epochs, owed[size] = allotment(owed[size] + broken**2)
            allotted[size].append(min(epochs, MOST))
        seen = {key: [Look(None, distance=distance(key[0], found, dense[key], held))] for key, found in after.items()}

        def look(epoch: Epoch, state: FitState, held: masks.Masks = held, seen: dict[tuple[str, int], list[Look]] = seen) -> None:
            model.eval()
            for key, found in measured(model).items():
                seen[key].append(Look(epoch.loss, distance=distance(key[0], found, dense[key], held)))
            model.train()

        with masks.held(model, held):
            engine.fit(model, data.train, options.epochs, f"retrain {iteration}", after_epoch=look, schedule="constant")
        looks.append(seen)
        for kind in KINDS:
            ends = ", ".join(f"{count}: {seen[kind, count][-1].distance:.3f}" for count in sizes)
            print(
                f"iteration {iteration}, {masks.alive(held) / total:.1%} of the weights, {kind}, last distance: {ends}",
                flush=True,
            )

    print(f"\n{options.arch}, {data.name}, {data.train.samples} images, an epoch {epoch_seconds:.1f} s\n")
    whole = sizes[-1]
    means = {key: statistics.mean(look.distance or 0.0 for seen in looks for look in seen[key]) for key in seconds}
    rules: dict[tuple[str, int], list[Rule]] = {
        key: [FlowNoNearer(), *(FlowWithin(mean * factor) for factor in FACTORS)] for key, mean in means.items()
    }
    for kind in KINDS:
        stops = [stop(rule, seen[kind, whole]) for seen in looks for rule in rules[kind, whole]]
        one, never = stops.count(1), stops.count(options.epochs + 1)
        between = len(stops) - one - never
        print(f"{kind}, on all images: {one} decisions for one epoch, {never} never met, {between} in between")
    print("\n| images | flow | mean distance | its error | decisions as on all | without epsilon | a look, of an epoch |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for kind in KINDS:
        for count in sizes:
            errors = [
                abs(own.distance - exact.distance) / exact.distance
                for seen in looks
                for own, exact in zip(seen[kind, count], seen[kind, whole], strict=True)
                if own.distance is not None and exact.distance
            ]
            same = [
                [
                    stop(own, seen[kind, count]) == stop(exact, seen[kind, whole])
                    for own, exact in zip(rules[kind, count], rules[kind, whole], strict=True)
                ]
                for seen in looks
            ]
            print(
                f"| {count:,} | {kind} | {means[kind, count]:.3f} | {statistics.mean(errors):.1%} "
                f"| {sum(map(sum, same))} of {sum(map(len, same))} "
                f"| {sum(first for first, *_ in same)} of {len(same)} | {seconds[kind, count] / epoch_seconds:.1%} |"
            )
    print("\nepochs that the rule flow gives out:\n")
    for count in sizes:
        print(f"| {count:,} | {' '.join(map(str, allotted[count]))} |")


def stop(rule: Rule, looks: list[Look]) -> int:
    """The epoch after which the rule ends the retraining; one more than there were where it is never met."""
    return next((at for at in range(len(looks)) if rule.enough(looks[: at + 1])), len(looks))


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
