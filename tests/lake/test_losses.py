"""What no copy holds is accepted as lost: recorded, out of the way of tables on `ops`, apart from new damage."""

import os
import re
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from deltalake import DeltaTable

import lake
from lake import tables
from lake.errors import BadInput, CorruptObject, LakeError, ObjectNotFound
from lake.heal import heal
from lake.losses import accept
from lake.names import unit_of
from lake.ops import append_rows
from lake.schemas import TABLES
from lake.scrub import scrub
from lake.scrub_record import recall
from lake.testing.clocks import Ahead
from lake.testing.crash import passes_of, python, run
from lake.testing.rot import flip

REASON = "the disk died, and the last copy with it"


@pytest.fixture(params=["folder", pytest.param("server", marks=pytest.mark.lakefs)])
def repo(request, tmp_path):
    """A repository with branch `ops` on either engine."""
    repo = request.getfixturevalue("lakefs_repo") if request.param == "server" else lake.create(tmp_path / "repo")
    repo.create_branch("ops", "main")
    yield repo
    repo.close()


def path_of(repo, ref, key):
    return Path(repo.stat(ref, key).address.removeprefix("local://"))


def name_of(repo, ref, key):
    """What a scrub calls the object."""
    stat = repo.stat(ref, key)
    return stat.address if repo.location.startswith("lakefs:") else stat.checksum


def commit(repo, files, branch="main", **metadata):
    for key, data in files.items():
        repo.put(branch, key, data)
    return repo.commit(branch, "files", metadata)


def lose(repo, ref, key):
    """Remove an object for good; gives its name."""
    name = name_of(repo, ref, key)
    path_of(repo, ref, key).unlink()
    return name


def waiver(number):
    now = datetime.now(UTC)
    words = dict.fromkeys(("release", "gate", "scope", "scope_id", "owner", "reason"), "x")
    return {"waiver_id": f"w{number}", **words, "expires": now, "ts": now}


def add_waivers(repo, *numbers):
    return append_rows(repo, "ops", {"waivers": [waiver(n) for n in numbers]}, message="waivers")


def waivers(repo, ref="ops"):
    rows = tables.read(repo.location_of(repo.resolve(ref), "tables/waivers/")).collect()
    return sorted(rows["waiver_id"])


def part_keys(repo, ref="ops", table="waivers"):
    return [stat.key for stat in repo.list(ref, f"tables/{table}/") if stat.key.endswith(".parquet")]


def log_keys(repo, table="waivers"):
    return [stat.key for stat in repo.list("ops", f"tables/{table}/_delta_log/")]


# -- scrubs ------------------------------------------------------------------------------------------------------------
def test_an_accepted_loss_is_told_and_no_damage_and_another_one_is(repo):
    commit(repo, {"a": os.urandom(500), "b": os.urandom(500)})
    name = lose(repo, "main", "a")
    assert not scrub(repo, budget=None).ok
    accepted = accept(repo, [name], user="ann", reason=REASON)
    assert accepted.mended == ()
    for budget in (1, None):
        report = scrub(repo, budget=budget)
        assert (report.ok, report.healed, report.recorded) == (True, (), True)
        [loss] = report.accepted
        assert (loss.fault.name, loss.fault.keys, loss.user, loss.reason) == (name, ("a",), "ann", REASON)
        assert loss.accepted <= datetime.now(UTC)
    [told] = report.to_json()["accepted"]
    assert (told["object"], told["accepted_by"], told["reason"]) == (name, "ann", REASON)
    with repo.snapshot("main") as snapshot:
        assert snapshot.sql("SELECT DISTINCT damaged, accepted FROM v_integrity").rows() == [(0, 1)]
        rows = snapshot.sql('SELECT state, "user", reason FROM ops.scrub_faults ORDER BY ts').rows()
    assert rows == [("damaged", None, None), *[("accepted", "ann", REASON)] * 3]
    flip(path_of(repo, "main", "b"), 7)
    report = scrub(repo, budget=None)
    assert [fault.keys for fault in report.faults] == [("b",)]
    assert [loss.fault.keys for loss in report.accepted] == [("a",)]


