"""The gate decides alike on each of these candidates, wherever it is asked.

It is asked as a rule, by `lake.admission.refusal`; in the embedded engine and in the client of a server, by `merge`;
and in the server alone, by a bare merge request with the metadata, as any other program would send it. Where the server
must differ, `ONLY_THE_CLIENT` says why.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import lakefs_sdk.exceptions
import pytest

import lake
from lake.admission import POLICY_KEY, refusal
from lake.engines.lakefs.failures import text_of
from lake.engines.lakefs.gate import GATE_KEY, gate_yaml
from lake.errors import ConflictError, GateRefused
from lake.repository import Repository

PUBLISHED = "tables/published/part"


@dataclass
class Candidate:
    """A branch off main, by default with data and a QC of it, on its way to be release `r1`."""

    repo: Repository
    name: str = "r1"
    branch: str = ""
    dest: str = ""
    qc: str = ""
    metadata: dict[str, str] = field(default_factory=dict)

    def start(self, source: str = "main") -> "Candidate":
        self.branch = f"cand-{self.name}"
        self.repo.create_branch(self.branch, source)
        self.dest = self.repo.resolve("main")
        return self

    def write(self, message: str = "work", *, drop: tuple[str, ...] = (), **files: bytes) -> str:
        return self.write_keys({key.replace("__", "/"): data for key, data in files.items()}, message, drop=drop)

    def write_keys(self, files: Mapping[str, bytes], message: str = "work", *, drop: tuple[str, ...] = ()) -> str:
        for key, data in files.items():
            self.repo.put(self.branch, key, data)
        self.repo.delete(self.branch, list(drop))
        return self.repo.commit(self.branch, message)

    def measure(self) -> "Candidate":
        self.qc = self.write("qc", tables__qc_metrics__part=f"{self.name} {self.repo.resolve(self.branch)}".encode())
        self.metadata = {"release": self.name, "qc": self.qc, "expect_dest": self.dest}
        return self

    def verdict(self, text: bytes | None = None, **changed: object) -> "Candidate":
        told = {"status": "pass", "commit": self.qc, "dest": self.dest} | changed
        content = json.dumps({name: value for name, value in told.items() if value is not None}).encode()
        files = {f"_qc/{self.qc}.json": content if text is None else text}
        self.write_keys(files | {f"_releases/{self.name}/manifest.json": self.name.encode()}, "verdict")
        return self


def whole(repo: Repository, name: str = "r1") -> Candidate:
    made = Candidate(repo, name).start()
    made.write("data", **{f"tables__{name}__part": name.encode()})
    return made.measure().verdict()


def unjudged(repo: Repository) -> Candidate:
    made = Candidate(repo).start()
    made.write("data", tables__new__part=b"1")
    return made.measure()


def changed_late(**files: bytes) -> Callable[[Repository], Candidate]:
    def make(repo: Repository) -> Candidate:
        made = whole(repo)
        made.write("one more thing", **files)
        return made

    return make


def with_metadata(drop: str = "", **changed: str) -> Callable[[Repository], Candidate]:
    def make(repo: Repository) -> Candidate:
        made = whole(repo)
        made.metadata = {name: value for name, value in {**made.metadata, **changed}.items() if name != drop}
        return made

    return make


def with_verdict(text: bytes | None = None, **changed: object) -> Callable[[Repository], Candidate]:
    return lambda repo: unjudged(repo).verdict(text, **changed)


def with_data(files: Mapping[str, bytes], *, drop: tuple[str, ...] = (), data: bool = True):
    """These files, and with `data` some data beside them, all of it judged."""

    def make(repo: Repository) -> Candidate:
        made = Candidate(repo).start()
        made.write_keys({**files, **({"tables/new/part": b"1"} if data else {})}, drop=drop)
        return made.measure().verdict()

    return make


def land(repo: Repository, candidate: Candidate) -> str:
    return repo.merge(candidate.branch, "main", f"release {candidate.name}", candidate.metadata)


# -- the recipes that are longer than a line ----------------------------------------------------------------------
def no_metadata(repo: Repository) -> Candidate:
    made = whole(repo)
    made.metadata = {}
    return made


def abbreviated(repo: Repository) -> Candidate:
    made = whole(repo)
    made.metadata["qc"] = made.qc[:12]
    return made


def removed_late(repo: Repository) -> Candidate:
    made = whole(repo)
    made.write("one thing less", drop=("tables/r1/part",))
    return made


def changed_and_changed_back(repo: Repository) -> Candidate:
    made = whole(repo)
    made.write("a slip", tables__r1__part=b"slip")
    made.write("put right", tables__r1__part=b"r1")
    return made


def many_reports(repo: Repository) -> Candidate:
    made = whole(repo)
    made.write_keys({f"_qc/{made.qc}/report/{n}.html": b"x" for n in range(12)})
    return made


def second_release(repo: Repository) -> Candidate:
    land(repo, whole(repo, "r0"))
    return whole(repo)


def refreshed(repo: Repository) -> Candidate:
    made, first = whole(repo), whole(repo, "r0")
    land(repo, first)
    repo.merge("main", made.branch, "refresh", strategy="dest-wins", contested=("tables/qc_", "_qc/"))
    made.dest = repo.resolve("main")
    made.write("qc dropped", drop=tuple(e.key for e in repo.list(made.branch, "_qc/")))
    return made.measure().verdict()


def not_refreshed(repo: Repository) -> Candidate:
    made = unjudged(repo)
    first = Candidate(repo, "r0").start()
    first.write("data", tables__other__part=b"0")
    first.qc, first.metadata = repo.resolve(first.branch), {}
    first.metadata = {"release": "r0", "qc": first.qc, "expect_dest": first.dest}
    land(repo, first.verdict())
    made.dest = made.metadata["expect_dest"] = repo.resolve("main")
    return made.verdict()


def made_again(repo: Repository) -> Candidate:
    merged = land(repo, whole(repo, "r0"))
    rollback = repo.revert("main", merged, parent=1)
    made = Candidate(repo).start()
    repo.revert(made.branch, rollback)
    made.write("qc dropped", drop=tuple(e.key for e in repo.list(made.branch, "_qc/")))
    return made.measure().verdict()


def rolled_back_and_merged_as_it_was(repo: Repository) -> Candidate:
    made = whole(repo)
    repo.revert("main", land(repo, made), parent=1)
    made.dest = made.metadata["expect_dest"] = repo.resolve("main")
    return made.verdict()


def sibling(data: bytes) -> Callable[[Repository], Candidate]:
    """Another line of work, with this data where the judged one has `r0`, passed off as the judged one."""

    def make(repo: Repository) -> Candidate:
        judged, made = whole(repo, "r0"), Candidate(repo).start()
        files = {"tables/r0/part": data, "tables/qc_metrics/part": repo.get(judged.branch, "tables/qc_metrics/part")}
        made.write_keys(files)
        made.qc, made.metadata = judged.qc, {"release": "r1", "qc": judged.qc, "expect_dest": judged.dest}
        return made.verdict()

    return make


def judged_was_longer(repo: Repository) -> Candidate:
    judged = whole(repo, "r0")
    made = Candidate(repo).start(f"{judged.qc}~1")
    made.qc, made.metadata = judged.qc, {"release": "r1", "qc": judged.qc, "expect_dest": judged.dest}
    return made.verdict()


def verdict_only_staged(repo: Repository) -> Candidate:
    made = unjudged(repo)
    told = {"status": "pass", "commit": made.qc, "dest": made.dest}
    repo.put(made.branch, f"_qc/{made.qc}.json", json.dumps(told).encode())
    return made


def forked_before_the_gate(repo: Repository) -> Candidate:
    made = Candidate(repo).start(f"{repo.resolve('main')}~1")
    made.write("data", tables__new__part=b"1")
    return made.measure().verdict()


PASS = {
    "judged and passed": whole,
    "waived": with_verdict(status="waived"),
    "verdict with more to tell": with_verdict(baseline="r0", results=[]),
    "a report beside the verdict": many_reports,
    "changed after QC and changed back": changed_and_changed_back,
    "no data of its own": with_data({"_releases/r1/candidate.json": b"{}"}, data=False),
    "on top of an earlier release": second_release,
    "refreshed and judged anew": refreshed,
    "made again after a rollback": made_again,
    # Not the commit that was judged, but its tree, byte for byte: that is what main may hold.
    "another line that has the judged tree": sibling(b"r0"),
    "policy alone": with_data({POLICY_KEY: b"stricter"}, data=False),
    "one more action, alone": with_data(
        {"_lakefs_actions/note.yaml": b"name: note\non:\n  post-merge: {}\nhooks: []\n"}, data=False
    ),
}
REFUSED: dict[str, tuple[Callable[[Repository], Candidate], str]] = {
    "no metadata": (no_metadata, "not a release"),
    "no release": (with_metadata(drop="release"), "not a release"),
    "no qc": (with_metadata(drop="qc"), "not a release"),
    "no expect_dest": (with_metadata(drop="expect_dest"), "not a release"),
    "release name with a slash": (with_metadata(release="../r1"), "release name is not valid"),
    "release name with a line end": (with_metadata(release="r1\n"), "release name is not valid"),
    "abbreviated qc": (abbreviated, "not a full commit id"),
    "qc in capitals": (with_metadata(qc="A" * 64), "not a full commit id"),
    "stale destination": (with_metadata(expect_dest="0" * 64), "main has moved"),
    "judged commit that is nowhere": (with_metadata(qc="0" * 64), "no QC verdict on 000"),
    "no verdict": (unjudged, "no QC verdict"),
    "verdict staged and not committed": (verdict_only_staged, "no QC verdict"),
    "verdict that is no JSON": (with_verdict(b"pass"), "not a JSON object"),
    "verdict that is a word": (with_verdict(b'"pass"'), "not a JSON object"),
    # Lua has one kind of table.
    "verdict that is a list": (with_verdict(b'["pass"]'), "not a JSON object|QC verdict is not told"),
    "verdict in UTF-16": (with_verdict('{"status": "pass"}'.encode("utf-16")), "not a JSON object"),
    "verdict with NaN": (with_verdict(b'{"status": "pass", "x": NaN}'), "not a JSON object"),
    "verdict fail": (with_verdict(status="fail"), "QC verdict is fail"),
    "verdict unknown": (with_verdict(status="unknown"), "QC verdict is unknown"),
    "verdict without status": (with_verdict(status=None), "QC verdict is not told"),
    "verdict on another commit": (with_verdict(commit="0" * 64), "verdict is on commit 000"),
    "verdict against another main": (with_verdict(dest="0" * 64), "reached against 000"),
    "data changed after QC": (changed_late(tables__r1__part=b"x"), "changed after QC: tables/r1/part"),
    "data added after QC": (changed_late(volumes__em__info=b"x"), "changed after QC: volumes/em/info"),
    "data removed after QC": (removed_late, "changed after QC: tables/r1/part"),
    "another release's folder": (changed_late(_releases__r10__x=b"x"), "changed after QC: _releases/r10/x"),
    "policy changed after QC": (changed_late(_policy__release=b"x"), "changed after QC: _policy/release"),
    "sibling with other data": (sibling(b"other"), "changed after QC"),
    "judged commit that has more": (judged_was_longer, "another line of work, with tables/qc_metrics/part"),
    "main moved on": (not_refreshed, "main holds what the candidate lacks: _qc/"),
    "policy with data": (with_data({POLICY_KEY: b"looser"}), "together with tables/new/part"),
    "one more action, with data": (
        with_data({"_lakefs_actions/note.yaml": b"name: note\non:\n  post-merge: {}\nhooks: []\n"}),
        "together with tables/new/part",
    ),
    # There is nothing to merge, or a conflict, and the gate is not even asked.
    "rolled back and merged as it was": (
        rolled_back_and_merged_as_it_was,
        "main holds what .* lacks|no changes|^$|both changed",
    ),
}
EVERYBODY = gate_yaml().split(b"        check_request()\n        check_verdict()\n")[0]  # rules that nobody calls
#: A server reads its gate from the candidate: it has no say in what the candidate does to the gate.
ONLY_THE_CLIENT = {
    "gate dropped, with data": (with_data({}, drop=(GATE_KEY,)), "together with tables/new/part"),
    "gate edited, with data": (with_data({GATE_KEY: EVERYBODY}), "together with tables/new/part"),
    "gate dropped alone": (with_data({}, drop=(GATE_KEY,), data=False), "lacks the gate"),
    "gate edited alone": (with_data({GATE_KEY: EVERYBODY}, data=False), "neither main's nor the one of this version"),
    "forked before the gate": (forked_before_the_gate, f"main holds what the candidate lacks: {GATE_KEY}"),
}
ALL = {**{name: (make, None) for name, make in PASS.items()}, **REFUSED}


def ready(repo: Repository) -> Repository:
    repo.put("main", "tables/base/part", b"base")
    repo.commit("main", "before the gate")
    repo.put("main", GATE_KEY, gate_yaml(), content_type="application/yaml")
    repo.put("main", POLICY_KEY, b"strict")
    repo.commit("main", "policy and gate")
    return repo


def by_server(repo: Repository, candidate: Candidate) -> str | None:
    """Send the bare request; give the server's words if it refused."""
    wire = repo._wire
    before = repo.resolve("main")
    body = {"message": "a release", "metadata": candidate.metadata}
    try:
        answer = wire.sdk.refs_api.merge_into_branch(wire.name, candidate.branch, "main", body)
    except lakefs_sdk.exceptions.ApiException as error:
        status, words = error.status, text_of(error.body)
    else:
        assert repo.resolve("main") == answer.reference != before
        return None
    assert status in (400, 409, 412), words
    assert repo.resolve("main") == before
    return words


