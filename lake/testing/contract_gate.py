"""Main of a repository that has a release gate: what it takes, and that nothing else moves it.

The rules themselves, on many candidates, are tested where candidates are made; here is when they are asked.
"""

import json
from collections.abc import Callable

import pytest

from lake.admission import POLICY_KEY, gate_at
from lake.engines.lakefs.gate import GATE_KEY, NO_RELEASE, ONLY_RELEASES, SQUASHED, gate_yaml
from lake.errors import ConflictError, GateRefused, NothingToCommit
from lake.repository import CommitId, Metadata, Repository
from lake.testing.trees import save, tree


def lay_gate(repo: Repository) -> CommitId:
    """Put the gate and a policy on main."""
    repo.put("main", GATE_KEY, gate_yaml(), content_type="application/yaml")
    return save(repo, "main", {POLICY_KEY: b"strict", "tables/base/part": b"0"})


def judged(repo: Repository, data: dict[str, bytes | None], name: str = "r1") -> Metadata:
    """Make branch `work` off main with this data and a verdict on it; gives what its merge must carry."""
    dest = repo.create_branch("work", "main")
    q = save(repo, "work", data)
    verdict = json.dumps({"status": "pass", "commit": q, "dest": dest}).encode()
    save(repo, "work", {f"_qc/{q}.json": verdict})
    return {"release": name, "qc": q, "expect_dest": dest}


def refused(repo: Repository, why: str, act: Callable[[], object]) -> None:
    """Expect the gate to refuse, in these words, and main to stay as it is."""
    before = repo.resolve("main"), tree(repo, "main")
    with pytest.raises(GateRefused) as caught:
        act()
    assert why in caught.value.message
    assert caught.value.fix
    assert (repo.resolve("main"), tree(repo, "main")) == before


