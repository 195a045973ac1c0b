"""A real lakeFS server keeps the contract that every engine keeps."""

import uuid

import pytest

import lake
from lake.testing.machine import run_machine
from lake.testing.repository import LocationContract, RepositoryContract

pytestmark = pytest.mark.lakefs


class TestLakeFSRepository(RepositoryContract, LocationContract):
    folders = False

    @pytest.fixture
    def repo(self, lakefs_repo):
        return lakefs_repo

    def open_again(self, repo):
        return lake.open(repo.location)

    # A put and a write through the gateway are the same thing to the server: the later one stands.
    @pytest.mark.xfail(raises=pytest.fail.Exception, strict=True, reason="lakeFS does not tell a put from a write")
    def test_one_key_both_put_and_written_in_a_workspace_is_a_conflict(self, repo):
        super().test_one_key_both_put_and_written_in_a_workspace_is_a_conflict(repo)


def test_random_histories_agree_with_the_model(lakefs_server):
    run_machine(
        lambda: lake.create(lakefs_server.location(f"m-{uuid.uuid4().hex[:12]}")),
        reopen=lambda repo: lake.open(repo.location),
        examples=6,
        steps=50,
        shrink=False,
    )
