"""What a job says, kept."""

from __future__ import annotations

from slimcli.progress import Progress


class Said(Progress):
    """Keeps what a run says."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)
