"""The pages hold what the run folder holds, need nothing else, and survive a run that measured less."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from slimcli.errors import RunDirError
from slimcli.report import page
from slimcli.report.compare import compare, gather
from slimcli.report.pareto import pareto
from slimcli.report.result import read
from slimcli.report.series import series_of
from slimcli.report.tradeoff import tradeoff
from slimcli.rundir import RunDir

JsonDict = dict[str, Any]
LATENCY = {"p90": 0.3, "p99": 0.4, "mean": 0.2, "min": 0.1, "runs": 100, "threads": 1, "batch": 1}
LATENCY |= {"provider": "CPUExecutionProvider"}
STEP = {"index": 1, "macs": 800, "params": 90, "top1": 98.5, "top1_after_surgery": 97.0, "epochs": 1, "removed": 2, "kept": True}
STEPS = [STEP, STEP | {"index": 2, "macs": 400, "params": 50, "top1": 96.0, "top1_after_surgery": 90.0, "kept": False}]
NAME = "conv<1> & $x$"  # markup and mathematics that must stay text


@pytest.fixture
def metrics() -> JsonDict:
    return {
        "schema": 1,
        "method": "hbfp",
        "arch": "lenet5",
        "data": "digits",
        "dense": {
            "top1": 99.0,
            "loss": 0.03,
            "macs": 1000,
            "params": 100,
            "file_bytes": 3000,
            "latency_ms": LATENCY | {"p50": 0.2},
        },
        "slim": {"top1": 98.9, "loss": 0.04, "macs": 800, "params": 90, "file_bytes": 2000, "latency_ms": LATENCY | {"p50": 0.1}},
        "speedup": {"ratio": 2.0, "low": 1.9, "high": 2.1},
        "parity": {"max_error": 5e-6, "samples": 64},
        "held_out": {side: {"top1": 98.6, "loss": 0.05, "samples": 60} for side in ("dense", "slim")},
        "epochs": 4,
        "reason": "iteration 2 lost more than the allowed 1 points",
        "budget_met": True,
        "iterations": STEPS,
        "layers": [
            {"name": NAME, "filters": [20, 18], "macs": [900, 700], "params": [50, 45]},
            {"name": "fc", "filters": [10, 10], "macs": [100, 100], "params": [50, 45]},
        ],
        "frozen": [{"group": "fc", "reason": "the network's output"}],
        "notes": ["a <note>"],
        "environment": {"platform": "Linux", "python": "3.11", "versions": {"torch": "2.15.0", "timm": None}},
    }


def epoch(phase: str, loss: float) -> JsonDict:
    return {"event": "epoch", "phase": phase, "index": 0, "loss": loss, "top1": 99.0, "seconds": 1.0}


def surgery(iteration: int, examples: list[JsonDict]) -> JsonDict:
    return {"event": "surgery", "iteration": iteration, "removed": {NAME: [3, 4]}, "top1": 97.0, "examples": examples}


PAIR = {"group": NAME, "pair": [3, 19], "removed": 3, "histories": [[1.0, 1.25, 1.5], [1.1, 1.3, 1.5]]}
EVENTS = [
    {"event": "start", "method": "hbfp"},
    epoch("tie 1", 0.5),
    surgery(1, [PAIR]),
    epoch("retrain 1", 0.2),
    epoch("tie 2", 0.3),
    surgery(2, [PAIR | {"pair": [0, 5], "removed": 5}]),
    epoch("final", 0.1),
    {"event": "end", "reason": "", "top1": 98.9, "loss": 0.04, "samples": 1000},
]


def make_run(path: Path, metrics: JsonDict | None, events: list[JsonDict] = EVENTS, **settings: Any) -> RunDir:
    run = RunDir(path)
    path.mkdir(parents=True)
    run.recipe.write_text(tomli_w.dumps({"prune": {"method": "hbfp", "norm": "l1", "max_drop": 1.0, **settings}}))
    run.journal.write_text("".join(json.dumps(event) + "\n" for event in events))
    if metrics is not None:
        run.write_metrics(metrics)
    return run


def test_the_calls_of_all_networks_are_drawn(tmp_path: Path, metrics: JsonDict) -> None:
    quantiles = [0.1 + at / 1000 for at in range(100)] + [50.0]
    for side in ("dense", "slim"):
        metrics[side]["latency_ms"]["quantiles"] = quantiles
    html = page.write(make_run(tmp_path / "run", metrics)).read_text()
    assert "Latency of single calls" in html
    assert "<td>0.150 ms</td>" in html
    assert "<td>50.0 ms</td>" in html
    assert "dense, INT8" not in html
    small = {"file_bytes": 700, "top1": 98.5, "latency_ms": LATENCY | {"p50": 0.05, "quantiles": quantiles}}
    metrics["int8"] = {"dense": small, "slim": small | {"top1": 98.25}, "speedups": {}}
    html = page.write(make_run(tmp_path / "int8", metrics)).read_text()
    for words in ("dense, INT8", "slim, INT8", "98.25 %", "latency, p50, INT8"):
        assert words in html


def test_what_was_given_for_what_is_drawn_beside_the_papers_networks(tmp_path: Path, metrics: JsonDict) -> None:
    small = {side: metrics[side] | {"file_bytes": 900} for side in ("dense", "slim")}
    known = {
        "digits": metrics,
        "mnist": metrics | {"data": "mnist", "int8": small},
        "untimed": metrics | {side: metrics[side] | {"latency_ms": None} for side in ("dense", "slim")},
    }
    drawn = {name: tradeoff(read(make_run(tmp_path / name, each))) for name, each in known.items()}
    rows = {name: [row[0] for row in plot.rows] for name, plot in drawn.items() if plot}
    assert rows["digits"] == rows["untimed"] == ["dense", "slim"]
    assert rows["mnist"] == ["dense", "slim", "dense, INT8", "slim, INT8", "paper, dense", *["paper"] * 4]
    assert drawn["mnist"] is not None
    assert drawn["mnist"].rows[-1] == ("paper", "98.60 %", "2.0 %", "")
    for name, panels in (("digits", 2), ("mnist", 2), ("untimed", 1)):
        plot = drawn[name]
        assert plot is not None
        assert plot.svg().count("MACs kept (%)") == 1
        assert ("measured latency" in plot.title) == ("latency, p50 (ms)" in plot.svg()) == (panels == 2)
    error = {"score": 0.5, "score_name": "error", "higher_is_better": False, "top1": None}
    lower = tradeoff(read(make_run(tmp_path / "lower", metrics | {side: metrics[side] | error for side in ("dense", "slim")})))
    assert lower is not None
    assert "Down and to the left" in lower.caption
    assert tradeoff(read(make_run(tmp_path / "same", metrics | {"slim": metrics["dense"]}))) is None


def test_the_card_says_in_markdown_what_the_page_says(tmp_path: Path, metrics: JsonDict) -> None:
    run = make_run(tmp_path / "run", metrics, mean=[0.5], std=[0.25])
    card = page.write_card(run).read_text()
    html = page.write(run).read_text()
    assert card.startswith("# lenet5 on digits, pruned with hbfp\n\n" + headline(html))
    assert "| top-1 | 99.00 % | 98.90 % | -0.10 points |" in card
    assert 'slimcli.load("model.pt")' in card
    assert "with mean 0.5 and std 0.25" in card
    assert "- the network's output: fc" in card  # not escaped
    assert run.recipe.read_text() in card
    metrics["arch"] = "package.net:build"
    assert "arch='package.net:build'" in page.write_card(make_run(tmp_path / "own", metrics)).read_text()
    metrics["slim"] |= {"top1": None, "loss": None}
    unfinished = page.write_card(make_run(tmp_path / "unfinished", metrics)).read_text()
    assert "slim prune --resume" in unfinished
    assert "To use it" not in unfinished


MEASURE = """<script>
  const size = (element) => { const box = element.getBoundingClientRect(); return box.width * box.height; };
  const drawn = [...document.querySelectorAll("figure svg")].map((svg) => [
    svg.id, size(svg), [...svg.querySelectorAll("path, use, text")].filter((mark) => size(mark) > 0).length]);
  document.body.textContent = JSON.stringify(drawn);