def test_who_accepts_a_loss_again_is_who_answers_for_it(repo):
    add_waivers(repo, 1)
    name = lose(repo, "ops", part_keys(repo)[0])
    assert len(accept(repo, [name], user="ann", reason=REASON).mended) == 1
    assert accept(repo, [name], user="bob", reason="nothing in the safe either").mended == ()
    [loss] = scrub(repo, budget=1).accepted
    assert (loss.user, loss.reason) == ("bob", "nothing in the safe either")


def test_what_was_accepted_and_is_whole_again_is_healed_and_damage_of_it_is_new(repo):
    commit(repo, {"a": b"data of a"})
    path, name = path_of(repo, "main", "a"), name_of(repo, "main", "a")
    flip(path, 3)
    accept(repo, [name], user="ann", reason=REASON)
    assert scrub(repo, budget=None).ok
    flip(path, 3)
    report = scrub(repo, budget=1)
    assert (report.accepted, report.healed) == ((), (f"object {name}",))
    flip(path, 4)
    assert [fault.name for fault in scrub(repo, budget=1).faults] == []  # its turn has not come
    assert [fault.name for fault in scrub(repo, budget=None).faults] == [name]


def test_a_copy_that_turns_up_heals_what_was_accepted(tmp_path):
    with closing(lake.create(tmp_path / "repo")) as repo, closing(lake.create(tmp_path / "other")) as other:
        repo.create_branch("ops", "main")
        for each in (repo, other):
            commit(each, {"a": b"data of a"})
        name = lose(repo, "main", "a")
        accept(repo, [name], user="ann", reason=REASON)
        healed = heal(repo, other, budget=1)
        assert healed.ok
        assert [fault.name for fault in healed.cured] == [name]
        assert healed.report.accepted == ()
        assert repo.get("main", "a") == b"data of a"
        lose(repo, "main", "a")
        lose(other, "main", "a")
        accept(repo, [name], user="ann", reason=REASON)
        healed = heal(repo, other, budget=1)
        assert (healed.ok, healed.left) == (True, ())
        assert [loss.fault.name for loss in healed.report.accepted] == [name]
        assert [loss["object"] for loss in healed.to_json()["accepted"]] == [name]


@pytest.mark.parametrize(
    ("kind", "key"), [("volume", "volumes/em/info"), ("table", "tables/segments/_delta_log/00000000000000000000.json")]
)
def test_the_release_that_holds_what_was_accepted_keeps_its_tree_and_is_no_damage(repo, kind, key):
    made = commit(repo, {key: b"{}", "other": b"x"}, release="r1")
    repo.create_tag("r1", made)
    name = lose(repo, "main", key)
    assert {fault.kind for fault in scrub(repo, budget=None).faults} == {"object", kind}
    accept(repo, [name], user="ann", reason=REASON)
    report = scrub(repo, budget=None)
    assert report.ok, report.faults
    assert {loss.fault.kind for loss in report.accepted} == {"object", kind}
    assert all(loss.fault.releases == ("r1",) for loss in report.accepted)
    assert recall(repo, report.place).damaged == {}, "the unit's fault follows from the object's"
    assert repo.resolve("main") == repo.resolve("r1") == made
    with pytest.raises(LakeError):
        repo.get("r1", key)
    # The same file lost another time, of another content: the unit is damaged anew.
    commit(repo, {key: b"{} "})
    other = lose(repo, "main", key)
    assert {fault.kind for fault in scrub(repo, budget=None).faults} == {"object", kind}
    known = recall(repo, report.place)
    assert known.damaged.keys() == {("object", other), (kind, unit_of(key))}
    assert known.accepted.keys() == {("object", name)}


def test_an_acceptance_holds_after_a_scrub_whose_clock_was_ahead(repo, monkeypatch):
    commit(repo, {"a": b"a"})
    name = lose(repo, "main", "a")
    with monkeypatch.context() as wrong:
        wrong.setattr("lake.scrub.datetime", Ahead)
        assert not scrub(repo, budget=None).ok
    accept(repo, [name], user="ann", reason=REASON)
    assert scrub(repo, budget=1).ok


