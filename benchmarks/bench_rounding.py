"""What widths that this machine runs fast are worth: slim networks of equal MACs, with and without `--round-to auto`.

ResNet-18, VGG-16 and MobileNetV2 at about half of their MACs, untrained (latency does not ask for accuracy);
batch 1, one thread, dense, unrounded and rounded interleaved in onnxruntime.
"""

from __future__ import annotations

import copy
import math
import sys
import tempfile
import time
from pathlib import Path

import torch

from slimcli.deploy.bench import bench
from slimcli.deploy.onnx import export_onnx
from slimcli.networks.cost import count
from slimcli.networks.resolve import build
from slimcli.pipeline.plan import Plan
from slimcli.pipeline.state import Network
from slimcli.pruning import methods, surgery
from slimcli.pruning.history import NormHistory
from slimcli.settings import PruneSettings

NETWORKS = {
    "torchvision:resnet18": (3, 224, 224),
    "torchvision:vgg16": (3, 224, 224),
    "torchvision:mobilenet_v2": (3, 224, 224),
}
ASKED, EQUAL, RUNS = 1.15, 0.02, 200


def main() -> int:
    gains = []
    for name, shape in NETWORKS.items():
        torch.manual_seed(0)
        model = build(name, 1000, shape).eval()
        groups = surgery.find_groups(model, shape)
        dense = Network(model, NormHistory(), groups, count(model, shape))
        started = time.perf_counter()
        budget = plan(dense, shape, round_to="auto").budget
        rounded, multiples = budget.units, sorted(set(budget.multiples.values()))
        seconds = time.perf_counter() - started
        slim = {"rounded": cut(dense, shape, {g.name: g.channels - rounded[g.name] for g in dense.prunable})}
        share = count(slim["rounded"], shape).macs / dense.cost.macs
        # What a loop without rounding ends with at the same budget: every group loses the same share.
        everything = {g.name: g.channels - g.least for g in dense.prunable}
        slim["unrounded"] = cut(dense, shape, plan(dense, shape, (1,), share).budget.trim(everything, dense))
        with tempfile.TemporaryDirectory() as folder:
            paths = []
            for kind, network in {"unrounded": slim["unrounded"], "rounded": slim["rounded"], "dense": model}.items():
                paths.append(export_onnx(network, Path(folder) / f"{kind}.onnx", torch.randn(1, *shape), tolerance=1e-2).path)
            result = bench(paths, names=["unrounded", "rounded", "dense"], runs=RUNS)
        macs = {kind: count(network, shape).macs for kind, network in slim.items()}
        ms = {kind: latency.p50 for kind, latency in result.latencies}
        gain = result.ratios[0]
        assert abs(macs["rounded"] / macs["unrounded"] - 1) < EQUAL
        gains.append(gain.ratio)
        print(
            f"{name}: asked for 50 %, {share:.1%} of the MACs rounded, {macs['unrounded'] / dense.cost.macs:.1%} unrounded "
            f"(by {', '.join(map(str, multiples))}, found in {seconds:.0f} s); "
            f"p50 dense {ms['dense']:.2f} ms, unrounded {ms['unrounded']:.2f}, "
            f"rounded {ms['rounded']:.2f}: {gain.ratio:.2f} times faster ({gain.low:.2f} to {gain.high:.2f})",
            flush=True,
        )
    mean = math.exp(sum(map(math.log, gains)) / len(gains))
    print(f"{'reached' if mean >= ASKED else 'NOT REACHED'}: {mean:.2f} times faster (geometric mean), asked for {ASKED}")
    return int(mean < ASKED)


def plan(dense: Network, shape: tuple[int, ...], round_to: str | tuple[int, ...], macs: float = 0.5) -> Plan:
    return Plan.of(methods.resolve(PruneSettings(method="l1", macs=macs, round_to=round_to)), dense, shape)


def cut(dense: Network, shape: tuple[int, ...], counts: dict[str, int]) -> torch.nn.Module:
    """A copy of the dense network without so many units of each group."""
    model = copy.deepcopy(dense.model)
    surgery.remove(model, shape, {name: tuple(range(number)) for name, number in counts.items()})
    return model.eval()


if __name__ == "__main__":
    sys.exit(main())
