import pytest

from lake.engines.embedded import EmbeddedRepository
from lake.testing.repository import LocationContract, RepositoryContract


class TestEmbeddedRepository(RepositoryContract, LocationContract):
    @pytest.fixture
    def repo(self, tmp_path):
        repo = EmbeddedRepository.create(tmp_path / "repo")
        yield repo
        repo.close()

    def open_again(self, repo):
        return EmbeddedRepository.open(repo.root)