</script>"""


@pytest.mark.skipif(shutil.which("chromium") is None, reason="wants chromium")
def test_a_browser_draws_every_figure(tmp_path: Path, metrics: JsonDict) -> None:
    for side in ("dense", "slim"):
        metrics[side]["latency_ms"]["quantiles"] = [0.1 + at / 1000 for at in range(101)]
    run = make_run(tmp_path / "run", metrics)
    html = page.write(run).read_text()
    figures = html.count("<figure>")
    assert figures == 6
    shown = in_chromium(run.report, tmp_path)
    assert shown.count("<figure>") == shown.count("</svg>") == figures  # nothing that the policy or the parser would drop
    policy = re.search("<meta http-equiv=.Content-Security-Policy.*?>", html)
    assert policy
    (tmp_path / "measured.html").write_text(html.replace(policy[0], "").replace("</body>", f"{MEASURE}</body>"))
    text = re.search(r"\[\[.*\]\]", in_chromium(tmp_path / "measured.html", tmp_path))
    assert text
    drawn = json.loads(text[0])
    assert len(drawn) == figures
    for name, area, marks in drawn:
        assert area > 300 * 100, name
        assert marks > 10, name


def in_chromium(path: Path, folder: Path) -> str:
    """The page as the browser has it, after it was laid out."""
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--dump-dom"]
    command += [f"--user-data-dir={folder / 'browser'}", path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def headline(html: str) -> str:
    match = re.search("<h1>(.*?)</h1>", html)
    assert match
    return match[1]


class Outline(HTMLParser):
    """Tags, ids, what refers to an id or an address, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.ids: list[str] = []
        self.references: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for key, value in attrs:
            value = value or ""
            if key == "id":
                self.ids.append(value)
            elif key in ("href", "src", "xlink:href"):
                self.references.append(value)
            elif key == "aria-labelledby":
                self.references += [f"#{name}" for name in value.split()]
            self.references += re.findall(r"url\((.*?)\)", value)

    def handle_data(self, data: str) -> None:
        self.text += data


