"""A tiny repository of every format that was ever released opens for ever, reads as it was written, and goes on.

`make fossil` writes `tests/fossils/format-<n>.tar.xz` for the present format: once, before the first release of emlake
that writes it. A fossil is never written again. It holds `repository/`, with times cut to whole seconds (so no seal of
an object is whole, as after a copy by other tools), and `expected.json`, which says what is in it.
"""

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path

import pytest

import lake
from lake.box import Box
from lake.engines.embedded.layout import FORMAT, MARKER
from lake.errors import AlreadyExists, ProtectedBranch
from lake.losses import accept
from lake.scrub import scrub
from lake.testing.crash import check_whole
from releases.history import standing
from releases.publish import publish, rollback
from releases.verify import verify

FOSSILS = Path(__file__).parents[1] / "fossils"
FOUND = sorted(FOSSILS.glob("format-*.tar.xz"))
WRITE = "EMLAKE_WRITE_FOSSIL"
LIVING = ("refs.sqlite-wal", "refs.sqlite-shm")


def digests(repo, ref):
    return {stat.key: hashlib.sha256(repo.get(ref, stat.key)).hexdigest() for stat in repo.list(ref)}


def describe(repo):
    """Say all that a repository holds, in words of the contract alone."""
    commits = {commit.id: commit for ref in repo.branches() for commit in repo.log(ref)}
    with repo.snapshot("r1") as r1:
        rows = {name: r1.table(name).collect().height for name in r1.tables()}
        em = r1.volume("em").read(Box((0, 0, 0), (4, 4, 8)))
        segments = r1.sql("SELECT count(*), sum(voxels)::BIGINT FROM segments").rows()
        ops = r1.sql("SELECT release FROM ops.releases ORDER BY release").rows()
    with repo.snapshot("main") as now:
        decisions = now.sql("SELECT kind, release FROM ops.decisions ORDER BY ts").rows()
    return {
        "branches": dict(repo.branches()),
        "tags": dict(repo.tags()),
        "protected": list(repo.protected()),
        "commits": {
            commit.id: {
                "parents": list(commit.parents),
                "message": commit.message,
                "created": commit.created.isoformat(),
                "metadata": dict(commit.metadata),
                "objects": digests(repo, commit.id),
            }
            for commit in commits.values()
        },
        "staged": digests(repo, "desk"),
        "uncommitted": [[change.key, change.kind] for change in repo.uncommitted("desk")],
        "rows": rows,
        "em": hashlib.sha256(em.tobytes()).hexdigest(),
        "segments": [list(row) for row in segments],
        "ops": [list(row) for row in ops],
        "decisions": [list(row) for row in decisions],
    }


@pytest.mark.skipif(WRITE not in os.environ, reason="only `make fossil` writes one")
def test_the_fossil_of_the_present_format_is_written(repo, make):
    target = FOSSILS / f"format-{FORMAT}.tar.xz"
    if target.exists():
        raise AlreadyExists(f"{target} exists, and a fossil is never written again", fix="raise layout.FORMAT first")
    make("r1")
    publish(repo, "r1", user="ann")
    make("r2", merge=True)
    publish(repo, "r2", user="ann")
    rollback(repo, user="ann", reason="to be read in many years")
    repo.create_branch("desk", "main")
    repo.put("desk", "notes/staged.txt", b"staged, and not committed yet", content_type="text/plain")
    repo.put("desk", "notes/gone.txt", b"to be removed")
    repo.commit("desk", "a note", {"why": "fossil"})
    repo.put("desk", "notes/staged.txt", b"staged again", content_type="text/plain", metadata={"by": "ann"})
    repo.delete("desk", ["notes/gone.txt"])
    expected = json.dumps(describe(repo), indent=1).encode()
    repo.close()

    def settle(member):
        member.mtime, member.uid, member.gid, member.uname, member.gname = int(member.mtime), 0, 0, "", ""
        parts = Path(member.name).parts
        inside = len(parts) > 2 and parts[1] in {"tmp", "locks", "views"}
        return None if inside or parts[-1] in LIVING else member

    with tarfile.open(target, "x:xz", preset=9) as archive:
        archive.add(repo.root, "repository", filter=settle)
        told = tarfile.TarInfo("expected.json")
        told.size = len(expected)
        archive.addfile(told, io.BytesIO(expected))


def test_every_format_has_a_fossil():
    names = {path.name for path in FOUND}
    assert {f"format-{number}.tar.xz" for number in range(1, FORMAT + 1)} <= names, "make fossil"
    assert all(path.stat().st_size < 200_000 for path in FOUND)


@pytest.fixture(params=FOUND, ids=lambda path: path.name.partition(".")[0])
def fossil(request, tmp_path):
    """Unpack a fossil; gives its folder and what it holds."""
    with tarfile.open(request.param) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "repository", json.loads((tmp_path / "expected.json").read_bytes())


def test_a_fossil_reads_as_it_was_written_and_goes_on(fossil):
    root, expected = fossil
    assert json.loads((root / MARKER).read_text())["format"] <= FORMAT
    repo = lake.open(root)
    found = json.loads(json.dumps(describe(repo)))
    assert found == expected
    assert expected["staged"].keys() - expected["commits"][expected["branches"]["desk"]]["objects"].keys() == set()
    assert repo.stat("desk", "notes/staged.txt").metadata == {"by": "ann"}
    check_whole(repo)
    for release in ("r1", "r2"):
        assert verify(repo, release).faults == ()
    assert [release.name for release in standing(repo)] == ["r1"], "r2 was rolled back"
    with pytest.raises(ProtectedBranch):
        repo.put("main", "a", b"1")
    # It goes on: what was staged is committed, a table grows, a branch is merged, the collector finds nothing amiss.
    repo.commit("desk", "at last")
    assert repo.get("desk@", "notes/staged.txt") == b"staged again"
    with repo.session("desk") as session:
        folder = session.workspace("volumes/em/").path
        (folder / "extra").write_bytes(b"x")
        session.commit("written beside an old volume")
    repo.merge("desk", "archive", "joined")
    assert repo.get("archive", "volumes/em/extra") == b"x"
    repo.delete_branch("desk")
    repo.collect_garbage(grace_s=0)
    assert check_whole(repo).keys() >= expected["commits"].keys()
    repo.close()


def test_a_fossil_is_scrubbed_and_a_loss_in_it_is_accepted(fossil):
    root, _ = fossil
    repo = lake.open(root)
    assert scrub(repo, budget=None).ok
    [lost, *_] = [stat for stat in repo.list("ops", "tables/decisions/") if stat.key.endswith(".parquet")]
    Path(lost.address).unlink()
    assert not scrub(repo, budget=None).ok
    [mended] = accept(repo, [lost.checksum], user="ann", reason="it is a fossil").mended
    assert (mended.table, mended.rows) == ("decisions", 1)
    assert scrub(repo, budget=None).ok
    with repo.snapshot("main") as now:
        assert now.sql("SELECT kind FROM ops.decisions ORDER BY ts").rows() == [("publish",), ("rollback",)]
    repo.close()


def test_a_copy_without_empty_folders_opens_too(fossil):
    # What git, and many a copying program, leave out.
    root, expected = fossil
    for folder in sorted(root.rglob("*"), reverse=True):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    repo = lake.open(root)
    assert dict(repo.branches()) == expected["branches"]
    repo.put("desk", "more", bytes(range(256)) * 300)
    repo.commit("desk", "more")
    assert repo.location_of("desk", "notes/").path.is_dir()
    check_whole(repo)
    repo.close()
