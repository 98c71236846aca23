"""From a file to a network that can be called: all that a user of a slim network needs, and no pruning with it."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from slimcli.networks import checkpoint


def load(path: str | Path, arch: str | None = None) -> nn.Module:
    """The network in a checkpoint, in eval mode; a foreign checkpoint wants its `arch`.

    No code in the file is run. Raises `slimcli.errors.CheckpointError` or `ArchError`.
    """
    return checkpoint.load(path, arch).build()
