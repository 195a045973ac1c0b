"""The embedded engine beside its nearest peers, each doing the same work on the same disk, in turn.

icechunk (versioned zarr), DVC (versioned files by a cache of contents) and plain git with Git LFS pointers. What they
promise differs: ours alone has on the disk what was committed when the call returns. So there are "durable" rows: for
the others the same work and then a sync. Nothing is asserted about speed, the figures are for reading; every way must
give the same content back.

The peers come with the optional extra `bench`; git, and git-lfs where it is to be measured, are programs.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import lake
from lake.testing.figures import Figures

pytestmark = pytest.mark.bench

ROUNDS = 5
SHAPE, CHUNK = (128, 512, 1024), (64, 64, 64)  # 64 MiB of uint8 in 256 chunks
Record = Callable[[str, object], None]
WHY = "install the extra `bench`"
THREADS = 16
COPIES, LINKS = "checkout, copies", "checkout, links"


# -- zarr data: icechunk ----------------------------------------------------------------------------------------------
def zarr_in_ours(zarr, repo, timed, array: np.ndarray, turn: int) -> None:
    branch = f"work{turn}"
    timed("branch", lambda: repo.create_branch(branch, "main"))
    place = repo.workspace(branch, "volumes/em/")
    store = zarr.storage.LocalStore(place.path)

    def write() -> str:
        timed("write", lambda: created(zarr, store, array))
        return timed("commit", lambda: repo.commit(branch, "written"))

    timed("both, durable", write)

    def change() -> str:
        place = repo.workspace(branch, "volumes/em/")
        edited(zarr, zarr.storage.LocalStore(place.path))
        return repo.commit(branch, "one chunk")

    commit = timed("a chunk, durable", lambda: timed("a chunk, committed", change))

    def read(ref: str) -> np.ndarray:
        folder = repo.location_of(ref, "volumes/em/").path
        return zarr.open_array(zarr.storage.LocalStore(folder, read_only=True), mode="r")[:]

    check_versions(timed, array, partial(read, f"{commit}~1"), partial(read, commit))


def zarr_in_icechunk(zarr, repo, timed, array: np.ndarray, turn: int) -> None:
    branch = f"work{turn}"
    timed("branch", lambda: repo.create_branch(branch, repo.lookup_branch("main")))
    session = repo.writable_session(branch)

    def write() -> str:
        timed("write", lambda: created(zarr, session.store, array))
        return timed("commit", lambda: session.commit("written"))

    first = timed("both, durable", lambda: synced(write))

    def change() -> str:
        session = repo.writable_session(branch)
        edited(zarr, session.store)
        return session.commit("one chunk")

    second = timed("a chunk, durable", lambda: synced(lambda: timed("a chunk, committed", change)))

    def read(snapshot: str) -> np.ndarray:
        return zarr.open_array(repo.readonly_session(snapshot_id=snapshot).store, mode="r")[:]

    check_versions(timed, array, partial(read, first), partial(read, second))


def synced(work: Callable[[], str]) -> str:
    version = work()
    os.sync()
    return version


def created(zarr, store, array: np.ndarray) -> None:
    zarr.create_array(store, shape=array.shape, chunks=CHUNK, dtype=array.dtype)[:] = array


def edited(zarr, store) -> None:
    zarr.open_array(store, mode="r+")[:64, :64, :64] = 7


def check_versions(timed, array: np.ndarray, old: Callable[[], np.ndarray], new: Callable[[], np.ndarray]) -> None:
    expected = array.copy()
    expected[:64, :64, :64] = 7
    assert (timed("open and read", new) == expected).all()
    assert (timed("read again", new) == expected).all()
    assert (old() == array).all()


@pytest.mark.filterwarnings("ignore")  # the peers' own
def test_icechunk(tmp_path, record_property: Record) -> None:
    zarr = pytest.importorskip("zarr", reason=WHY)
    icechunk = pytest.importorskip("icechunk", reason=WHY)
    theirs = icechunk.Repository.create(icechunk.local_filesystem_storage(str(tmp_path / "icechunk")))
    figures = Figures("64 MiB of zarr 3 in 256 chunks, by zarr-python", "emlake", "icechunk")
    with closing(lake.create(tmp_path / "emlake")) as ours:
        for turn in range(ROUNDS):
            array = np.random.default_rng(turn).normal(128, 20, SHAPE).clip(0, 255).astype(np.uint8)
            os.sync()
            zarr_in_ours(zarr, ours, partial(figures.timed, "emlake"), array, turn)
            os.sync()
            zarr_in_icechunk(zarr, theirs, partial(figures.timed, "icechunk"), array, turn)
    figures.show(record_property)


# -- files: DVC and git -----------------------------------------------------------------------------------------------
class Way:
    """One way to keep versions of a folder of files.

    `add` keeps what lies in `incoming` and names the version; `checkout` brings a version out, to `outgoing` if that is
    where files are written, which is not there before; `row` says whether as copies or as links.
    """

    row: str
    checkout: Callable[[str], Path]
    syncs = False

    def __init__(self, root: Path, incoming: Path, outgoing: Path) -> None:
        self.root, self.incoming, self.outgoing = root, incoming, outgoing

    def close(self) -> None:
        pass


class Ours(Way):
    """Objects of a branch, put one by one in threads; out again as copies."""

    syncs = True

    def __init__(self, root: Path) -> None:
        super().__init__(root, root / "incoming", root / "outgoing")
        self._repo = lake.create(root / "repo")
        self.row, self.checkout = COPIES, self._copies

    def add(self) -> str:
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda file: self._repo.put("main", f"raw/{file.name}", file), self.incoming.iterdir()))
        return self._repo.commit("main", "files")

    def _copies(self, version: str) -> Path:
        return shutil.copytree(self._repo.location_of(version, "raw/").path, self.outgoing)

    def close(self) -> None:
        self._repo.close()


class Workspace(Ours):
    """The same by the places where native libraries write and read: files copied in, links of a view out."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.row, self.checkout = LINKS, self._links

    def add(self) -> str:
        place = self._repo.workspace("main", "raw/").path
        for file in place.iterdir():
            file.unlink()
        shutil.copytree(self.incoming, place, dirs_exist_ok=True)
        return self._repo.commit("main", "files")

    def _links(self, version: str) -> Path:
        return self._repo.location_of(version, "raw/").path


