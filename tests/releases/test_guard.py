"""Main that was moved past the gate is found, blocks the next publication, and is undone."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import lake
from lake import admission, server
from lake.engines.embedded import commits
from lake.engines.embedded.repository import EmbeddedRepository
from lake.engines.lakefs.gate import GATE_KEY, gate_yaml
from lake.errors import ConflictError, StorageError
from lake.testing import unasked
from lake.testing.server import program
from releases import guard
from releases.app.cli import app
from releases.app.health import faults
from releases.history import standing
from releases.publish import publish, rollback
from releases.setup import init

FREE_PASS = gate_yaml().split(b"        check_request()\n        check_verdict()\n")[0]


def wrong(repo) -> list[tuple[str, str]]:
    return [(what, state) for what, state, _ in guard.examine(repo) if state != "ok"]


def told(repo) -> str:
    return "\n".join(" ".join(finding) for finding in guard.examine(repo))


def dodge(repo, name: str, gate: bytes | None) -> str:
    """Merge a candidate that brings another gate, or none, and data nobody judged, with the metadata of a release."""
    branch = f"cand-{name}"
    dest = repo.create_branch(branch, "main")
    # Whoever can do this may write to the branch: protection is no part of this test.
    work = f"work-{name}"
    repo.create_branch(work, branch)
    if gate is None:
        repo.delete(work, [GATE_KEY])
    else:
        repo.put(work, GATE_KEY, gate)
    repo.put(work, "tables/forged/part", b"nobody judged this")
    q = repo.commit(work, "work")
    repo.put(work, f"_qc/{q}.json", json.dumps({"status": "pass", "commit": q, "dest": dest}).encode())
    repo.put(work, f"_releases/{name}/manifest.json", b"{}")
    repo.commit(work, "verdict")
    return unasked.merge(repo, work, f"release {name}", {"release": name, "qc": q, "expect_dest": dest})


@pytest.mark.slow
def test_nothing_is_wrong_after_a_life_of_releases(repo, make):
    make("r1")
    publish(repo, "r1", user="ann")
    make("r2", merge=True)
    publish(repo, "r2", user="ann")
    rollback(repo, user="ann", reason="a drill")
    assert wrong(repo) == []


def test_a_repository_without_releases_is_not_examined(tmp_path):
    assert guard.examine(lake.create(str(tmp_path / "plain"))) == []


def test_a_merge_past_the_client_is_found_and_blocks_until_it_is_undone(repo, make):
    make("r1")
    stray = unasked.merge(repo, "cand-r1", "just a merge")
    make("r2", merge=True)
    assert wrong(repo) == [("main", "past gate")]
    assert stray in told(repo)
    with pytest.raises(ConflictError, match=f"past the gate by {stray}") as caught:
        publish(repo, "r2", user="ann")
    undo = caught.value.fix.removeprefix("undo it: ")
    eval(undo, {"repo": repo})  # the fix is a line that can be typed as it stands
    assert wrong(repo) == []
    make("r3")
    assert publish(repo, "r3", user="ann").made


def test_a_rollback_by_another_program_is_found(repo, make):
    make("r1")
    merge = publish(repo, "r1", user="ann").release.merge
    repo.revert("main", merge, parent=1)
    assert wrong(repo) == [("main", "past gate")]


@pytest.mark.slow
def test_a_rollback_that_does_not_give_back_what_main_held_is_found(repo, make):
    make("r1")
    publish(repo, "r1", user="ann")
    make("r2", merge=True)
    second = publish(repo, "r2", user="ann").release.merge
    unasked.merge(repo, "cand-r1", "nothing", {"rollback_of": second})
    assert ("rollback", "past gate") in wrong(repo)


def test_a_cherry_pick_onto_main_is_found_and_blocks_whatever_it_says_of_itself(repo, make):
    make("r1")
    first = publish(repo, "r1", user="ann").release.merge
    repo.create_branch("work", "main")
    repo.put("work", "tables/forged/part", b"1")
    forged = repo.commit("work", "forged")
    picked = unasked.cherry_pick(repo, forged, {"rollback_of": first})
    assert ("rollback", "past gate") in wrong(repo)
    make("r2")
    with pytest.raises(ConflictError, match=f"past the gate by {picked}") as caught:
        publish(repo, "r2", user="ann")
    eval(caught.value.fix.removeprefix("undo it: "), {"repo": repo})
    assert wrong(repo) == []
    assert [release.name for release in standing(repo)] == ["r1"]  # it was never away
    make("r3", merge=True)
    assert publish(repo, "r3", user="ann").made


def test_a_main_that_was_set_back_by_another_program_is_found(repo, make):
    make("r1")
    release = publish(repo, "r1", user="ann").release
    commits.forward(repo._engine, "main", release.merge, release.previous_main)
    assert wrong(repo) == [("main", "set back")]
    assert release.merge in told(repo)
    commits.forward(repo._engine, "main", release.previous_main, release.merge)
    assert wrong(repo) == []


@pytest.mark.parametrize(("gate", "words"), [(None, "main holds no gate"), (FREE_PASS, "gate of another version")])
def test_a_release_that_brought_another_gate_is_found(repo, gate, words):
    merge = dodge(repo, "r1", gate)
    assert f"r1 ({merge}) should not have been let in: gate or policy change together with tables/forged/part" in told(
        repo
    )
    assert words in told(repo)


def test_without_a_gate_on_main_nothing_is_published(repo, make):
    dodge(repo, "r0", None)
    make("r1")
    with pytest.raises(ConflictError, match="main holds no gate"):
        publish(repo, "r1", user="ann")


def test_missing_protection_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("releases.setup.PROTECTED", ("main",))
    repo = init(str(tmp_path / "half"), block_zyx=(4, 4, 4))
    assert [state for what, state in wrong(repo) if what == "protection"] == ["missing"] * 3


class Careless(EmbeddedRepository):
    """Merges something else than it was asked for."""

    wanted = ""

    def merge(self, source, dest, message, metadata=lake.repository.NO_METADATA, **options):
        if dest == "main" and self.wanted:
            return unasked.merge(self, self.wanted, message, metadata)
        return super().merge(source, dest, message, metadata, **options)


def test_a_merge_that_did_not_give_main_the_judged_tree_is_undone(repo, make):
    make("r1")
    publish(repo, "r1", user="ann")
    make("r2", merge=True)
    before = repo.resolve("main")
    repo.create_branch("other", "cand-r2")
    repo.put("other", "volumes/em/info", b"not judged")
    repo.commit("other", "more")
    careless = Careless.open(Path(repo.location))
    careless.wanted = "other"
    with pytest.raises(ConflictError, match="not what was judged: its tree is not the candidate's"):
        publish(careless, "r2", user="ann")
    assert list(repo.diff(before, "main")) == []
    assert [release.name for release in standing(repo)] == ["r1"]


def test_what_is_written_to_the_candidate_after_it_was_judged_does_not_come_along(repo, make, monkeypatch):
    make("r1")
    asked = admission.refusal

    def late(repo, *options, **more):
        words = asked(repo, *options, **more)
        with repo.session("cand-r1", owner="late") as session:
            session.put("volumes/em/info", b"too late")
            session.commit("one more thing")
        return words

    monkeypatch.setattr("lake.admission.refusal", late)
    merge = publish(repo, "r1", user="ann").release.merge
    assert repo.get(merge, "volumes/em/info") != b"too late"
    assert repo.get("cand-r1", "volumes/em/info") == b"too late"


# -- on a server ------------------------------------------------------------------------------------------------------
@pytest.fixture
def on_server(lakefs_location):
    made = init(lakefs_location, block_zyx=(4, 4, 4))
    yield made
    made.close()


def doctor(repo) -> dict[str, list[str]]:
    answer = CliRunner().invoke(app, ["doctor", "--repo", repo.location, "--json"])
    findings = [tuple(finding.values()) for finding in json.loads(answer.stdout)["findings"]]
    assert isinstance(answer.exception, StorageError if faults(findings) else type(None)), answer.output
    found: dict[str, list[str]] = {}
    for what, state, detail in findings:
        found.setdefault(f"{what}: {state}", []).append(detail)
    return found


@pytest.mark.lakefs
def test_a_server_that_runs_its_gate_is_told_so_and_keeps_no_trace_of_the_question(on_server):
    before = dict(on_server.branches()), dict(on_server.tags())
    found = doctor(on_server)
    assert found["server gate: ok"] == ["the server refuses"]
    assert "gate: ok" in found
    assert (dict(on_server.branches()), dict(on_server.tags())) == before


@pytest.mark.lakefs
@pytest.mark.parametrize("gate", [None, FREE_PASS], ids=["dropped", "edited"])
def test_a_server_that_let_a_release_through_is_reported(on_server, gate):
    merge = dodge(on_server, "r1", gate)
    found = doctor(on_server)
    (release,) = found["release: past gate"]
    assert f"r1 ({merge}) should not have been let in" in release
    assert ("gate: missing" if gate is None else "gate: differs") in found
    if gate is None:
        assert found["server gate: did not run"] == [f"the server let release r1 ({merge}) through unasked"]
    assert "server gate: ok" in found  # the server would run the gate, had the branch not brought its own


@pytest.mark.lakefs
@pytest.mark.slow
def test_a_server_with_its_actions_switched_off_is_reported(emlake_home, tmp_path):
    switched_off = tmp_path / "lakefs"
    switched_off.write_text(f'#!/bin/sh\nLAKEFS_ACTIONS_ENABLED=false exec {program()} "$@"\n')
    switched_off.chmod(0o755)
    state = server.start(port=server.free_port(), program=switched_off)
    try:
        repo = init(state.location("open"), block_zyx=(4, 4, 4))
        merge = dodge(repo, "r1", gate_yaml())
        found = doctor(repo)
        assert "are actions switched off" in found["server gate: open"][0]
        assert found["server gate: did not run"] == [f"the server let release r1 ({merge}) through unasked"]
        repo.close()
    finally:
        server.stop()
