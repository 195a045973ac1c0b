"""The writing operations of a repository, as a table for crash tests: the same entries on either engine.

To add one, write an `Operation` and name it in `OPERATIONS`: it is then killed at every point that it passes and at
random moments. Those in `ON_A_SERVER` use nothing but the contract and run on a server too.
"""

from collections.abc import Mapping

import lake
from lake.engines.embedded import EmbeddedRepository
from lake.repository import CommitId, Repository
from lake.testing.crash import Operation, content

BIG = bytes(range(256)) * 300  # above the size from which files are linked, not copied
OLD = {"loose": b"l", "volumes/em/info": b"{}", "volumes/em/big": BIG, "volumes/em/old": b"o"}
Content = Mapping[str, bytes]


def data(number: int, size: int = 40) -> bytes:
    """Give bytes that tell which round they are from."""
    return b"%d." % number * size


def between(seen: Content, before: Content, after: Content) -> None:
    """Fail if something pending is neither as before the round nor as after it."""
    for key in {*seen, *before, *after}:
        assert seen.get(key) in (before.get(key), after.get(key)), key


class OnMain(Operation):
    """An operation whose rounds are commits on `main` with the metadata `round`."""

    def prepare(self, location: str) -> None:
        """Make a repository with one commit, and a branch `side`."""
        repo = lake.create(location)
        for key, value in OLD.items():
            repo.put("main", key, value)
        repo.commit("main", "first")
        repo.create_branch("side", "main")
        repo.close()

    def commits(self, repo: Repository) -> list[CommitId]:
        """Give the commits of rounds, oldest first, each there once."""
        found = [commit for commit in repo.log("main", first_parent=True) if "round" in commit.metadata]
        assert [int(commit.metadata["round"]) for commit in found] == list(reversed(range(len(found))))
        return [commit.id for commit in reversed(found)]

    def landed(self, repo: Repository) -> int:
        return len(self.commits(repo))

    def tree(self, landed: int) -> dict[str, bytes]:
        """Say what `main` holds after so many rounds."""
        raise NotImplementedError

    def check_committed(self, repo: Repository, landed: int) -> None:
        """Fail if what was committed is not as it should be, whatever became of what is pending."""
        for number, commit in enumerate(self.commits(repo)):
            assert content(repo, commit) == self.tree(number + 1), f"round {number}"
        between(content(repo, "main@"), self.tree(landed), self.tree(landed + 1))

    def check(self, repo: Repository, landed: int) -> None:
        self.check_committed(repo, landed)
        between(content(repo, "main"), self.tree(landed), self.tree(landed + 1))

    def check_clean(self, repo: Repository, landed: int) -> None:
        self.check(repo, landed)
        assert content(repo, "main") == content(repo, "main@") == self.tree(landed)
        assert list(repo.uncommitted("main")) == []


class Put(OnMain):
    """Every round stages one more key."""

    longest_s = 0.5

    def round(self, repo: Repository, number: int) -> None:
        repo.put("main", f"k/{number:05}", data(number))

    def landed(self, repo: Repository) -> int:
        return sum(1 for _ in repo.list("main", "k/"))

    def check(self, repo: Repository, landed: int) -> None:
        assert content(repo, "main@") == OLD
        assert content(repo, "main") == {**OLD, **{f"k/{n:05}": data(n) for n in range(landed)}}

    def check_clean(self, repo: Repository, landed: int) -> None:
        self.check(repo, landed)
        staged = content(repo, "main")
        repo.commit("main", "what was put")
        assert content(repo, "main@") == staged


class Commit(OnMain):
    """Every round puts a new key and an old one, takes the last round's key away, and commits."""

    def round(self, repo: Repository, number: int) -> None:
        repo.put("main", f"old/{number % 3}", data(number))
        repo.put("main", f"new/{number}", data(number))
        repo.delete("main", [f"new/{number - 1}"])
        repo.commit("main", f"round {number}", {"round": f"{number}"})

    def tree(self, landed: int) -> dict[str, bytes]:
        last = {f"old/{n % 3}": data(n) for n in range(landed)}
        return {**OLD, **last, **({f"new/{landed - 1}": data(landed - 1)} if landed else {})}


