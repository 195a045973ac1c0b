"""The release gate on a real server, in the client and inside, driven by merges with metadata."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

import lake
from lake.engines.lakefs.gate import GATE_KEY, gate_yaml
from lake.errors import BadInput, ConflictError, GateRefused, LakeError, NothingToCommit
from lake.repository import Repository
from lake.testing import unasked

pytestmark = pytest.mark.lakefs


@dataclass
class Release:
    """A candidate on its way: data commit judged as `qc` against main's head `dest`."""

    repo: Repository
    branch: str
    name: str
    qc: str
    dest: str

    def verdict(self, status: str = "pass", **changed: str) -> "Release":
        verdict = {"status": status, "commit": self.qc, "dest": self.dest} | changed
        self.repo.put(self.branch, f"_qc/{self.qc}.json", json.dumps(verdict).encode())
        self.repo.put(self.branch, f"_releases/{self.name}/manifest.json", self.name.encode())
        self.repo.commit(self.branch, "verdict and manifest")
        return self

    def publish(self, **changed: str) -> str:
        metadata = {"release": self.name, "qc": self.qc, "expect_dest": self.dest} | changed
        return self.repo.merge(self.branch, "main", f"release {self.name}", metadata)


@pytest.fixture
def repo(lakefs_repo: Repository) -> Repository:
    lakefs_repo.put("main", GATE_KEY, gate_yaml())
    lakefs_repo.put("main", "tables/base/1", b"base")
    lakefs_repo.commit("main", "gate")
    return lakefs_repo


def candidate(repo: Repository, name: str = "r1", unit: str = "tables/synapses/", content: bytes = b"1") -> Release:
    branch = f"cand-{name}"
    dest = repo.create_branch(branch, "main")
    repo.put(branch, f"{unit}part", content)
    repo.commit(branch, "data")
    repo.put(branch, "tables/qc_metrics/part", name.encode())
    return Release(repo, branch, name, repo.commit(branch, "qc"), dest)


def tree(repo: Repository, ref: str, *, without: tuple[str, ...] = ()) -> dict[str, str]:
    return {entry.key: entry.checksum for entry in repo.list(ref) if not entry.key.startswith(without or ("\0",))}


def refused(asked: Release, why: str, **changed: str) -> None:
    before = asked.repo.resolve("main")
    with pytest.raises(GateRefused, match=why):
        asked.publish(**changed)
    assert asked.repo.resolve("main") == before


def test_a_judged_candidate_becomes_the_tree_of_main(repo):
    release = candidate(repo).verdict()
    merged = release.publish()
    assert repo.resolve("main") == merged
    assert repo.commit_info(merged).metadata == {"release": "r1", "qc": release.qc, "expect_dest": release.dest}
    assert tree(repo, "main") == tree(repo, "cand-r1")


def test_main_takes_neither_cherry_picks_nor_what_the_server_treats_as_a_commit(repo):
    before = repo.resolve("main")
    repo.create_branch("work", "main")
    repo.put("work", "tables/forged/part", b"1")
    repo.delete("work", [GATE_KEY])  # here the server reads the gate of main: what is picked has no say
    with pytest.raises(GateRefused, match="main takes releases and their undoing, nothing else"):
        unasked.cherry_pick(repo, repo.commit("work", "forged"))
    repo.put("main", "tables/forged/part", b"1")
    with pytest.raises(GateRefused, match="main takes releases and their undoing, nothing else"):
        repo.commit("main", "forged")
    assert repo.resolve("main") == before


def test_a_release_is_undone_on_main(repo):
    before = tree(repo, "main")
    merged = candidate(repo).verdict().publish()
    repo.revert("main", merged, parent=1)
    assert tree(repo, "main") == before


def test_a_waived_verdict_passes(repo):
    candidate(repo).verdict("waived").publish()


def test_a_merge_without_metadata_is_refused(repo):
    release = candidate(repo).verdict()
    with pytest.raises(GateRefused, match="not a release"):
        repo.merge(release.branch, "main", "just a merge")


@pytest.mark.parametrize("missing", ["release", "qc", "expect_dest"])
def test_each_of_the_three_entries_is_needed(repo, missing):
    release = candidate(repo).verdict()
    metadata = {"release": "r1", "qc": release.qc, "expect_dest": release.dest}
    del metadata[missing]
    with pytest.raises(GateRefused, match="not a release"):
        repo.merge(release.branch, "main", "release r1", metadata)


