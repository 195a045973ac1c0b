"""The embedded engine does what every engine must do, and what the model does."""

import os
import random

import pytest

from lake.engines.embedded import EmbeddedRepository, ranges
from lake.errors import LakeError
from lake.testing.crash import content
from lake.testing.machine import run_machine
from lake.testing.memory import MemoryRepository
from lake.testing.repository import LocationContract, RepositoryContract


def open_again(repo):
    return EmbeddedRepository.open(repo.root)


def collect(repo):
    return repo.collect_garbage(grace_s=0)


class TestEmbeddedRepository(RepositoryContract, LocationContract):
    @pytest.fixture
    def repo(self, tmp_path):
        repo = EmbeddedRepository.create(tmp_path / "repo")
        yield repo
        repo.close()

    def open_again(self, repo):
        return open_again(repo)


@pytest.fixture
def opener(tmp_path, monkeypatch):
    """Make fresh repositories whose ranges hold about three entries, so that a few keys fill many."""
    monkeypatch.setattr(ranges, "_LIMIT", (1 << 32) // 3)
    return lambda: EmbeddedRepository.create(tmp_path / str(len(os.listdir(tmp_path))))


def test_short_random_histories_agree_with_the_model(opener):
    run_machine(opener, reopen=open_again, collect=collect, folders=True, examples=4, steps=25)


@pytest.mark.slow
def test_two_thousand_steps_of_random_history_agree_with_the_model(opener):
    run_machine(opener, reopen=open_again, collect=collect, folders=True, examples=40, steps=50)


@pytest.mark.soak
def test_twenty_thousand_steps_of_random_history_agree_with_the_model(opener):
    options = {"reopen": open_again, "collect": collect, "folders": True, "derandomize": False}
    steps = 0
    while steps < 20_000:
        steps += run_machine(opener, examples=50, steps=100, **options)


# -- workspaces against the model: a file written is a put, a file removed a delete ------------------------------------
KEYS = ("w/a", "w/b", "w/d/x", "w/d/y", "w/e/f/z", "w/d/n")
SIZES = (0, 1, 5, 65_536, 70_000)


class Desk:
    """The model and the engine, and what was written where since the last commit."""

    def __init__(self, root, seed):
        self.rng = random.Random(seed)
        self.model, self.repo = MemoryRepository(), EmbeddedRepository.create(root)
        self.prefix = self.rng.choice(["w/", ""])
        self.written: dict[str, set[str]] = {"main": set(), "side": set()}
        self.put: dict[str, set[str]] = {"main": set(), "side": set()}
        for each in (self.model, self.repo):
            each.create_branch("side", "main")

    def both(self, call):
        outcomes = []
        for each in (self.model, self.repo):
            try:
                outcomes.append(call(each))
            except LakeError as error:
                outcomes.append(type(error))
        if isinstance(outcomes[0], type) or isinstance(outcomes[1], type):
            assert outcomes[0] == outcomes[1], outcomes
        return outcomes[1]

    def folder(self, branch):
        """Ask for the workspace: it shows the branch's content, staged and written."""
        root = self.repo.workspace(branch, self.prefix).path
        files = {self.prefix + str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}
        assert files == content(self.model, branch)
        return root

    def write(self, branch, key):
        path = self.folder(branch) / key.removeprefix(self.prefix)
        if self.rng.random() < 0.25:
            path.unlink(missing_ok=True)
            self.model.delete(branch, [key])
        else:
            data = bytes([self.rng.randrange(3)]) * self.rng.choice(SIZES)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)  # a new file: as root, nothing keeps a program from writing into a link
            path.write_bytes(data)
            self.model.put(branch, key, data)
        self.written[branch].add(key)

    def stage(self, branch, key):
        data = bytes([self.rng.randrange(3)]) * self.rng.choice(SIZES)
        if self.rng.random() < 0.25:
            self.both(lambda each: each.delete(branch, [key]))
        else:
            self.both(lambda each: each.put(branch, key, data))
        self.put[branch].add(key)

    def step(self):
        branch = self.rng.choice(["main", "side"])
        other = {"main": "side", "side": "main"}[branch]
        kind = self.rng.choice(
            ["write"] * 4 + ["stage"] * 2 + ["commit"] * 3 + ["merge", "revert", "reset", "open", "look"]
        )
        key = self.rng.choice(KEYS)
        if kind == "write" and key not in self.put[branch]:
            self.write(branch, key)
        elif kind == "stage" and key not in self.written[branch]:
            self.stage(branch, key)
        elif kind == "commit":
            self.both(lambda each: each.commit(branch, "c", allow_empty=True))
        elif kind == "merge":
            strategy = self.rng.choice([None, "source-wins", "dest-wins"])
            self.both(lambda each: each.merge(other, branch, "m", strategy=strategy))
        elif kind == "revert":
            self.both(lambda each: each.revert(branch, branch, parent=1))
        elif kind == "reset":
            self.both(lambda each: each.reset(branch))
        elif kind == "open":
            self.repo.close()
            self.repo = open_again(self.repo)
        else:
            self.folder(branch)
        if kind in {"commit", "reset"}:
            self.written[branch], self.put[branch] = set(), set()
        self.check(branch)

    def check(self, branch):
        assert content(self.repo, f"{branch}@") == content(self.model, f"{branch}@")
        assert list(self.repo.uncommitted(branch)) == list(self.model.uncommitted(branch))


def play(root, seed, steps):
    desk = Desk(root, seed)
    for _ in range(steps):
        desk.step()
    desk.repo.close()


def test_a_workspace_holds_what_the_model_says(tmp_path):
    play(tmp_path / "r", seed=0, steps=60)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_workspaces_hold_what_the_model_says_through_long_histories(tmp_path, seed):
    play(tmp_path / "r", seed, steps=150)
