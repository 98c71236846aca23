"""Results on stdout, remarks on stderr. Light: what needs rich stands in `terminal` and `tables`."""

from __future__ import annotations

import json
import sys
from typing import Any


def print_json(content: Any) -> None:
    """One JSON object on stdout."""
    sys.stdout.write(json.dumps(content, indent=1) + "\n")


def echo(text: str) -> None:
    """A result on stdout."""
    sys.stdout.write(f"{text}\n")


def remark(text: str) -> None:
    """A remark on stderr."""
    sys.stderr.write(f"{text}\n")


def exit_code(*shortfalls: str) -> int:
    """0, or 1 after saying on stderr what fell short."""
    for shortfall in filter(None, shortfalls):
        remark(f"slim: {shortfall}")
    return int(any(shortfalls))
