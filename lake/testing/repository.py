"""What every engine is tested with.

::

    class TestMine(RepositoryContract):            # and LocationContract, if it hands out locations
        @pytest.fixture
        def repo(self, tmp_path): return MyRepository.create(tmp_path)

        def open_again(self, repo): return MyRepository.open(repo.location)

`repo` is a fresh repository for each test: `main` with one empty commit. What an engine cannot do it marks with a
strict xfail that names the exception.
"""

from lake.testing.contract_gate import GateContract
from lake.testing.contract_history import HistoryContract
from lake.testing.contract_keys import KeysContract
from lake.testing.contract_locations import LocationContract
from lake.testing.contract_merge import MergeContract
from lake.testing.contract_paging import PagingContract
from lake.testing.contract_refs import RefsContract
from lake.testing.contract_sessions import SessionsContract
from lake.testing.contract_takeover import TakeoverContract
from lake.testing.contract_units import UnitsContract

__all__ = ["LocationContract", "RepositoryContract"]


class RepositoryContract(
    RefsContract,
    KeysContract,
    PagingContract,
    MergeContract,
    UnitsContract,
    HistoryContract,
    SessionsContract,
    TakeoverContract,
    GateContract,
):
    """Refs, objects, merges, units, histories, sessions and the release gate: all that needs no file system."""
