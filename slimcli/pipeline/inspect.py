"""`slim inspect`: what a network consists of, and what of it can be pruned."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from slimcli.errors import ArchError
from slimcli.networks import ARCHS, checkpoint, resolve
from slimcli.networks.blocks import residual_blocks
from slimcli.networks.cost import count
from slimcli.networks.resolve import Shape
from slimcli.pruning import surgery
from slimcli.pruning.verification import verify
from slimcli.records import JsonDict


def inspect(
    model: str,
    arch: str | None = None,
    trust_pickle: bool = False,
    linear: bool = False,
    input_shape: Shape | None = None,
    classes: int | None = None,
) -> JsonDict:
    """Layers with their costs, verified channel groups, and the residual blocks that may be left out.

    `model` is a file or the name of a network (for `classes`).
    """
    left_out: tuple[str, ...] = ()
    built_in = ARCHS.get(model.partition("(")[0])
    if arch is None and not Path(model).exists() and (built_in or ":" in model):
        name, shape = model, input_shape or (built_in.input_shape if built_in else (3, 224, 224))
        network = resolve.build(model, classes or (10 if built_in else 1000), shape)
    elif arch is None and not Path(model).suffix and not Path(model).exists():
        resolve.build(model, 10, (3, 32, 32))  # an unknown name: says so, and suggests the nearest
        raise ArchError(f"there is no file or network {model!r}", "see `slim list archs`")
    else:
        loaded = checkpoint.load(model, arch, trust_pickle, input_shape)
        name, shape, network, left_out = loaded.arch, loaded.input_shape, loaded.build(), loaded.left_out
    groups = verify(network, shape, surgery.find_groups(network, shape, linear))
    cost = count(network, shape)
    macs = {layer.name: layer.macs for layer in cost.layers}
    return {
        "arch": name,
        "input_shape": list(shape),
        "macs": cost.macs,
        "params": cost.params,
        "layers": [asdict(layer) for layer in cost.layers],
        "groups": [
            {
                "layers": list(group.layers),
                "channels": group.width,
                "together": group.per_unit,
                "macs": sum(macs[layer] for layer in group.layers),
                "prunable": group.prunable,
                "reason": group.reason,
            }
            for group in groups
        ],
        "blocks": [block.name for block in residual_blocks(network, shape)],
        "left_out": list(left_out),
    }
