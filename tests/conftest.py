"""Fixtures for every room."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples every time, on machines of any speed; `make soak` looks for new ones.
settings.register_profile("emlake", deadline=None, derandomize=True, database=None)
settings.load_profile("emlake")

pytest_plugins = ["lake.testing.server", "lake.testing.proxy", "lake.testing.small_disk", "lake.testing.quota"]


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real data, or a skip that says why."""
    folder = os.environ.get("EMLAKE_TEST_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("no real data: EMLAKE_TEST_DATA does not name a folder")
    return Path(folder)


@pytest.fixture(autouse=True)
def emlake_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep what commands remember out of the user's own folder, and the user's settings out of the tests."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("EMLAKE_HOME", str(home))
    for name in list(os.environ):
        if name.startswith("LAKECTL_") or name in {"EMLAKE_REPO", "EMLAKE_KILL_AT"}:
            monkeypatch.delenv(name)
    return home


@pytest.fixture
def fresh_folder(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> Callable[[str, Callable[[str], None]], Path]:
    """Give a function (name, prepare): a folder as `prepare(location)` makes it once; each call gives a new copy."""
    templates = tmp_path_factory.mktemp("templates")

    def copy(name: str, prepare: Callable[[str], None]) -> Path:
        if not (templates / name).exists():
            prepare(str(templates / name))
        target = tmp_path / "repo"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(templates / name, target, symlinks=True)
        return target

    return copy