class GateContract:
    """What moves a main that has a gate."""

    def test_main_without_a_gate_takes_anything(self, repo: Repository) -> None:
        repo.create_branch("work", "main")
        repo.merge("work", "main", "m", squash=True, allow_empty=True)
        picked = save(repo, "work", {"a": b"1"})
        repo.cherry_pick("main", picked)
        save(repo, "main", {"b": b"1"})
        assert tree(repo, "main") == {"a": b"1", "b": b"1"}

    def test_a_release_becomes_the_tree_of_main_and_is_undone(self, repo: Repository) -> None:
        lay_gate(repo)
        before = tree(repo, "main")
        merged = repo.merge("work", "main", "r1", judged(repo, {"tables/t/part": b"1"}))
        assert repo.resolve("main") == merged
        assert tree(repo, "main") == tree(repo, "work")
        repo.revert("main", merged, parent=1)
        assert tree(repo, "main") == before

    def test_a_merge_that_is_no_release_is_refused(self, repo: Repository) -> None:
        lay_gate(repo)
        repo.create_branch("stray", "main")
        save(repo, "stray", {"tables/t/part": b"1"})
        refused(repo, NO_RELEASE, lambda: repo.merge("stray", "main", "m"))
        refused(repo, NO_RELEASE, lambda: repo.merge("stray", "main", "m", strategy="source-wins", allow_empty=True))
        refused(repo, NO_RELEASE, lambda: repo.merge("stray", "main", "m", expect_head=repo.resolve("main")))

    def test_a_session_on_main_cannot_land(self, repo: Repository) -> None:
        lay_gate(repo)
        with repo.session("main", owner="stray") as session:
            session.put("tables/t/part", b"1")
            refused(repo, SQUASHED, lambda: session.commit("m"))
            refused(repo, SQUASHED, lambda: session.commit("m"))  # it is open still

    def test_a_squash_merge_is_refused_whatever_it_carries(self, repo: Repository) -> None:
        lay_gate(repo)
        metadata = judged(repo, {"tables/t/part": b"1"})
        refused(repo, SQUASHED, lambda: repo.merge("work", "main", "r1", metadata, squash=True))

    def test_what_was_changed_after_it_was_judged_is_refused(self, repo: Repository) -> None:
        lay_gate(repo)
        metadata = judged(repo, {"tables/t/part": b"1"})
        save(repo, "work", {"tables/t/part": b"2"})
        refused(repo, "changed after QC: tables/t/part", lambda: repo.merge("work", "main", "r1", metadata))

    @pytest.mark.parametrize("gate", [None, gate_yaml() + b"# looser\n"], ids=["dropped", "edited"])
    def test_a_candidate_that_drops_or_edits_the_gate_is_refused(self, repo: Repository, gate: bytes | None) -> None:
        lay_gate(repo)
        metadata = judged(repo, {"tables/t/part": b"1", GATE_KEY: gate})
        refused(repo, "together with tables/t/part", lambda: repo.merge("work", "main", "r1", metadata))

    def test_a_stray_branch_gets_past_by_dropping_the_gate_no_more_than_with_it(self, repo: Repository) -> None:
        lay_gate(repo)
        repo.create_branch("stray", "main")
        save(repo, "stray", {GATE_KEY: None, "tables/t/part": b"1"})
        refused(repo, NO_RELEASE, lambda: repo.merge("stray", "main", "m"))

    def test_a_gate_that_the_source_alone_brings_is_asked_too(self, repo: Repository) -> None:
        repo.create_branch("stray", "main")
        save(repo, "stray", {GATE_KEY: gate_yaml()})
        refused(repo, NO_RELEASE, lambda: repo.merge("stray", "main", "m"))

    def test_a_cherry_pick_onto_main_is_refused_whatever_it_brings(self, repo: Repository) -> None:
        lay_gate(repo)
        repo.create_branch("stray", "main")
        picked = save(repo, "stray", {GATE_KEY: None, "tables/t/part": b"1"})
        refused(repo, ONLY_RELEASES, lambda: repo.cherry_pick("main", picked, metadata={"release": "r1"}))

    def test_a_revert_that_a_server_gets_wrong_passes_the_gate_all_the_same(self, repo: Repository) -> None:
        # A lakeFS 1.84 server, left to itself, takes `b` for the `c` that is undone (see `contract_merge`).
        save(repo, "main", {"a": b"1"})
        first = save(repo, "main", {"c": b"same"})
        save(repo, "main", {"b": b"same"})
        lay_gate(repo)
        repo.protect("main")
        head, held = repo.resolve("main"), tree(repo, "main")
        made = repo.commit_info(repo.revert("main", first, message="undo", metadata={"rollback_of": first}))
        assert tree(repo, "main") == {key: data for key, data in held.items() if key != "c"}
        assert (made.parents, made.message, made.metadata) == ((head,), "undo", {"rollback_of": first})

    def test_a_cherry_pick_that_a_server_gets_wrong_does_not_get_past_the_gate(self, repo: Repository) -> None:
        save(repo, "main", {"b": b"same", "c": b"same"})
        gone = save(repo, "main", {"b": None})
        lay_gate(repo)
        repo.create_branch("stray", "main")
        picked = save(repo, "stray", {GATE_KEY: None, "c": None})
        repo.revert("main", gone)
        refused(repo, ONLY_RELEASES, lambda: repo.cherry_pick("main", picked))

    def test_a_commit_on_main_is_refused_and_stays_staged(self, repo: Repository) -> None:
        lay_gate(repo)
        refused(repo, ONLY_RELEASES, lambda: repo.commit("main", "nothing"))
        repo.put("main", "tables/t/part", b"1")
        repo.delete("main", [GATE_KEY])
        refused(repo, ONLY_RELEASES, lambda: repo.commit("main", "m"))
        assert sorted(change.key for change in repo.uncommitted("main")) == [GATE_KEY, "tables/t/part"]

    def test_other_branches_are_free_and_may_drop_the_gate(self, repo: Repository) -> None:
        lay_gate(repo)
        repo.create_branch("work", "main")
        repo.create_branch("stray", "main")
        picked = save(repo, "stray", {"a": b"1"})
        repo.cherry_pick("work", picked)
        save(repo, "stray", {GATE_KEY: None})
        repo.merge("stray", "work", "m")
        assert gate_at(repo, repo.resolve("work")) is None

    def test_nothing_to_do_and_a_conflict_are_told_before_the_gate(self, repo: Repository) -> None:
        lay_gate(repo)
        repo.create_branch("stray", "main~1")
        with pytest.raises(NothingToCommit):
            repo.merge("stray", "main", "m")
        with pytest.raises(NothingToCommit):
            repo.cherry_pick("main", "main")
        changed = save(repo, "stray", {"tables/base/part": b"other"})
        with pytest.raises(ConflictError, match="tables/base/"):
            repo.merge("stray", "main", "m")
        with pytest.raises(ConflictError, match="tables/base/"):
            repo.cherry_pick("main", changed)

    def test_main_is_set_back_where_no_rule_protects_it(self, repo: Repository) -> None:
        before = repo.resolve("main")
        lay_gate(repo)
        assert repo.reset_to("main", before) == before
