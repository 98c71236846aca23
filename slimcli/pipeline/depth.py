"""Which residual blocks a network is left without: those that are named, or may be, with what each changes."""

from __future__ import annotations

import fnmatch

import torch
from torch import nn

from slimcli import processes
from slimcli.data.loaders import Data
from slimcli.errors import SettingsError, suggest
from slimcli.networks.blocks import Block, Chain, chains_of, changes, residual_blocks
from slimcli.pipeline.decisions import first_batches
from slimcli.settings import AUTO, PruneSettings

IMAGES = 512
"""On how many training images it is measured what a block changes."""


def named(model: nn.Module, data: Data, settings: PruneSettings) -> tuple[str, ...]:
    """The blocks that `--leave-out` names; `SettingsError` for a name or pattern that is no block's."""
    if settings.leave_out in (None, (AUTO,)):
        return ()
    known = [block.name for block in _found(model, data)]
    for pattern in settings.leave_out or ():
        if not fnmatch.filter(known, pattern):
            raise SettingsError(f"--leave-out {pattern!r} matches no residual block", suggest(pattern, known))
    return tuple(name for name in known if any(fnmatch.fnmatch(name, pattern) for pattern in settings.leave_out or ()))


def chains(model: nn.Module, data: Data, settings: PruneSettings) -> tuple[Chain, ...]:
    """The chains of blocks that `--leave-out auto` may shorten, none without it."""
    if settings.leave_out != (AUTO,):
        return ()
    if processes.world() > 1:
        raise SettingsError(
            "--leave-out auto times networks in one process", "name the blocks that a run with --devices 1 left out"
        )
    taking_part = [block for block in _found(model, data) if _takes_part(block, settings)]
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


def _takes_part(block: Block, settings: PruneSettings) -> bool:
    def matches(patterns: tuple[str, ...], layer: str) -> bool:
        return any(fnmatch.fnmatch(layer, pattern) for pattern in patterns)

    excluded = any(matches(settings.exclude or (), layer) for layer in block.layers)
    return not excluded and (settings.include is None or all(matches(settings.include, layer) for layer in block.layers))
