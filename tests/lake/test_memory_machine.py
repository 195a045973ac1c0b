"""The machine that drives engines, driven against the model itself, and against models with a fault."""

import pytest

from lake.testing.machine import run_machine
from lake.testing.memory import MemoryRepository


def test_the_model_agrees_with_itself():
    run_machine(MemoryRepository, reopen=lambda repo: repo, examples=20, steps=30)


class ForgetsMetadata(MemoryRepository):
    def commit(self, branch, message, metadata=None, *, allow_empty=False):
        return super().commit(branch, message, {}, allow_empty=allow_empty)


class MergesObjectByObject(MemoryRepository):
    def merge(self, *args, contested=(), **options):
        return super().merge(*args, contested=("tables/", "volumes/"), **options)


class LosesEmptyObjects(MemoryRepository):
    def list(self, ref, prefix="", *, after="", limit=None):
        return (entry for entry in super().list(ref, prefix, after=after, limit=limit) if entry.size)


class RewritesHistory(MemoryRepository):
    def commit(self, branch, message, metadata=None, *, allow_empty=False):
        old = self.resolve(branch)
        commit = super().commit(branch, message, metadata or {}, allow_empty=allow_empty)
        self._trees[old] = self._trees[commit]
        return commit


@pytest.mark.parametrize("broken", [ForgetsMetadata, MergesObjectByObject, LosesEmptyObjects, RewritesHistory])
def test_a_fault_is_found(broken):
    with pytest.raises(AssertionError):
        run_machine(broken, examples=60, steps=30, shrink=False)
