"""Which commits touched a path."""

from collections.abc import Callable

from lake.engines.embedded.engine import Engine
from lake.repository import Commit


def touches(engine: Engine, objects: tuple[str, ...], prefixes: tuple[str, ...]) -> Callable[[Commit], bool]:
    """Give a test: does a commit differ from its first parent at one of these keys or below one of these prefixes.

    It costs a look into the ranges that hold the paths, and those only if the two trees do not share them.
    """
    keys = [key.encode() for key in objects]
    heads = [prefix.encode() for prefix in prefixes]
    trees = engine.trees

    def test(commit: Commit) -> bool:
        if not commit.parents:
            return False  # the first commit of a repository is empty
        before, after = engine.tree_of(commit.parents[0]), engine.tree_of(commit.id)
        if before.digest == after.digest:
            return False
        return any(trees.find(before, key) != trees.find(after, key) for key in keys) or any(
            next(trees.delta(before, after, head), None) is not None for head in heads
        )

    return test