def check_stands_alone(html: str) -> Outline:
    outline = Outline(html)
    assert not outline.tags["script"]
    assert outline.tags["style"] == 1
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in html
    assert '<html lang="en">' in html
    assert "<?xml" not in html
    assert html.lower().count("<!doctype") == 1
    assert max(Counter(outline.ids).values()) == 1
    assert {reference.removeprefix("#") for reference in outline.references} <= set(outline.ids)
    assert "currentColor" in html
    return outline


def test_page_says_what_was_gained_and_what_it_cost(tmp_path: Path, metrics: JsonDict) -> None:
    run = make_run(tmp_path / "run", metrics)
    assert page.write(run) == run.report
    html = run.report.read_text()
    assert headline(html) == "1.2 times fewer MACs, 1.5 times smaller, 2.0 times faster, top-1 -0.10 points."
    text = check_stands_alone(html).text
    for said in (
        "-20.0 %",
        "-50.0 %",
        "2.00 times",
        "1.90 to 2.10",
        "CPUExecutionProvider, 1 thread, batch 1, 100 runs of each network",
        "1,000 images",
        "1 iteration kept, 1 taken back",
        "It ended because iteration 2 lost more than the allowed 1 points.",
        "No budget was set",
        "the network's output",
        "Note: a <note>.",
        "slim run recipe.toml",
        'method = "hbfp"',
        "2.15.0",
    ):
        assert said in text


def test_every_figure_is_described_and_has_its_numbers(tmp_path: Path, metrics: JsonDict) -> None:
    outline = Outline(page.write(make_run(tmp_path / "run", metrics)).read_text())
    assert outline.tags["svg"] == outline.tags["desc"] == outline.tags["figcaption"] == 5
    assert outline.text.count("The numbers") == 5
    assert f"{NAME}: filter 3 was removed, 19 stayed" in outline.text
    assert "1.2500" in outline.text  # a norm
    assert NAME in outline.text


def test_the_same_run_gives_the_same_bytes(tmp_path: Path, metrics: JsonDict) -> None:
    run = make_run(tmp_path / "run", metrics)
    first = page.write(run).read_bytes()
    assert page.write(run).read_bytes() == first
    assert not list(run.path.glob(".*.tmp"))


def test_a_run_without_deployment_is_reported_without_it(tmp_path: Path, metrics: JsonDict) -> None:
    for side in ("dense", "slim"):
        metrics[side]["file_bytes"] = None
        del metrics[side]["latency_ms"]
    for extra in ("speedup", "parity", "held_out", "frozen", "notes", "environment"):
        del metrics[extra]
    html = page.write(make_run(tmp_path / "run", metrics)).read_text()
    assert headline(html) == "1.2 times fewer MACs, 1.1 times fewer parameters, top-1 -0.10 points."
    assert "Latency was not measured." in html
    assert "file size" not in html


@pytest.mark.parametrize(
    ("speedup", "said"),
    [
        ({"ratio": 1.02, "low": 0.98, "high": 1.05}, "not measurably faster"),
        ({"ratio": 0.5, "low": 0.4, "high": 0.6}, "2.0 times slower"),
        ({"ratio": 1.04, "low": 1.02, "high": 1.05}, "1.04 times faster"),
    ],
)
def test_the_headline_claims_no_more_than_was_measured(tmp_path: Path, metrics: JsonDict, speedup: JsonDict, said: str) -> None:
    metrics["speedup"] = speedup
    assert said in headline(page.write(make_run(tmp_path / "run", metrics)).read_text())