@pytest.mark.parametrize("name", ["", "../r1", "r 1", "-r1", "r1/x"])
def test_a_bad_release_name_is_refused(repo, name):
    refused(candidate(repo).verdict(), "release name is not valid", release=name)


def test_an_abbreviated_qc_commit_is_refused(repo):
    release = candidate(repo).verdict()
    refused(release, "not a full commit id", qc=release.qc[:12])


def test_a_stale_destination_is_refused(repo):
    release = candidate(repo).verdict()
    refused(release, "main has moved", expect_dest=release.qc)


def test_a_missing_verdict_is_refused(repo):
    refused(candidate(repo), "no QC verdict")


@pytest.mark.parametrize("text", [b"pass", b"{", b'"pass"', b"", b"[]", b"null"])
def test_a_verdict_that_is_no_json_object_is_refused(repo, text):
    release = candidate(repo)
    repo.put(release.branch, f"_qc/{release.qc}.json", text)
    repo.commit(release.branch, "verdict")
    refused(release, "not a JSON object|QC verdict is not told")


@pytest.mark.parametrize("status", ["fail", "unknown", "PASS", ""])
def test_any_other_status_is_refused(repo, status):
    refused(candidate(repo).verdict(status), f"the QC verdict is {status}".strip())


def test_a_verdict_on_another_commit_is_refused(repo):
    refused(candidate(repo).verdict(commit="0" * 64), "verdict is on commit 000")


def test_a_verdict_against_another_destination_is_refused(repo):
    refused(candidate(repo).verdict(dest="0" * 64), "reached against 000")


@pytest.mark.parametrize("key", ["tables/synapses/part", "volumes/em/info", "_policy/release.toml", "a", GATE_KEY])
def test_data_changed_after_qc_is_refused(repo, key):
    release = candidate(repo).verdict()
    repo.put(release.branch, key, gate_yaml() + b"# changed")
    repo.commit(release.branch, "one more thing")
    refused(release, f"changed after QC: {key}")


def test_data_removed_after_qc_is_refused(repo):
    release = candidate(repo).verdict()
    repo.delete(release.branch, ["tables/synapses/part"])
    repo.commit(release.branch, "one thing less")
    refused(release, "changed after QC: tables/synapses/part")


def test_the_folder_of_another_release_is_refused(repo):
    release = candidate(repo).verdict()
    repo.put(release.branch, "_releases/r10/manifest.json", b"x")
    repo.commit(release.branch, "two at once")
    refused(release, "changed after QC: _releases/r10/manifest.json")


def test_a_report_of_1200_files_passes_and_hides_no_change_behind_it(repo):
    release = candidate(repo)
    with ThreadPoolExecutor(8) as pool:
        keys = [f"_qc/{release.qc}/report/{n:04d}.html" for n in range(1200)]
        list(pool.map(lambda key: repo.put(release.branch, key, key.encode()), keys))
    release.verdict()
    repo.create_branch("cand-late", release.branch)
    repo.put("cand-late", "volumes/em/info", b"changed")
    repo.commit("cand-late", "behind 1,200 allowed paths")
    refused(Release(repo, "cand-late", "r1", release.qc, release.dest), "changed after QC: volumes/em/info")
    release.publish()


def test_a_sibling_passed_off_as_the_judged_commit_is_refused(repo):
    judged, other = candidate(repo, "r1"), candidate(repo, "r2", content=b"2")
    liar = Release(repo, other.branch, "r2", judged.qc, judged.dest).verdict()
    refused(liar, "changed after QC|another line of work")


def test_a_judged_commit_with_more_than_the_candidate_is_refused(repo):
    release = candidate(repo)
    repo.create_branch("cand-r2", f"{release.branch}~1")
    short = Release(repo, "cand-r2", "r2", release.qc, release.dest).verdict()
    refused(short, "another line of work, with tables/qc_metrics/part")


def test_main_holding_what_the_candidate_lacks_is_refused(repo):
    first, second = candidate(repo, "r1"), candidate(repo, "r2", unit="tables/segments/")
    first.verdict().publish()
    late = Release(repo, second.branch, "r2", second.qc, repo.resolve("main"))
    # tables/qc_metrics is replaced by each release: taking the candidate's side of it gets past the conflict.
    late.verdict()
    with pytest.raises(GateRefused, match="main holds what the candidate lacks"):
        repo.merge(
            late.branch,
            "main",
            "release r2",
            {"release": "r2", "qc": late.qc, "expect_dest": late.dest},
            strategy="source-wins",
            contested=("tables/qc_",),
        )


