"""Residual blocks, which a network can be left without: what they were given passes in their place."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from slimcli.networks.layers import Layer, layers_of
from slimcli.networks.modes import evaluating, same_random_numbers

_AT_ONCE = 16
"""Images whose values before and behind all blocks are in memory together."""


@dataclass(frozen=True)
class Block:
    """A module that adds to what it is given: its conv and linear layers, and the `size` of what passes, without the batch."""

    name: str
    layers: tuple[str, ...]
    size: tuple[int, ...]


@dataclass(frozen=True)
class Chain:
    """Blocks of one stage, one behind the other, called by the first of them; in order of what they change of what passes
    (`changes`), least first.
    """

    name: str
    blocks: tuple[Block, ...]
    changes: tuple[float, ...]

    def without(self, kept: int) -> tuple[Block, ...]:
        """The blocks that go where so many are kept."""
        return self.blocks[: len(self.blocks) - kept]

    def lost(self, kept: int) -> float:
        """What goes with them: their layers, each for the share that its block changes of what passes, and all for the share of
        the chain that is gone.
        """
        gone = zip(self.without(kept), self.changes, strict=False)
        return (1 - kept / len(self.blocks)) * sum(len(block.layers) * change for block, change in gone)


@torch.no_grad()
def residual_blocks(model: nn.Module, input_shape: Sequence[int]) -> tuple[Block, ...]:
    """The blocks that the network can do without, in definition order.

    A block is one where it hands on exactly what it was given when all its parameters are zero (`relu(x + f(x))` behind another
    ReLU, `x + f(x)`), and the network without it computes what it computes with these at zero. Of modules inside each other the
    innermost one is.
    """
    reference = next(model.parameters())
    probe = torch.randn(2, *input_shape, generator=torch.Generator().manual_seed(0)).to(reference)
    names = dict(model.named_modules())
    candidates = {name: module for name, module in names.items() if name and _holds_layers(module)}
    found: dict[str, Block] = {}
    with evaluating(model), same_random_numbers(model):
        for name, (given, gave) in _passed(model, candidates, probe).items():
            inside = any(other.startswith(f"{name}.") for other in found)
            if not inside and not _shared(model, name) and _hands_on(candidates[name], given, gave):
                own = tuple(f"{name}.{layer}" for layer in layers_of(candidates[name]))
                found[name] = Block(name, own, tuple(given.shape[1:]))
        if not _without_is_zeroed(model, found, probe):
            found = {name: block for name, block in found.items() if _without_is_zeroed(model, [name], probe)}
    return tuple(found[name] for name in names if name in found)


def chains_of(blocks: Iterable[Block], changes: dict[str, float]) -> tuple[Chain, ...]:
    """Blocks, in definition order, with the same parent and the same size of what passes, as chains; `changes` by their names."""
    together: dict[tuple[str, tuple[int, ...]], list[Block]] = {}
    for block in blocks:
        together.setdefault((block.name.rpartition(".")[0], block.size), []).append(block)
    chains = []
    for each in together.values():
        ordered = sorted(each, key=lambda block: changes[block.name])
        chains.append(Chain(each[0].name, tuple(ordered), tuple(changes[block.name] for block in ordered)))
    return tuple(chains)


@torch.no_grad()
def changes(model: nn.Module, blocks: Iterable[Block], images: Tensor) -> dict[str, float]:
    """How much each block changes of what passes: `||block(x) - x|| / ||x||` over all images together."""
    modules = {block.name: model.get_submodule(block.name) for block in blocks}
    squares = {name: torch.zeros(2, dtype=torch.float64) for name in modules}
    with evaluating(model):
        for part in torch.split(images, _AT_ONCE):
            for name, (given, gave) in _passed(model, modules, part).items():
                squares[name] += torch.stack([(gave - given).double().square().sum(), given.double().square().sum()]).cpu()
    return {name: float((changed / passed).sqrt()) if passed > 0 else 0.0 for name, (changed, passed) in squares.items()}


def leave_out(model: nn.Module, names: Iterable[str]) -> None:
    """Let what the blocks of these names are given pass in their place; in place."""
    for name in names:
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, nn.Identity())


def _holds_layers(module: nn.Module) -> bool:
    return not isinstance(module, Layer) and bool(layers_of(module))


def _passed(model: nn.Module, modules: dict[str, nn.Module], images: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """What each module was given and gave, of those that are called once with a tensor and give one; the innermost first."""
    given: dict[str, list[Tensor | None]] = {name: [] for name in modules}
    gave: dict[str, Tensor | None] = {}

    def before(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            alone = len(args) == 1 and not kwargs and isinstance(args[0], Tensor)
            given[name].append(args[0].clone() if alone else None)

        return hook

    def after(name: str) -> Any:
        def hook(_: nn.Module, args: Any, output: Any) -> None:
            gave[name] = output.clone() if isinstance(output, Tensor) else None

        return hook

    hooks = [module.register_forward_pre_hook(before(name), with_kwargs=True) for name, module in modules.items()]
    hooks += [module.register_forward_hook(after(name)) for name, module in modules.items()]
    try:
        model(images)
    finally:
        for hook in hooks:
            hook.remove()
    once = {name: each[0] for name, each in given.items() if len(each) == 1}
    return {name: (x, y) for name, y in gave.items() if y is not None and (x := once.get(name)) is not None}


def _without_is_zeroed(model: nn.Module, names: Iterable[str], images: Tensor) -> bool:
    """Whether the network without these blocks computes what it computes with their parameters at zero."""
    zeroed, without = copy.deepcopy(model), copy.deepcopy(model)
    for name in names:
        _zero(zeroed.get_submodule(name))
    leave_out(without, names)
    try:
        return torch.equal(_first(zeroed(images)), _first(without(images)))
    except Exception:  # something else looks into a block
        return False


def _hands_on(module: nn.Module, given: Tensor, gave: Tensor) -> bool:
    """Whether the module hands on exactly what it was given (which must be something) when all its parameters are zero."""
    if given.shape != gave.shape or not given.any():
        return False
    silent = copy.deepcopy(module)
    _zero(silent)
    try:
        return torch.equal(silent(given.clone()), given)
    except Exception:  # it cannot compute with zeros
        return False


def _shared(model: nn.Module, name: str) -> bool:
    """Whether a parameter of the module is used under another name outside it."""
    own = set(model.get_submodule(name).parameters())
    everywhere = model.named_parameters(remove_duplicate=False)
    return any(parameter in own and not key.startswith(f"{name}.") for key, parameter in everywhere)


@torch.no_grad()
def _zero(block: nn.Module) -> None:
    for parameter in block.parameters():
        parameter.zero_()


def _first(output: Any) -> Tensor:
    return next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