class Workspace(OnMain):
    """Every round writes, replaces and removes files, small and large, in a folder, puts a key, and commits."""

    def round(self, repo: Repository, number: int) -> None:
        folder = repo.workspace("main", "volumes/").path
        for name, value in self._files(number).items():
            target = folder / name
            target.parent.mkdir(exist_ok=True)
            (folder / "tmp.__lock").write_bytes(value)
            (folder / "tmp.__lock").rename(target)
        (folder / f"seg/new-{number - 1}").unlink(missing_ok=True)
        repo.put("main", "last", data(number))
        repo.commit("main", f"round {number}", {"round": f"{number}"})

    @staticmethod
    def _files(number: int) -> dict[str, bytes]:
        return {
            "em/big": data(number, 30_000),
            f"seg/{number % 3}": data(number),
            f"seg/large-{number % 2}": data(number, 40_000),
            f"seg/new-{number}": data(number, 25_000 if number % 2 else 3),
        }

    def tree(self, landed: int) -> dict[str, bytes]:
        made = dict(OLD)
        for number in range(landed):
            made |= {f"volumes/{name}": value for name, value in self._files(number).items()}
            made.pop(f"volumes/seg/new-{number - 1}", None)
            made["last"] = data(number)
        return made

    def check_clean(self, repo: Repository, landed: int) -> None:
        super().check_clean(repo, landed)
        for folder in (repo.workspace("main", "volumes/").path, repo.location_of("main", "volumes/").path):
            files = {p.relative_to(folder.parent).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
            expected = {key: value for key, value in self.tree(landed).items() if key.startswith("volumes/")}
            assert {key: value for key, value in files.items() if not key.endswith(".__lock")} == expected


class Merge(OnMain):
    """Every round commits on two branches and merges them."""

    def round(self, repo: Repository, number: int) -> None:
        repo.put("side", f"side/{number % 3}", data(number))
        repo.commit("side", f"side {number}", allow_empty=True)
        repo.put("main", f"main/{number % 3}", data(number))
        repo.commit("main", f"main {number}", allow_empty=True)
        repo.merge("side", "main", f"round {number}", {"round": f"{number}"})

    def tree(self, landed: int) -> dict[str, bytes]:
        keys = {f"{branch}/{n % 3}": data(n) for n in range(landed) for branch in ("side", "main")}
        return {**OLD, **keys}

    def check_committed(self, repo: Repository, landed: int) -> None:
        super().check_committed(repo, landed)
        for commit in self.commits(repo):
            ours, theirs = repo.commit_info(commit).parents
            assert repo.commit_info(ours).message.startswith("main ")
            assert repo.commit_info(theirs).message.startswith("side ")


class Revert(OnMain):
    """Every round makes a commit and reverts it."""

    def round(self, repo: Repository, number: int) -> None:
        if "made" not in repo.commit_info("main").metadata:
            repo.put("main", "made", data(number))
            repo.delete("main", ["loose"])
            repo.commit("main", f"made {number}", {"made": f"{number}"})
        repo.revert("main", "main", message=f"round {number}", metadata={"round": f"{number}"})

    def tree(self, landed: int) -> dict[str, bytes]:
        return dict(OLD)

    def _made(self, landed: int) -> dict[str, bytes]:
        return {key: value for key, value in {**OLD, "made": data(landed)}.items() if key != "loose"}

    def check_committed(self, repo: Repository, landed: int) -> None:
        for commit in self.commits(repo):
            assert content(repo, commit) == OLD
        assert content(repo, "main@") in (OLD, self._made(landed))

    def check(self, repo: Repository, landed: int) -> None:
        self.check_committed(repo, landed)
        between(content(repo, "main"), OLD, self._made(landed))


class CherryPick(OnMain):
    """Every round commits on one branch, picks that commit on the other, and moves the first one on to the second."""

    def round(self, repo: Repository, number: int) -> None:
        if repo.commit_info("side").message != f"side {number}":
            repo.put("side", f"side/{number % 3}", data(number))
            repo.commit("side", f"side {number}")
        repo.cherry_pick("main", "side", message=f"round {number}", metadata={"round": f"{number}"})
        repo.reset_to("side", "main")

    def tree(self, landed: int) -> dict[str, bytes]:
        return {**OLD, **{f"side/{n % 3}": data(n) for n in range(landed)}}

    def check_committed(self, repo: Repository, landed: int) -> None:
        super().check_committed(repo, landed)
        assert content(repo, "side@") in (self.tree(landed), self.tree(landed + 1))

    def check_clean(self, repo: Repository, landed: int) -> None:
        super().check_clean(repo, landed)
        if landed:
            origin = repo.commit_info("main").metadata["cherry-pick-origin"]
            assert repo.commit_info(origin).message == f"side {landed - 1}"


class Tag(OnMain):
    """Every round makes a commit and tags it."""

    longest_s = 0.3

    def round(self, repo: Repository, number: int) -> None:
        made = repo.commit("main", f"tagged {number}", allow_empty=True)
        repo.create_tag(f"t{number:05}", made)

    def landed(self, repo: Repository) -> int:
        assert list(repo.tags()) == [f"t{number:05}" for number in range(len(repo.tags()))]
        return len(repo.tags())

    def tree(self, landed: int) -> dict[str, bytes]:
        return dict(OLD)

    def check_committed(self, repo: Repository, landed: int) -> None:
        line = {commit.id for commit in repo.log("main")}
        for number, commit in enumerate(repo.tags().values()):
            assert commit in line
            assert repo.commit_info(commit).message == f"tagged {number}"
            assert content(repo, commit) == OLD

    def check(self, repo: Repository, landed: int) -> None:
        self.check_committed(repo, landed)


class Reset(OnMain):
    """Every round writes in a folder, puts and removes keys, and throws all of it away."""

    def round(self, repo: Repository, number: int) -> None:
        folder = repo.workspace("main", "volumes/em/").path
        (folder / "old").unlink(missing_ok=True)
        (folder / "new").mkdir(exist_ok=True)
        for name in ("new/file", "big"):
            (folder / "tmp").write_bytes(data(number, 30_000))
            (folder / "tmp").rename(folder / name)
        repo.put("main", "put", data(number))
        repo.delete("main", ["loose"])
        repo.reset("main")
        repo.commit("main", f"round {number}", {"round": f"{number}"}, allow_empty=True)  # with nothing in it

    def tree(self, landed: int) -> dict[str, bytes]:
        return dict(OLD)

    def check(self, repo: Repository, landed: int) -> None:
        self.check_committed(repo, landed)

    def check_clean(self, repo: Repository, landed: int) -> None:
        super().check_clean(repo, landed)
        folder = repo.workspace("main", "volumes/em/").path
        assert sorted(p.name for p in folder.rglob("*") if p.is_file()) == ["big", "info", "old"]


class Branch(OnMain):
    """Every round makes a branch with a folder and a view, leaves work pending there, and removes the branch."""

    def round(self, repo: Repository, number: int) -> None:
        name = f"b{number}"
        if name not in repo.branches():
            repo.create_branch(name, "main")
        folder = repo.workspace(name, "volumes/").path
        (folder / "file").write_bytes(data(number))
        repo.put(name, "put", data(number))
        repo.location_of(name, "volumes/")
        repo.delete_branch(name)
        repo.commit("main", f"round {number}", {"round": f"{number}"}, allow_empty=True)

    def tree(self, landed: int) -> dict[str, bytes]:
        return dict(OLD)

    def check(self, repo: Repository, landed: int) -> None:
        super().check(repo, landed)
        assert set(repo.branches()) <= {"main", "side", f"b{landed}"}
        for name in repo.branches("b"):
            before, after = OLD, {**OLD, "put": data(landed), "volumes/file": data(landed)}
            between(content(repo, name), before, after)
            folder = repo.workspace(name, "volumes/").path
            files = {f"volumes/{p.relative_to(folder)}": p.read_bytes() for p in folder.rglob("*") if p.is_file()}
            if files.get("volumes/file") != b"":  # opened for writing, and nothing written yet
                between({**files, "loose": b"l"}, before, after)
        view = repo.location_of("main", "volumes/").path
        assert sorted(p.name for p in view.rglob("*") if p.is_file()) == ["big", "info", "old"]

    def check_clean(self, repo: Repository, landed: int) -> None:
        super().check_clean(repo, landed)
        assert set(repo.branches()) == {"main", "side"}
        if isinstance(repo, EmbeddedRepository):
            assert len(list((repo.root / "workspaces").iterdir())) == 0


class Collect(OnMain):
    """Every round removes a branch with work of its own, takes up some of its contents on `main`, and collects."""

    def round(self, repo: Repository, number: int) -> None:
        assert isinstance(repo, EmbeddedRepository)
        name = f"gone{number}"
        if name not in repo.branches():
            repo.create_branch(name, "main")
        repo.put(name, "waste", data(number, 100))
        repo.put(name, "wanted again", data(number))
        repo.commit(name, "soon gone", allow_empty=True)
        repo.delete_branch(name)
        repo.put("main", f"old/{number % 3}", data(number))
        repo.location_of("main", "volumes/")
        repo.commit("main", f"round {number}", {"round": f"{number}"})
        repo.collect_garbage(grace_s=0.0)

    def tree(self, landed: int) -> dict[str, bytes]:
        return {**OLD, **{f"old/{n % 3}": data(n) for n in range(landed)}}

    def check_clean(self, repo: Repository, landed: int) -> None:
        super().check_clean(repo, landed)
        assert isinstance(repo, EmbeddedRepository)
        assert set(repo.branches()) == {"main", "side"}
        needed = {stat.address for commit in repo.log("main") for stat in repo.list(commit.id)}
        assert {str(path) for path in (repo.root / "objects").rglob("*") if path.is_file()} == needed


OPERATIONS: Mapping[str, Operation] = {
    "put": Put(),
    "commit": Commit(),
    "workspace": Workspace(),
    "merge": Merge(),
    "revert": Revert(),
    "cherry-pick": CherryPick(),
    "tag": Tag(),
    "reset": Reset(),
    "branch": Branch(),
    "gc": Collect(),
}
ON_A_SERVER = ("put", "commit", "merge", "revert", "cherry-pick", "tag")
