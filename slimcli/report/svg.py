"""matplotlib figures as inline SVG: text stays text, colours follow the page, and the same data gives the same bytes."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours that stand out on white and on black alike.
ORANGE, SKY, GREEN, BLUE, VERMILLION, PURPLE = "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7"
INK = "#010203"  # stands for the page's text colour: figures then follow dark mode and print
COLOURS = {"dense": INK, "slim": VERMILLION, "dense, INT8": PURPLE, "slim, INT8": GREEN}
"""Of a run's networks, in every figure."""

STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "slimcli",
    "text.parse_math": False,  # layer names may hold dollar signs
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.15,
    "grid.color": INK,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "lines.markersize": 5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
} | dict.fromkeys(
    ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color", "legend.labelcolor"), INK
)


@dataclass(frozen=True)
class Plot:
    """A figure: its name on the page, what to see in it, how it is drawn, and its numbers as a table.

    `description` says how the picture is built, for those who do not see it; `size` is in inches.
    """

    name: str
    title: str
    caption: str
    description: str
    size: tuple[float, float]
    draw: Callable[[Figure], None]
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def svg(self) -> str:
        """The figure as an `<svg>` element for an HTML page; its ids begin with the plot's name."""
        with matplotlib.style.context(["default", STYLE]):
            figure = Figure(figsize=self.size, layout="constrained")
            self.draw(figure)
            file = io.BytesIO()
            figure.savefig(file, format="svg", metadata={"Date": None})
        root = ElementTree.fromstring(file.getvalue())
        _clean(root, self.name)
        _describe(root, self.name, self.title, self.description)
        return ElementTree.tostring(root, encoding="unicode")


def line(axes: Axes, points: Sequence[tuple[float, float]], label: str, **style: Any) -> None:
    """A line through (x, y) points; nothing, not even in the legend, where there are none."""
    if points:
        axes.plot([x for x, _ in points], [y for _, y in points], label=label, **style)


def _clean(root: ElementTree.Element, name: str) -> None:
    """Drop what only a file of its own needs: metadata, a style sheet that would reach the whole page, and namespaces."""
    for child in list(root):
        if child.tag.endswith("}metadata") or any(leaf.tag.endswith("}style") for leaf in child):
            root.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        element.attrib = {_local(key): _value(_local(key), value, name) for key, value in element.attrib.items()}
        element.tail = None
        if element.tag != "text":
            element.text = None


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]


def _value(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key == "href":
        return f"#{name}-{value.removeprefix('#')}"
    return re.sub(r"\s+", " ", value).replace("url(#", f"url(#{name}-").replace(INK, "currentColor")


def _describe(root: ElementTree.Element, name: str, title: str, description: str) -> None:
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-labelledby": f"{name}-title {name}-desc",
        "stroke-linejoin": "round",
    }
    for position, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(tag, {"id": f"{name}-{tag}"})
        element.text = text
        root.insert(position, element)
