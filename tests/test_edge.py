"""`docs/edge.md` is true: what stands there is run as it stands there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "edge.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, re.DOTALL)
POST = """<script type="module">
  const found = document.getElementById("found");
  while (!found.textContent) await new Promise((next) => setTimeout(next, 100));
  await fetch("/found", { method: "POST", body: found.textContent });
</script>"""


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where everything up to the pictures has been done."""
    folder = tmp_path_factory.mktemp("edge")
    shutil.copytree(ROOT / "models", folder / "models")
    for kind, block in BLOCKS:
        if named := re.match(r"(?:# |<!-- )([\w.]+)(?: -->)?\n", block):
            (folder / named[1]).write_text(block if kind == "python" else block.removeprefix(named[0]))
    shell(folder, shells()[0])
    (folder / "out.txt").write_text(shell(folder, shells()[1]))
    return folder


def shells() -> list[str]:
    return [block for kind, block in BLOCKS if kind == "sh"]


def shell(folder: Path, lines: str) -> str:
    """Carry out the lines with this Python's tools; what they print."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["sh", "-e", "-c", lines], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def told_right(lines: str) -> int:
    """How many pictures are told to show what they are named by."""
    return sum(line.split()[0].removeprefix("pictures/")[0] == line.split()[1] for line in lines.splitlines())


def test_python_on_the_device_is_as_right_as_eval_says(device: Path) -> None:
    score = json.loads(shell(device, "slim eval digits.onnx --json"))
    found = (device / "out.txt").read_text()
    assert len(found.splitlines()) == score["samples"] == 1000
    assert told_right(found) == round(10 * score["top1"])
    assert "slimcli" not in (device / "classify.py").read_text()


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("npm") and shutil.which("chromium")), reason="wants npm and chromium")
def test_a_browser_tells_the_same(device: Path, tmp_path: Path) -> None:
    shell(device, "\n".join(line for line in shells()[2].splitlines() if "http.server" not in line))
    page = device / "index.html"
    page.write_text(page.read_text() + POST)
    found: list[str] = []
    done = threading.Event()

    class Handler(SimpleHTTPRequestHandler):
        def do_POST(self) -> None:
            found.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(204)
            self.end_headers()
            done.set()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("localhost", 0), partial(Handler, directory=str(device))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://localhost:{server.server_address[1]}/"
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
        browser = subprocess.Popen(
            [*command, f"--user-data-dir={tmp_path}", "--remote-debugging-port=0", address],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            assert done.wait(120)
        finally:
            browser.kill()
            server.shutdown()
    in_python = (device / "out.txt").read_text()
    assert told_right(found[0]) == told_right(in_python)
    assert [line.split()[1] for line in found[0].splitlines()] == [line.split()[1] for line in in_python.splitlines()]
