"""`slim --help` and `slim list methods`: seconds from start to end, and whether torch was imported."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from statistics import median

SLIM = Path(sys.executable).with_name("slim")
WANTED = 0.4


def main() -> int:
    failed = 0
    for arguments in (["--help"], ["list", "methods"]):
        times = []
        for _ in range(11):
            started = time.perf_counter()
            subprocess.run([SLIM, *arguments], check=True, capture_output=True)
            times.append(time.perf_counter() - started)
        done = subprocess.run([sys.executable, "-X", "importtime", SLIM, *arguments], check=True, capture_output=True, text=True)
        torch_imported = any(line.rpartition("|")[2].strip() == "torch" for line in done.stderr.splitlines())
        reached = median(times) < WANTED and not torch_imported
        failed += not reached
        print(f"slim {' '.join(arguments)}: {median(times):.3f} s, torch {'imported' if torch_imported else 'not imported'}")
        print(f"{'reached' if reached else 'NOT REACHED'}: under {WANTED} s without torch")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