def by_engine(repo: Repository, candidate: Candidate) -> str | None:
    """Merge as any user of the library may; give the engine's words if it refused."""
    before = repo.resolve("main")
    try:
        made = repo.merge(candidate.branch, "main", "a release", candidate.metadata)
    except (GateRefused, ConflictError) as error:
        assert repo.resolve("main") == before
        return error.message
    assert repo.resolve("main") == made != before
    assert not list(repo.diff(candidate.branch, "main"))
    return None


def agrees(words: str | None, expected: str | None) -> bool:
    return words is None if expected is None else words is not None and re.search(expected, words) is not None


def test_there_are_thirty_candidates_of_both_kinds():
    assert len(ALL) >= 30
    assert len(PASS) >= 10


@pytest.mark.parametrize("name", [*ALL, *ONLY_THE_CLIENT])
def test_the_embedded_engine_decides_as_the_rule_does(tmp_path, name):
    make, expected = {**ALL, **ONLY_THE_CLIENT}[name]
    repo = ready(lake.create(str(tmp_path / "repo")))
    candidate = make(repo)
    rule = refusal(repo, candidate.branch, candidate.metadata)
    assert agrees(rule, expected), rule
    engine = by_engine(repo, candidate)
    assert agrees(engine, expected), engine


@pytest.mark.lakefs
@pytest.mark.parametrize("name", ALL)
def test_the_server_alone_decides_as_its_client_and_the_rule(lakefs_repo, name):
    make, expected = ALL[name]
    candidate = make(ready(lakefs_repo))
    client = refusal(lakefs_repo, candidate.branch, candidate.metadata)
    if expected is not None:
        engine = by_engine(lakefs_repo, candidate)
        assert agrees(engine, expected), engine
    server = by_server(lakefs_repo, candidate)
    assert (client is None) == (server is None), (client, server)
    assert agrees(client, expected), client
    assert agrees(server, expected), server


@pytest.mark.lakefs
@pytest.mark.parametrize("name", ONLY_THE_CLIENT)
def test_what_a_candidate_does_to_the_gate_only_the_client_sees(lakefs_repo, name):
    make, expected = ONLY_THE_CLIENT[name]
    candidate = make(ready(lakefs_repo))
    assert agrees(refusal(lakefs_repo, candidate.branch, candidate.metadata), expected)
    assert agrees(by_engine(lakefs_repo, candidate), expected)
    assert by_server(lakefs_repo, candidate) is None


@pytest.mark.lakefs
def test_a_squash_merge_that_the_client_never_asks_for_is_refused_by_the_server(lakefs_repo):
    candidate = whole(ready(lakefs_repo))
    wire = lakefs_repo._wire
    body = {"message": "a release", "metadata": candidate.metadata, "squash_merge": True}
    with pytest.raises(lakefs_sdk.exceptions.ApiException) as caught:
        wire.sdk.refs_api.merge_into_branch(wire.name, candidate.branch, "main", body)
    assert "a squash merge is not a release" in text_of(caught.value.body)
