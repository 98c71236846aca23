"""Fig. 4 of HBFP redrawn: accuracy while pruning goes on, with each way of pulling pairs together and without.

    python models/figure4.py RUN docs/hbfp-figure4.svg             RUN: what `slim run models/lenet5-ingredients.toml` left

Mean held-out accuracy over the seeds against the MACs that are left: right after each removal, and after its retraining.
"""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib.style
from matplotlib.figure import Figure

from slimcli.disk import write_atomically
from slimcli.report.svg import BLUE, GREEN, ORANGE, VERMILLION
from slimcli.rundir import RunDir

ARMS = {
    "history pairs, tied in weights, merged": ("weights tied, merged", BLUE, "o"),
    "norms tied by the exponential": ("norms tied (the paper's penalty)", VERMILLION, "s"),
    "pairs neither tied nor merged": ("not tied", ORANGE, "^"),
    "l1": ("l1 selection", GREEN, "v"),
}


def main(run: Path, target: Path) -> None:
    """Read every seed's journals and write the figure."""
    with matplotlib.style.context(["default", {"svg.hashsalt": "slimcli", "svg.fonttype": "none", "font.size": 9}]):
        figure = Figure(figsize=(7.5, 3.4), layout="constrained")
        after, retrained = figure.subplots(1, 2, sharex=True)
        for label, (name, color, marker) in ARMS.items():
            points = curve(run, label)
            for axes, key in ((after, "top1_after_surgery"), (retrained, "top1")):
                macs = [100 * step["kept"] for step in points]
                axes.plot(macs, [step[key] for step in points], color=color, marker=marker, label=name)
        after.set_title("right after the removal")
        retrained.set_title("after two epochs of retraining")
        after.set_ylabel("held-out top-1, %")
        for axes in (after, retrained):
            axes.set_xlabel("MACs left, %")
            axes.grid(alpha=0.3)
        after.invert_xaxis()
        figure.legend(*after.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
        figure.savefig(path := target.with_suffix(".part.svg"), format="svg", metadata={"Date": None})
    write_atomically(target, path.read_bytes())
    path.unlink()


def curve(run: Path, label: str) -> list[dict[str, float]]:
    """The arm's iterations, each figure the mean over the seeds."""
    steps = [event for event in RunDir(run).read_journal() if event["event"] == "step" and event["label"] == label]
    by_index = defaultdict(list)
    for step in steps:
        for iteration in step["metrics"]["iterations"]:
            by_index[iteration["index"]].append(iteration | {"kept": iteration["macs"] / step["metrics"]["dense"]["macs"]})
    keys = ("kept", "top1_after_surgery", "top1")
    return [
        {key: statistics.mean(each[key] for each in iterations) for key in keys} for _, iterations in sorted(by_index.items())
    ]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
