"""The command line called in this process, and one demo that several slow tests look at."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from releases.app.cli import main


@dataclass(frozen=True)
class Answer:
    """What a command gave."""

    code: int
    out: str
    err: str


@pytest.fixture
def emlake(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Run `emlake ARGUMENTS` as the installed command does, and give exit code, stdout and stderr."""

    def call(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["emlake", *map(str, arguments)])
        capfd.readouterr()
        code: Any = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        out, err = capfd.readouterr()
        return Answer(int(code), out, err)

    return call


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo, run once in full on the embedded engine."""
    from releases.app.demo import Demo, run_demo
    from releases.app.screen import Screen

    folder = tmp_path_factory.mktemp("demo")
    run_demo(Demo(folder, str(folder / "repo"), 0), Screen(quiet=True))
    return folder
