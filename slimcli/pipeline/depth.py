"""Which residual blocks a network is left without: those that are named, or may be, with what each changes."""

from __future__ import annotations

import fnmatch

import torch
from torch import nn

from slimcli import processes
from slimcli.data.loaders import Data
from slimcli.errors import SettingsError
from slimcli.networks.blocks import Block, Chain, chains_of, changes, residual_blocks
from slimcli.pipeline.decisions import first_batches
from slimcli.pruning.methods import ONE_PROCESS
from slimcli.settings import AUTO, PruneSettings

IMAGES = 512
"""On how many training images it is measured what a block changes."""


def named(model: nn.Module, data: Data, settings: PruneSettings) -> tuple[str, ...]:
    """The blocks that `--leave-out` names; `SettingsError` for a name or pattern that is none's, or excluded."""
    if settings.leave_out in (None, (AUTO,)):
        return ()
    known = _found(model, data)
    chosen: set[str] = set()
    for pattern in settings.leave_out or ():
        matching = [block for block in known if fnmatch.fnmatch(block.name, pattern)]
        if not matching:
            hint = _nearest(pattern, [block.name for block in known])
            raise SettingsError(f"--leave-out {pattern!r} matches no residual block", hint)
        kept = [block for block in matching if _excluded(block, settings)]
        if len(kept) == len(matching):
            raise SettingsError(f"--leave-out {pattern!r} and --exclude are of the same layers", "leave one of the two out")
        chosen |= {block.name for block in matching if block not in kept}
    return tuple(block.name for block in known if block.name in chosen)


def chains(model: nn.Module, data: Data, settings: PruneSettings) -> tuple[Chain, ...]:
    """The chains of blocks that `--leave-out auto` may shorten, none without it."""
    if settings.leave_out != (AUTO,):
        return ()
    if processes.world() > 1:
        raise SettingsError(*ONE_PROCESS)
    taking_part = [block for block in _found(model, data) if _included(block, settings) and not _excluded(block, settings)]
    if not taking_part:
        raise SettingsError("--leave-out auto: no residual block takes part", "see --include and --exclude")
    images = torch.cat([batch[0] for batch in first_batches(data.train, IMAGES)])[:IMAGES]
    return chains_of(taking_part, changes(model, taking_part, images.to(next(model.parameters()).device)))


def _found(model: nn.Module, data: Data) -> tuple[Block, ...]:
    found = residual_blocks(model, data.shape)
    if not found:
        raise SettingsError(
            "--leave-out: the network has no residual blocks that it can do without (x + f(x), or relu(x + f(x)) behind a ReLU)",
            "leave it out",
        )
    return found


def _nearest(pattern: str, known: list[str]) -> str:
    """What may be meant: the block around it, or those in it."""
    if around := [name for name in known if pattern.startswith(f"{name}.")]:
        return f"the block is {around[0]}"
    if any(name.startswith(f"{pattern}.") for name in known):
        return f"all blocks in it are '{pattern}.*'"
    return f"known are: {', '.join(known)}"


def _excluded(block: Block, settings: PruneSettings) -> bool:
    return any(_matches(settings.exclude or (), layer) for layer in block.layers)


def _included(block: Block, settings: PruneSettings) -> bool:
    return settings.include is None or all(_matches(settings.include, layer) for layer in block.layers)


def _matches(patterns: tuple[str, ...], layer: str) -> bool:
    return any(fnmatch.fnmatch(layer, pattern) for pattern in patterns)