class Dvc(Way):
    """One output of DVC, copied into its cache and out again as it does by itself, or linked to it."""

    def __init__(self, root: Path, *, links: bool = False) -> None:
        from dvc.repo import Repo

        super().__init__(root, root / "raw", root / "raw")
        root.mkdir()
        with closing(Repo.init(str(root), no_scm=True)) as repo, repo.config.edit() as settings:
            settings["cache"]["type"] = "hardlink" if links else "copy"
            settings["core"]["analytics"] = False
        self._repo = Repo(str(root))
        self.row, self.checkout = LINKS if links else COPIES, self._checkout

    def add(self) -> str:
        self._repo.add(str(self.incoming))
        return (self.root / "raw.dvc").read_text()

    def _checkout(self, version: str) -> Path:
        (self.root / "raw.dvc").write_text(version)
        self._repo.checkout([str(self.root / "raw.dvc")], force=True)
        return self.outgoing

    def close(self) -> None:
        self._repo.close()


class Pointers(Way):
    """What Git LFS does, by hand: pointers in the history, contents in `.git/lfs/objects`."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, root / "incoming", root / "outgoing")
        root.mkdir()
        self.git("init", "--quiet", "--initial-branch", "main")
        self.row, self.checkout = COPIES, self._checkout

    def git(self, *arguments: str) -> str:
        who = ("-c", "user.name=bench", "-c", "user.email=bench@localhost")
        done = subprocess.run(["git", *who, *arguments], cwd=self.root, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def _place(self, digest: str) -> Path:
        return self.root / ".git/lfs/objects" / digest[:2] / digest[2:4] / digest

    def add(self) -> str:
        (self.root / "raw").mkdir(exist_ok=True)
        for file in sorted(self.incoming.iterdir()):
            data = file.read_bytes()
            digest = hashlib.sha256(data).hexdigest()
            place = self._place(digest)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(data)}\n"
            (self.root / "raw" / file.name).write_text(pointer)
        return self.commit()

    def commit(self) -> str:
        self.git("add", "raw")
        self.git("commit", "--quiet", "--message", "files")
        return self.git("rev-parse", "HEAD")

    def _checkout(self, version: str) -> Path:
        self.git("checkout", "--quiet", version, "--", "raw")
        self.outgoing.mkdir()
        for pointer in sorted((self.root / "raw").iterdir()):
            digest = pointer.read_text().split("sha256:")[1].split()[0]
            shutil.copyfile(self._place(digest), self.outgoing / pointer.name)
        return self.outgoing


class Lfs(Pointers):
    """Git LFS itself."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.incoming = self.outgoing = root / "raw"
        self.git("lfs", "install", "--local")
        self.git("lfs", "track", "raw/*")
        self.checkout = self._smudged

    def add(self) -> str:
        self.git("add", ".gitattributes")
        return self.commit()

    def _smudged(self, version: str) -> Path:
        self.git("checkout", "--quiet", version, "--", "raw")
        return self.outgoing