def test_what_is_staged_again_and_lost_is_accepted_and_stays_so_when_the_branch_is_reset(tmp_path):
    with closing(lake.create(tmp_path / "repo")) as repo:
        repo.create_branch("ops", "main")
        commit(repo, {"a": b"data of a"})
        repo.create_branch("work", "main")
        repo.put("work", "b", b"data of a")
        name = lose(repo, "main", "a")
        assert [fault.kind for fault in scrub(repo, budget=None).faults] == ["staged"]
        accept(repo, [name], user="ann", reason=REASON)
        assert scrub(repo, budget=1).ok
        repo.reset("work")
        report = scrub(repo, budget=1)
        assert report.ok, report.faults
        assert [(loss.fault.kind, loss.fault.name) for loss in report.accepted] == [("object", name)]


# -- tables on ops -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("harm", [Path.unlink, lambda path: flip(path, 20)], ids=["lost", "flipped"])
def test_a_table_on_ops_goes_on_without_the_file_it_has_lost(repo, harm):
    old = add_waivers(repo, 1, 2, 3)
    [key] = part_keys(repo)
    add_waivers(repo, 4)
    name = name_of(repo, "ops", key)
    harm(path_of(repo, "ops", key))
    with pytest.raises(LakeError):
        [repo.get("ops", each) for each in part_keys(repo)]
    accepted = accept(repo, [name], user="ann", reason=REASON)
    [mended] = accepted.mended
    assert (mended.table, mended.rows, mended.rebuilt) == ("waivers", 3, False)
    assert accepted.commit == repo.resolve("ops")
    assert waivers(repo) == ["w4"]
    add_waivers(repo, 5)
    assert waivers(repo) == ["w4", "w5"]
    report = scrub(repo, budget=None)
    assert report.ok, report.faults
    [loss] = report.accepted
    assert (loss.fault.tables, loss.fault.refs) == (("waivers",), ())
    assert repo.stat(old, key).size  # history has the tree it had


def checkpoint(repo):
    with repo.session("ops") as session:
        place = session.workspace("tables/waivers/")
        DeltaTable(place.uri, storage_options=place.storage_options).create_checkpoint()
        session.commit("checkpoint")


@pytest.mark.parametrize(
    "lost", [r"0+\.json", r"0+1\.json", r".*\.checkpoint\.parquet"], ids=["first", "second", "checkpoint"]
)
def test_the_rows_of_a_lost_log_are_read_from_the_data_files(repo, lost):
    for number in (1, 2, 3):
        add_waivers(repo, number)
    checkpoint(repo)
    [key] = [key for key in log_keys(repo) if re.fullmatch(lost, key.rpartition("/")[2])]
    name = lose(repo, "ops", key)
    faults = scrub(repo, budget=None).faults
    assert {fault.kind for fault in faults} == {"object", "table"}
    [mended] = accept(repo, [name], user="ann", reason=REASON).mended
    assert (mended.rows, mended.rebuilt) == (0, True)
    assert waivers(repo) == ["w1", "w2", "w3"]
    add_waivers(repo, 4)
    assert waivers(repo) == ["w1", "w2", "w3", "w4"]
    assert tables.table_rows(repo.location_of(repo.resolve("ops"), "tables/waivers/")) == 4
    report = scrub(repo, budget=None)
    assert report.ok, report.faults


def test_all_that_a_table_has_lost_is_accepted_at_once_or_not_at_all(repo):
    for number in (1, 2):
        add_waivers(repo, number)
    names = [lose(repo, "ops", key) for key in [*part_keys(repo), log_keys(repo)[0]]]
    before = repo.resolve("ops")
    with pytest.raises(BadInput, match="tables/waivers/ on ops has lost"):
        accept(repo, names[:2], user="ann", reason=REASON)
    assert repo.resolve("ops") == before
    [mended] = accept(repo, names, user="ann", reason=REASON).mended
    assert (mended.rows, mended.rebuilt) == (None, True)
    add_waivers(repo, 3)
    assert waivers(repo) == ["w3"]
    assert scrub(repo, budget=None).ok


