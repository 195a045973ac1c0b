"""The model keeps the contract that it is the specification of."""

import pytest

from lake.errors import BadInput
from lake.testing.memory import MemoryRepository
from lake.testing.repository import RepositoryContract


class TestMemoryRepository(RepositoryContract):
    @pytest.fixture
    def repo(self):
        return MemoryRepository()

    @pytest.mark.parametrize("method", ["location_of", "workspace"])
    def test_it_has_no_place_to_hand_out_and_says_so(self, repo, method):
        with pytest.raises(BadInput, match="MemoryRepository"):
            getattr(repo, method)("main", "volumes/em/")