def ways(folder: Path) -> dict[str, Way]:
    """Open what there is; the peers that are missing are named."""
    found: dict[str, Way] = {"emlake": Ours(folder / "emlake"), "emlake, workspace": Workspace(folder / "workspace")}
    if importlib.util.find_spec("dvc"):
        found |= {"DVC": Dvc(folder / "dvc"), "DVC, hard links": Dvc(folder / "linked", links=True)}
    else:
        print(f"\nno DVC: {WHY}")
    if shutil.which("git"):
        found["git, LFS pointers"] = Pointers(folder / "git")
    if shutil.which("git") and shutil.which("git-lfs"):
        found["git-lfs"] = Lfs(folder / "lfs")
    else:
        print("\nno git-lfs on PATH")
    if len(found) == 2:
        pytest.skip(f"no peer: neither git nor DVC ({WHY})")
    return found


def added(figures: Figures, name: str, way: Way) -> str:
    add = partial(figures.timed, name, "add", way.add)
    return add() if way.syncs else synced(add)


def put_aside(folder: Path, aside: Path) -> None:
    """Take a folder away with its files: to remove them would slow down whoever makes new ones in the next minutes.

    ext4 without a journal looks at each inode that was freed lately, and passes it over, before it takes a free one:
    after 8,000 files were removed, making one cost 20 times the CPU.
    """
    aside.mkdir(exist_ok=True)
    if folder.exists():
        folder.rename(aside / str(len(os.listdir(aside))))


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.filterwarnings("ignore")  # the peers' own
@pytest.mark.parametrize(("size", "count"), [(4 << 10, 1000), (4 << 20, 16)])
def test_files(tmp_path, size: int, count: int, record_property: Record) -> None:
    found = ways(tmp_path)
    figures = Figures(f"{count:,} files of {size >> 10} KiB", *found)
    versions: dict[str, list[str]] = {name: [] for name in found}
    written: list[dict[str, bytes]] = []
    for turn in range(ROUNDS):
        block = np.random.default_rng(turn).bytes(size)
        written.append({f"{number:04}": number.to_bytes(8, "little") + block[8:] for number in range(count)})
        for name, way in found.items():
            put_aside(way.incoming, tmp_path / "aside")
            way.incoming.mkdir()
            for file, data in written[-1].items():
                (way.incoming / file).write_bytes(data)
            os.sync()
            versions[name].append(figures.timed(name, "add, durable", partial(added, figures, name, way)))
            if turn:  # the version before: what one goes back to
                put_aside(way.outgoing, tmp_path / "aside")
                os.sync()
                out = figures.timed(name, way.row, partial(way.checkout, versions[name][-2]))
                assert contents(out) == written[-2], name
    for way in found.values():
        way.close()
    figures.show(record_property)