def test_a_run_that_removed_nothing_says_so(tmp_path: Path, metrics: JsonDict) -> None:
    metrics |= {"slim": metrics["dense"], "iterations": [], "frozen": [], "notes": [], "layers": []}
    html = page.write(make_run(tmp_path / "run", metrics, events=[])).read_text()
    assert headline(html) == "Nothing was removed."
    assert not Outline(html).tags["svg"]
    assert "What was left alone" not in html


def test_a_method_without_pairs_has_no_pair_figure(tmp_path: Path, metrics: JsonDict) -> None:
    events = [epoch("tie 1", 0.0), surgery(1, []), epoch("retrain 1", 0.1)]
    html = page.write(make_run(tmp_path / "run", metrics, events)).read_text()
    assert "ran alike" not in html
    assert Outline(html).tags["svg"] == 4


def test_a_budget_is_named_with_what_became_of_it(tmp_path: Path, metrics: JsonDict) -> None:
    metrics["budget_met"] = False
    assert "The budget (macs 0.25) was not met." in page.write(make_run(tmp_path / "run", metrics, macs=0.25)).read_text()


def test_at_most_four_groups_and_a_deep_network_are_drawn(tmp_path: Path, metrics: JsonDict) -> None:
    metrics["layers"] = [metrics["layers"][0] | {"name": f"layer{n}"} for n in range(130)]
    events = [surgery(1, [PAIR | {"group": f"group{n}"} for n in range(5)])]
    text = check_stands_alone(page.write(make_run(tmp_path / "run", metrics, events)).read_text()).text
    assert "The closest pair of the first 4 groups" in text
    assert "group3" in text
    assert "group4" not in text
    assert "layer129" in text


@pytest.mark.parametrize("content", [None, {"schema": 1, "arch": "lenet5"}])
def test_a_run_that_has_measured_nothing_is_refused(tmp_path: Path, content: JsonDict | None) -> None:
    run = make_run(tmp_path / "run", content)
    with pytest.raises(RunDirError):
        page.write(run)
    assert not run.report.exists()
    with pytest.raises(RunDirError):
        compare(gather([run]), tmp_path / "compare.html")


def test_compare_puts_runs_of_one_name_on_one_page(tmp_path: Path, metrics: JsonDict) -> None:
    first = make_run(tmp_path / "a" / "run", metrics)
    second = make_run(tmp_path / "b" / "run", metrics | {"method": "l1", "iterations": []}, events=[])
    third = make_run(tmp_path / "other", metrics | {"data": "mnist"})
    results = gather([first, second, third, second])
    assert [[run.path for run in series] for series in series_of(results).values()] == [
        [str(run.path)] for run in (first, second, third)
    ]
    path = compare(results, tmp_path / "compare.html")
    outline = check_stands_alone(path.read_text())
    assert outline.tags["svg"] == 2
    for name in (str(first.path), str(second.path), "other"):
        assert name in outline.text
    for said in ("3 runs compared", "different networks or data", "lenet5 on mnist", "80.0 %"):
        assert said in outline.text


def test_masked_networks_are_compared_by_the_weights_that_they_have_left(tmp_path: Path, metrics: JsonDict) -> None:
    """MACs say nothing about them."""
    steps = [step | {"remaining": 0.125, "kept": True} for step in metrics["iterations"]]
    masked = metrics | {"sparsity": {"weights": 8, "zeros": 7}, "iterations": steps}
    plots = {"weights left": [metrics | {"iterations": steps}, masked], "MACs kept": [metrics]}
    for axis, runs in plots.items():
        results = gather([make_run(tmp_path / axis / str(number), each) for number, each in enumerate(runs)])
        plot = pareto(results)
        assert plot.head[2] == axis
        assert "latency, p50 (% of dense)" in plot.svg()
        assert {row[2] == "12.5 %" for row in plot.rows} == {axis == "weights left"}
        assert axis in check_stands_alone(compare(results, tmp_path / "compare.html").read_text()).text


def test_compare_wants_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunDirError):
        compare(gather([]), tmp_path / "compare.html")


def test_reporting_loads_neither_pyplot_nor_torch() -> None:
    code = (
        "import sys, slimcli.report.page, slimcli.report.compare\n"
        "sys.exit('matplotlib.pyplot' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_iterations_that_were_timed_say_so(metrics: dict[str, Any], tmp_path: Path) -> None:
    timed = metrics | {"iterations": [step | {"latency_ms": 0.1234} for step in metrics["iterations"]]}
    assert "0.123 ms" in page.write(make_run(tmp_path / "run", timed, events=[])).read_text()
    assert "0.123 ms" not in page.write(make_run(tmp_path / "other", metrics, events=[])).read_text()
