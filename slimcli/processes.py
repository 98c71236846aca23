"""Which of several processes this is. The launcher (ours, or torchrun) says it in the environment; no torch here."""

from __future__ import annotations

import os

command: list[str] = []
"""How to start this very process once more, set by the command line; empty in somebody's Python script."""


way_on = ""
"""The command that goes on with the present run, where there is one."""


def rank() -> int:
    """This process's number in the whole run: 0 is the one that writes and speaks."""
    return int(os.environ.get("RANK", 0))


def local_rank() -> int:
    """This process's number on its machine."""
    return int(os.environ.get("LOCAL_RANK", 0))


def world() -> int:
    """How many processes the run has."""
    return int(os.environ.get("WORLD_SIZE", 1))


def local_world() -> int:
    """How many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world()))


def is_main() -> bool:
    """Whether this is the process that writes and speaks."""
    return rank() == 0