def test_the_record_of_scrubs_itself_may_have_lost_a_file(repo):
    commit(repo, {"a": b"a"})
    lose(repo, "main", "a")
    scrub(repo, budget=None)
    [key] = part_keys(repo, table="scrub_faults")
    name = lose(repo, "ops", key)
    with pytest.raises(CorruptObject, match="what scrubs recorded") as raised:
        accept(repo, [name], user="ann", reason=REASON)
    assert "emlake scrub" in raised.value.fix
    scrub(repo, budget=None)  # begins it anew
    accept(repo, [name], user="ann", reason=REASON)
    assert [fault.keys for fault in scrub(repo, budget=None).faults] == [("a",)]


def test_a_record_made_before_losses_could_be_accepted_takes_them(repo, monkeypatch):
    spec = TABLES["scrub_faults"]
    columns = tuple(column for column in spec.columns if column.name not in {"user", "reason", "accepted"})
    old = type(spec)(spec.name, spec.doc, spec.branch, columns, spec.sort_key, unique=False)
    commit(repo, {"a": b"a"})
    name = lose(repo, "main", "a")
    with monkeypatch.context() as then:
        then.setitem(TABLES, "scrub_faults", old)
        now = datetime.now(UTC)
        row = {column.name: [] if column.type == "list<string>" else now if column.type == "timestamp" else "x"
               for column in columns} | {"place": repo.inspector().place, "state": "damaged", "kind": "object",
                                         "object": name, "commits": 1, "slot": None}  # fmt: skip
        append_rows(repo, "ops", {"scrub_faults": [row]}, message="as it was")
    assert recall(repo, repo.inspector().place).damaged.keys() == {("object", name)}
    accept(repo, [name], user="ann", reason=REASON)
    report = scrub(repo, budget=1)
    assert report.ok
    assert [loss.user for loss in report.accepted] == ["ann"]
    with repo.snapshot("main") as snapshot:
        rows = snapshot.sql('SELECT state, "user" FROM ops.scrub_faults ORDER BY ts').rows()
        read = snapshot.table("scrub_faults", schema="ops").select("state", "reason").collect()
    assert rows == [("damaged", None), ("accepted", "ann"), ("accepted", "ann")]
    assert read.filter(pl.col("reason") == REASON).height == 2
    digest = tables.content_digest(repo.location_of(repo.resolve("ops"), "tables/scrub_faults/"), "scrub_faults")
    assert len(digest) == 64


# -- what is refused ---------------------------------------------------------------------------------------------------
def test_what_is_no_lost_content_is_refused_and_nothing_changes(repo):
    head = commit(repo, {"sound": b"sound", "a": b"a"})
    lost = lose(repo, "main", "a")
    repo.put("main", "staged", b"staged")
    staged = name_of(repo, "main", "staged")
    if repo.location.startswith("lakefs:"):
        path_of(repo, "main", "staged").unlink()
    else:
        [path] = [path for path in (repo.root / "incoming").glob("*/*") if path.name != ".lock"]
        path.unlink()
    before = repo.resolve("ops")
    for given, error, match in (
        (name_of(repo, "main", "sound"), BadInput, "is sound"),
        (staged, BadInput, "staged and in no commit"),
        (head, BadInput, "structure"),
        ("main", BadInput, "structure"),
        ("tables/waivers/", ObjectNotFound, "nothing stored is called"),
        ("f" * 64, ObjectNotFound, "f{64}"),
        ("", BadInput, "without a name"),
    ):
        with pytest.raises(error, match=match):
            accept(repo, [lost, given], user="ann", reason=REASON)
    for reason in ("", "  "):
        with pytest.raises(BadInput, match="reason"):
            accept(repo, [lost], user="ann", reason=reason)
    with pytest.raises(BadInput, match="no object"):
        accept(repo, [], user="ann", reason=REASON)
    assert repo.resolve("ops") == before
    assert list(repo.branches("session-")) == []


