"""Every classification network of torchvision (and some of timm), pruned to half its MACs and proven: `docs/zoo.md`.

    python benchmarks/zoo.py                          # all of them: hours
    python benchmarks/zoo.py torchvision:resnet18     # these
    python benchmarks/zoo.py --gigabytes 8 --minutes 20

Each network runs in a process of its own, under a limit of memory and time. What is done already is kept in `--records`
(a line of JSON for each network), and not done again.

torch-pruning is given a process and the same limits of its own.

"Right" means: in float64, with batch norm fitted to random images, the slim network computes what the dense one computes with
the removed channels at zero, and zeroing them changes something; at two batch sizes; after loading in a fresh process; in
onnxruntime. The same equality is asked of what torch-pruning's own `BasePruner` gives.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, TensorDataset

TIMM = """
    resnet26d seresnet33ts resnest14d skresnet18 res2net50_26w_4s dla34 dpn68 tf_efficientnetv2_b0 efficientnet_lite0
    mobilenetv2_100 mobilenetv3_large_100 mobilenetv4_conv_small mnasnet_100 fbnetc_100 spnasnet_100 mixnet_s hardcorenas_a
    tinynet_a lcnet_050 ghostnet_100 rexnet_100 regnetz_b16 nf_regnet_b0 convnext_atto convnextv2_atto convmixer_768_32
    inception_v4 xception41 cspresnet50 cspdarknet53 ese_vovnet19b_dw hrnet_w18_small selecsls42b repvgg_a0 mobileone_s0
    gernet_s repghostnet_050 inception_next_atto edgenext_xx_small starnet_s1
"""
"""Forty convolutional networks of as many families, where timm is installed."""

CLASSES, SIDE = 1000, 96
EXAMINED = "SLIM_ZOO"
"""Environment variable that names the network whose images a child makes."""
FIXED = {"inception_v3": 299, "vit": 224, "swin": 224, "maxvit": 224}
"""Networks that are made for one size (or, in training, for no smaller one), by how their names begin. The others have the same
groups at a size that takes a fifth of the time.
"""
MOST_PARAMETERS = 150e6
ABOUT = """# The zoo

