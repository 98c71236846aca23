"""`slim doctor` as a user meets it: a line for each finding, the way out below it, and the exit code."""

from __future__ import annotations

import json

import pytest

from slimcli.cli.main import main
from slimcli.pipeline import doctor

SOUND = ("Python", lambda: ("3.11.7", ""), "")
REMARK = ("C++ compiler", lambda: ("none", "(only --compile needs one)"), "")


def broken() -> tuple[str, str]:
    raise ImportError("no module named torch")


BROKEN = ("devices", broken, "pip install -U torch torchvision")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as caught:
        main(["doctor", *arguments])
    return int(caught.value.code or 0), capsys.readouterr().out


def test_a_sound_environment_ends_with_0(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "checks", lambda _: [SOUND, REMARK])
    assert run(capsys) == (0, "ok  Python: 3.11.7\nok  C++ compiler: none\n      (only --compile needs one)\n")


def test_a_fault_is_marked_with_its_way_out_and_ends_with_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "checks", lambda _: [BROKEN, SOUND])
    code, out = run(capsys)
    assert code == 1
    assert out.startswith("!!  devices: failed (no module named torch)\n      pip install -U torch torchvision\nok  Python")
    code, out = run(capsys, "--json")
    assert code == 1
    assert json.loads(out)["findings"] == [
        {
            "what": "devices",
            "ok": False,
            "found": "failed (no module named torch)",
            "way_out": "pip install -U torch torchvision",
        },
        {"what": "Python", "ok": True, "found": "3.11.7", "way_out": ""},
    ]