def test_first_characters_do_where_only_one_object_has_them(repo):
    commit(repo, {f"k{n}": b"%d" % n for n in range(40)})
    names = {name_of(repo, "main", f"k{n}").rpartition("/")[2]: f"k{n}" for n in range(40)}
    begin = next(name[:1] for name in names if sum(other[:1] == name[:1] for other in names) > 1)
    with pytest.raises(BadInput, match=f"objects begin with '{begin}'"):
        accept(repo, [begin], user="ann", reason=REASON)
    last = lose(repo, "main", "k7").rpartition("/")[2]
    unique = next(last[:n] for n in range(1, 65) if sum(other.startswith(last[:n]) for other in names) == 1)
    accept(repo, [unique], user="ann", reason=REASON)
    assert [loss.fault.keys for loss in scrub(repo, budget=1).accepted] == [("k7",)]


def test_a_damaged_manifest_is_refused_with_the_reason(tmp_path):
    with closing(lake.create(tmp_path / "repo")) as repo:
        repo.create_branch("ops", "main")
        commit(repo, {"a": b"a" * 100})
        path = max((repo.root / "manifests").glob("*/*"), key=lambda path: path.stat().st_size)
        flip(path, 60)
        [fault] = [fault for fault in scrub(repo, budget=1).faults if fault.kind == "manifest"][:1]
        with pytest.raises(BadInput, match="structure") as raised:
            accept(repo, [fault.name[:12]], user="ann", reason=REASON)
        assert raised.value.fix == fault.fix


def test_a_damaged_copy_of_a_sound_object_is_refused_with_what_helps(tmp_path):
    with closing(lake.create(tmp_path / "repo")) as repo:
        repo.create_branch("ops", "main")
        commit(repo, {"a": b"small", "b": os.urandom(100)})
        repo.create_branch("work", "main")
        flip(repo.workspace("work", "").path / "a", 2)
        with pytest.raises(BadInput, match="is sound, only") as raised:
            accept(repo, [name_of(repo, "main", "a")], user="ann", reason=REASON)
        assert "reset the branch" in raised.value.fix


def test_without_a_branch_for_records_nothing_is_accepted(tmp_path):
    with closing(lake.create(tmp_path / "plain")) as repo:
        commit(repo, {"a": b"a"})
        name = lose(repo, "main", "a")
        with pytest.raises(BadInput, match="no branch ops"):
            accept(repo, [name], user="ann", reason=REASON)


# -- killed ------------------------------------------------------------------------------------------------------------
_ACCEPT = """
import sys
import lake
from lake.losses import accept
from lake.names import unit_of
accept(lake.open(sys.argv[1]), [sys.argv[2]], user="ann", reason="killed on the way")
"""


@pytest.mark.slow
def test_killed_at_any_step_it_is_accepted_and_mended_or_neither(fresh_folder):
    def prepare(location):
        with closing(lake.create(location)) as repo:
            repo.create_branch("ops", "main")
            for number in (1, 2):
                add_waivers(repo, number)
            path_of(repo, "ops", part_keys(repo)[0]).unlink()

    def fresh():
        root = fresh_folder("lost", prepare)
        with closing(lake.open(root)) as repo:
            key = next(key for key in part_keys(repo) if not path_of(repo, "ops", key).exists())
            return root, key, repo.stat("ops", key).checksum

    root, _, name = fresh()
    passes = passes_of(python(_ACCEPT, root, name))
    steps = [at for at in passes if at.startswith("session.")]
    assert len(steps) >= 5, passes
    landed = []
    for at in steps:
        root, key, name = fresh()
        assert run(python(_ACCEPT, root, name), kill_at=at).killed, at
        with closing(lake.open(root)) as repo:
            known = recall(repo, repo.inspector().place)
            done = ("object", name) in known.accepted
            landed.append(done)
            assert (key in {stat.key for stat in repo.list("ops")}) == (not done), at
            if not done:
                accept(repo, [name], user="ann", reason=REASON)
            assert len(waivers(repo)) == 1, at
            add_waivers(repo, 3)
            assert scrub(repo, budget=None).ok, at
    assert {True, False} == set(landed)
