"""Which merge base an engine may choose."""

from heapq import heappop, heappush

from lake.repository import CommitId
from lake.testing.memory import MemoryRepository


def one_merge_base(model: MemoryRepository, left: CommitId, right: CommitId) -> bool:
    """Tell whether there is one base to choose: not a criss-cross, in which engines may differ."""
    return model.graph.best_ancestors(left, right) == {_first_common(model, left, right)}


def _first_common(model: MemoryRepository, left: CommitId, right: CommitId) -> CommitId:
    """Find the base that lakeFS's search meets first: from the greatest generation down, marking parents."""
    generation: dict[CommitId, int] = {}
    for commit in reversed(list(model.log(left)) + list(model.log(right))):
        generation[commit.id] = 1 + max((generation.get(parent, 0) for parent in commit.parents), default=0)
    if left == right:
        return left
    reached = {left: 1, right: 2}
    queue: list[tuple[int, CommitId]] = []
    for commit_id in (left, right):
        heappush(queue, (-generation[commit_id], commit_id))
    while queue:
        commit_id = heappop(queue)[1]
        for parent in model.commit_info(commit_id).parents:
            if parent not in reached:
                heappush(queue, (-generation[parent], parent))
            reached[parent] = reached.get(parent, 0) | reached[commit_id]
            if reached[parent] == 3:
                return parent
    raise AssertionError("two commits of one repository have the first in common")