def test_of_two_candidates_side_by_side_the_second_is_refreshed(repo):
    first, second = candidate(repo, "r1"), candidate(repo, "r2", unit="tables/segments/")
    first.verdict().publish()
    second = Release(repo, second.branch, "r2", second.qc, repo.resolve("main")).verdict()
    with pytest.raises(ConflictError) as caught:
        second.publish()
    assert caught.value.units == ("tables/qc_metrics/",)
    repo.merge("main", second.branch, "refresh", strategy="dest-wins", contested=("tables/qc_", "_qc/"))
    repo.put(second.branch, "tables/qc_metrics/part", b"measured anew")
    repo.delete(second.branch, [entry.key for entry in repo.list(second.branch, "_qc/")])
    fresh = Release(repo, second.branch, "r2", repo.commit(second.branch, "qc"), repo.resolve("main")).verdict()
    fresh.publish()
    assert tree(repo, "main") == tree(repo, second.branch)
    assert "tables/synapses/part" in tree(repo, "main")


def test_of_eight_racing_publishers_one_wins(repo):
    releases = [candidate(repo, f"r{n}", unit=f"tables/t{n}/").verdict() for n in range(8)]

    def attempt(release: Release) -> str | LakeError:
        other = lake.open(repo.location)
        try:
            return other.merge(
                release.branch,
                "main",
                f"release {release.name}",
                {"release": release.name, "qc": release.qc, "expect_dest": release.dest},
            )
        except (GateRefused, ConflictError) as error:
            return error
        finally:
            other.close()

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(attempt, releases))
    won = [result for result in results if isinstance(result, str)]
    assert len(won) == 1, results
    assert repo.resolve("main") == won[0]
    # The candidates share tables/qc_metrics, so a late one may already fail on the unit.
    assert all(isinstance(result, GateRefused | ConflictError) for result in results if result != won[0])


def test_merging_a_rolled_back_candidate_again_never_reaches_the_gate(repo):
    release = candidate(repo).verdict()
    merged = release.publish()
    repo.revert("main", merged, parent=1, message="rollback r1")
    with pytest.raises((NothingToCommit, ConflictError, BadInput)):
        Release(repo, release.branch, "r1", release.qc, repo.resolve("main")).publish()


def test_a_release_made_again_by_reverting_the_revert_has_the_first_ones_tree(repo):
    merged = candidate(repo).verdict().publish()
    rollback = repo.revert("main", merged, parent=1, message="rollback r1")
    assert tree(repo, "main") == tree(repo, f"{merged}^1")
    dest = repo.create_branch("cand-r2", "main")
    repo.revert("cand-r2", rollback)
    repo.delete("cand-r2", [entry.key for entry in repo.list("cand-r2", "_qc/")])
    again = Release(repo, "cand-r2", "r2", repo.commit("cand-r2", "qc"), dest).verdict()
    again.publish()
    own = ("_qc/", "_releases/")
    assert tree(repo, "main", without=own) == tree(repo, merged, without=own)
    assert "tables/synapses/part" in tree(repo, "main")


def test_a_revert_on_a_protected_main_needs_no_verdict(repo):
    merged = candidate(repo).verdict().publish()
    repo.protect("main")
    repo.revert("main", merged, parent=1)
    assert tree(repo, "main") == tree(repo, f"{merged}^1")


@pytest.mark.slow
def test_branches_made_anew_without_the_gate_commit_while_the_server_forgets_the_old_ones(lakefs_repo):
    first = lakefs_repo.resolve("main")
    lakefs_repo.put("main", GATE_KEY, gate_yaml())
    lakefs_repo.commit("main", "gate")
    # The server forgets list and file after 5 s and some jitter each; for half of the branches the file goes first.
    names = [f"work-{number}" for number in range(8)]
    for name in names:
        lakefs_repo.create_branch(name, "main")
        lakefs_repo.put(name, "a", b"1")
        lakefs_repo.commit(name, "the server reads the actions of this branch")
        lakefs_repo.delete_branch(name)
        lakefs_repo.create_branch(name, first)
    until, done = time.monotonic() + 8.0, 0
    while time.monotonic() < until:
        for name in names:
            lakefs_repo.put(name, "b", str(done).encode())
            lakefs_repo.commit(name, "there are none now")
        done += 1
    for name in names:
        assert [entry.key for entry in lakefs_repo.list(name)] == ["b"]
        assert len(list(lakefs_repo.log(name, first_parent=True))) == done + len(list(lakefs_repo.log(first)))