Classification networks pruned to half of their MACs and checked (`python benchmarks/zoo.py`, which says how). Right is where
at least a quarter of the MACs is gone and nothing is wrong; of torch-pruning's own `BasePruner` only the equality is asked.
A refusal leaves the network as it was. Figures are shares of MACs and of parameters removed; seconds (one thread) and GiB
are those of `hbfp` and `l1` together.
"""
RIGHT = 1e-6
"""Largest error, as a share of what zeroing the channels changes; rounding in float64 is 1e-13."""


def main() -> None:
    """Run what was asked for and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archs", nargs="*")
    parser.add_argument("--out", type=Path, default=Path("docs/zoo.md"))
    parser.add_argument("--records", type=Path, default=Path("build/zoo.jsonl"), help="what is done already")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--gigabytes", type=float, default=12)
    parser.add_argument("--by", choices=EXAMINERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.by:
        print(json.dumps(EXAMINERS[options.by](*made(options.archs[0]))))
        return
    records = options.records
    records.parent.mkdir(parents=True, exist_ok=True)
    done = {line["arch"]: line for line in map(json.loads, records.read_text().splitlines())} if records.exists() else {}
    for arch in options.archs or zoo():
        if arch not in done:
            limits = options.minutes * 60, options.gigabytes * 2**30
            found = {by: limited(arch, by, *limits) for by in EXAMINERS}
            done[arch] = {"arch": arch} | found["slim"] | {"torch-pruning": found["torch-pruning"]}
            with records.open("a") as file:
                file.write(json.dumps(done[arch]) + "\n")
            print(line_of(done[arch]), flush=True)
    options.out.write_text(table(list(done.values())))


def zoo() -> list[str]:
    """The classification networks of torchvision up to 150 million parameters, the small ones first; then those of timm."""
    from torchvision import models

    sizes = {name: models.get_model_weights(name).DEFAULT.meta["num_params"] for name in models.list_models(module=models)}
    small = [name for name in sorted(sizes, key=sizes.__getitem__) if sizes[name] <= MOST_PARAMETERS]
    timm = TIMM.split() if importlib.util.find_spec("timm") else []
    return [*(f"torchvision:{name}" for name in small), *(f"timm:{name}" for name in timm)]


def limited(arch: str, by: str, seconds: float, most: float) -> dict[str, Any]:
    """What a process of its own finds out about the network, its seconds and its peak memory; or why it was ended."""
    started, peak, ended = time.perf_counter(), 0, ""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        command, variables = [sys.executable, __file__, arch, "--by", by], os.environ | {EXAMINED: arch}
        process = subprocess.Popen(command, stdout=out, stderr=errors, env=variables)
        while process.poll() is None:
            time.sleep(0.2)
            peak = max(peak, memory_of(process.pid))
            if time.perf_counter() - started > seconds:
                ended = f"ended after {seconds / 60:.0f} minutes"
            elif peak > most:
                ended = f"ended at {peak / 2**30:.1f} GiB"
            if ended:
                process.kill()
                process.wait()
        out.seek(0)
        errors.seek(0)
        found = json.loads(out.read().splitlines()[-1]) if process.returncode == 0 else {}
        fault = "" if found else ended or (errors.read().strip().splitlines() or [f"exit code {process.returncode}"])[-1]
    return found | {"fault": fault, "seconds": time.perf_counter() - started, "peak": peak}


def memory_of(pid: int) -> int:
    """The process's largest resident memory so far, in bytes."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def images() -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Random images for training and testing: nothing is learned from them here."""
    generator, shape = torch.Generator().manual_seed(0), shape_of(os.environ[EXAMINED])

    def loader(count: int) -> DataLoader[Any]:
        labels = torch.arange(count) % CLASSES
        labels[0] = CLASSES - 1
        return DataLoader(TensorDataset(torch.randn(count, *shape, generator=generator), labels), 4)

    return loader(20), loader(4)


def shape_of(arch: str) -> tuple[int, int, int]:
    """The images that a network is examined with."""
    name = arch.partition(":")[2]
    side = next((side for beginning, side in FIXED.items() if name.startswith(beginning)), SIDE)
    return 3, side, side


def made(arch: str) -> tuple[str, nn.Module, Any, Tensor]:
    """The network after a few steps on random images, its history of norms, and images to examine it with."""
    import slimcli
    from slimcli.networks import resolve

    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = shape_of(arch)
    model = resolve.build(arch, CLASSES, shape)
    history = slimcli.NormHistory(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    probe = torch.randn(4, *shape, generator=torch.Generator().manual_seed(1))
    model.train()
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(first(model(probe)), torch.arange(4)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        history.record()
    fit_norms(model, probe)
    return arch, model, history, probe


def by_slim(arch: str, model: nn.Module, history: Any, probe: Tensor) -> dict[str, Any]:
    """What the table says of the network pruned by two methods."""
    return {
        "hbfp": pruned_by("hbfp", arch, model, history, probe, merge=False, penalty="none"),
        "l1": pruned_by("l1", arch, model, history, probe),
    }


def first(output: Any) -> Tensor:
    """Of a network with several outputs the first one."""
    return next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))


@torch.no_grad()
def fit_norms(model: nn.Module, probe: Tensor) -> None:
    """Batch-norm statistics of the probe: an untrained network otherwise gives all images the same outputs."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None
            module.reset_running_stats()
    model.train()(probe)
    model.eval()


def pruned_by(method: str, arch: str, model: nn.Module, history: Any, probe: Tensor, **settings: Any) -> dict[str, Any]:
    """Prune to half the MACs without training, and check the result in every way."""
    import slimcli
    from slimcli.pruning.graph import Graph

    try:
        pruned = slimcli.prune(
            model,
            history=history,
            method=method,
            data=f"{__file__}:images",
            macs=0.5,
            amount="50%",
            epochs=0,
            tie_epochs=0,
            final_epochs=0,
            max_drop=100.0,
            distill=False,
            linear=True,
            device="cpu",
            **settings,
        )
    except slimcli.errors.SlimError as error:
        return {"refused": str(error)}
    shape = tuple(probe.shape[1:])
    dense_cost = slimcli.count(model, shape)
    graph = Graph(copy.deepcopy(model), shape)
    zeroed: dict[str, set[int]] = {}
    for group in pruned.groups:
        units = {
            unit
            for member in group.members
            for unit, channel in enumerate(member.channels)
            if group.prunable and channel in pruned.removed.get(member.layer, ())
        }
        if units:
            for module, own, _ in graph.outputs(graph.group(group.name, sorted(units))):
                zeroed.setdefault(graph.names[module], set()).update(own)
    return {
        "macs": 1 - pruned.cost.macs / dense_cost.macs,
        "params": 1 - pruned.cost.params / dense_cost.params,
        "groups": len(pruned.groups),
        "frozen": {group.name: group.reason for group in pruned.groups if not group.prunable},
        "equal": equality(model, pruned.model, zeroed, probe),
        "loads": loads(arch, pruned.model, probe),
        "exports": exports(pruned.model, probe),
    }


@torch.no_grad()
def equality(dense: nn.Module, slim: nn.Module, zeroed: Mapping[str, Sequence[int] | set[int]], probe: Tensor) -> str:
    """Empty where the slim network computes what the dense one does with these channels at zero, at two batch sizes."""
    dense, slim = (copy.deepcopy(each).double().eval() for each in (dense, slim))
    probe = probe.double()
    plain = first(dense(probe))

    def zero(channels: Sequence[int] | set[int]) -> Any:
        def hook(module: nn.Module, _: Any, output: Tensor) -> Tensor:
            axis = output.ndim - 1 if isinstance(module, nn.Linear | nn.LayerNorm) else 1
            return output.index_fill(axis, torch.tensor(sorted(channels)), 0.0)

        return hook

    handles = [dense.get_submodule(name).register_forward_hook(zero(channels)) for name, channels in zeroed.items()]
    expected = first(dense(probe))
    for handle in handles:
        handle.remove()
    changed = float((expected - plain).abs().max())
    if not changed > 1e-9 * float(plain.std()):
        return "zeroing changes nothing"
    for count in (len(probe), 1):
        try:
            found = first(slim(probe[:count]))
        except Exception as error:
            return f"fails: {type(error).__name__}"
        off = float((found - expected[:count]).abs().max())
        if not off <= RIGHT * changed:
            return f"differs by {off / changed:.1e} of what zeroing changes"
    return ""


def loads(arch: str, slim: nn.Module, probe: Tensor) -> str:
    """Empty where the saved network, loaded in a fresh process without torch-pruning, computes the same bits."""
    from slimcli.networks import checkpoint

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        checkpoint.save(path / "slim.pt", checkpoint.Checkpoint(slim.state_dict(), arch, CLASSES, tuple(probe.shape[1:])))
        with torch.no_grad():
            torch.save((probe[:2], first(slim.eval()(probe[:2]))), path / "expected.pt")
        code = (
            "import sys, torch, slimcli; torch.set_num_threads(1); sys.modules['torch_pruning'] = None\n"
            f"model = slimcli.load({str(path / 'slim.pt')!r}); probe, expected = torch.load({str(path / 'expected.pt')!r})\n"
            "with torch.no_grad(): found = model(probe)\n"
            "sys.exit(0 if torch.equal(found, expected) else 'other outputs')"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["fails"])[-1]


def exports(slim: nn.Module, probe: Tensor) -> str:
    """Empty where the exported file computes the same in onnxruntime."""
    import slimcli

    with tempfile.TemporaryDirectory() as folder:
        try:
            slimcli.export_onnx(slim, Path(folder) / "slim.onnx", probe)
        except slimcli.errors.SlimError as error:
            return str(error)
    return ""


def by_torch_pruning(arch: str, model: nn.Module, history: Any, probe: Tensor) -> dict[str, Any]:
    """What its `BasePruner` makes of the network at the ratio that halves the MACs of a chain, by the same equality."""
    import torch_pruning as tp

    import slimcli

    network = copy.deepcopy(model)
    names = {module: name for name, module in network.named_modules()}
    outputs = [
        module
        for module in network.modules()
        if CLASSES in (getattr(module, "out_features", 0), getattr(module, "out_channels", 0))
    ]
    zeroed: dict[str, set[int]] = {}
    kept: dict[str, list[int]] = {}
    try:
        pruner = tp.pruner.BasePruner(
            network, probe[:2], importance=tp.importance.MagnitudeImportance(p=1), pruning_ratio=0.3, ignored_layers=outputs
        )
        for group in pruner.step(interactive=True):
            for dep, own in group:
                module = dep.target.module
                if module in names and pruner.DG.is_out_channel_pruning_fn(dep.handler):
                    name = names[module]
                    before = kept.setdefault(name, list(range(width_of(model.get_submodule(name)))))
                    gone = {before[index] for index in own if index < len(before)}
                    zeroed.setdefault(name, set()).update(gone)
                    kept[name] = [channel for channel in before if channel not in gone]
            group.prune()
        shape = tuple(probe.shape[1:])
        macs = 1 - slimcli.count(network, shape).macs / slimcli.count(model, shape).macs
        return {"equal": equality(model, network, zeroed, probe), "macs": macs}
    except Exception as error:
        return {"refused": type(error).__name__}


EXAMINERS = {"slim": by_slim, "torch-pruning": by_torch_pruning}
"""Each has a process of its own: torch-pruning takes more memory than all else for some networks."""


def width_of(module: nn.Module) -> int:
    """The channels that a module gives."""
    for key in ("out_channels", "out_features", "num_features", "normalized_shape"):
        if hasattr(module, key):
            value = getattr(module, key)
            return int(value[-1] if isinstance(value, tuple) else value)
    return 0


FAULTS = ("fault", "refused", "equal", "loads", "exports")
"""What can be wrong: a process that was ended or broke, and what an examination found."""


def is_right(of: Mapping[str, Any]) -> bool:
    """Whether a quarter of the MACs is gone and nothing is wrong."""
    return of.get("macs", 0.0) >= 0.25 and not any(of.get(key) for key in FAULTS)


def verdict_of(of: Mapping[str, Any]) -> str:
    """MACs and parameters removed, and what is wrong, if anything is."""
    faults = [shorten(f"{key}: {of[key]}" if key != "fault" else of[key], 160) for key in FAULTS if of.get(key)]
    sizes = f"{of['macs']:.0%}" + (f", {of['params']:.0%}" if "params" in of else "") if "macs" in of else ""
    return "; ".join(filter(None, [sizes, *faults]))


def _counts(family: str, records: Sequence[Mapping[str, Any]]) -> str:
    """How many of a family each method prunes right."""
    right = (sum(is_right(record.get(method, {})) for record in records) for method in ("hbfp", "l1", "torch-pruning"))
    return f"| {family} | {len(records)} | {' | '.join(map(str, right))} |"


def line_of(record: Mapping[str, Any]) -> str:
    """A row of the table."""
    end = f"{record['seconds']:.0f} | {record['peak'] / 2**30:.1f} |"
    theirs = verdict_of(record["torch-pruning"])
    if record["fault"]:
        return f"| {record['arch']} | {record['fault']} | | | {theirs} | {end}"
    frozen = list(record["hbfp"].get("frozen", {}).values())
    stay = "; ".join(f"{frozen.count(reason)}: {reason}" for reason in dict.fromkeys(frozen))
    ours = verdict_of(record["hbfp"]), verdict_of(record["l1"])
    cells = (*ours, f"of {record['hbfp'].get('groups', '?')}, {stay}", theirs)
    return f"| {record['arch']} | {' | '.join(cells)} | {end}"


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """The page."""
    families = dict.fromkeys(record["arch"].partition(":")[0] for record in records)
    return "\n".join(
        [
            ABOUT,
            "| | networks | right by `hbfp` | by `l1` | by torch-pruning |",
            "| --- | --- | --- | --- | --- |",
            *(_counts(family, [record for record in records if record["arch"].startswith(family)]) for family in families),
            "",
            "| network | hbfp | l1 | groups that stay | torch-pruning | seconds | GiB |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *map(line_of, records),
            "",
        ]
    )


if __name__ == "__main__":
    main()
