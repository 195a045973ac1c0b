"""What a user gets who asks for something wrong: one clear error, the right exit code, and nothing changed."""

import json
import os
import signal
import threading
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import pytest
import typer

import lake
from lake.engines.embedded.layout import MARKER
from releases.app.cli import app


@pytest.fixture
def repo(tmp_path: Path, emlake, monkeypatch) -> Path:
    folder = tmp_path / "repo"
    assert emlake("init", folder).code == 0
    monkeypatch.setenv("EMLAKE_REPO", str(folder))
    assert emlake("release", "candidate", "c").code == 0
    return folder


def heads(repo: Path) -> dict[str, str]:
    opened = lake.open(repo)
    state = {**opened.branches(), **{f"tag {k}": v for k, v in opened.tags().items()}}
    opened.close()
    return state


CASES = [
    (("log", "mian"), 4, "ref-not-found", "main"),
    (("sql", "SELECT 1", "--at", "archve"), 4, "ref-not-found", "archive"),
    (("sql", "SELECT * FROM ops.relases"), 4, "table-not-found", "ops.releases"),
    (("sql", "SELEC 1"), 2, "bad-input", "SELEC"),
    (("sql", "DELETE FROM ops.runs"), 2, "query-refused", "SELECT"),
    (("sql", "SELECT * FROM read_text('/etc/hostname')"), 2, "query-refused", "read_text"),
    (("sql", "COPY (SELECT 1) TO 'x.csv'"), 2, "query-refused", "SELECT"),
    (("sql", "ATTACH 'x.db'"), 2, "query-refused", "SELECT"),
    (("sql", "SET threads=1"), 2, "query-refused", "SELECT"),
    (("sql", "LOAD httpfs"), 2, "query-refused", "SELECT"),
    (("sql", "tiles_of_segment"), 2, "bad-input", "root_id"),
    (("sql", "changes_between_releases"), 2, "bad-input", "--old"),
    (("sql", "tiles_of_segment", "--param", "root=1"), 2, "bad-input", "root_id"),
    (("sql", "tiles_of_segment", "--param", "root_id=one"), 2, "bad-input", "root_id=one"),
    (("sql", "tiles_of_segmnt"), 2, "bad-input", "tiles_of_segment"),
    (("sql", "SELECT $x", "--param", "x"), 2, "bad-input", "NAME=VALUE"),
    (("sql", "SELECT 1", "--param", "x=--5"), 2, "bad-input", "x"),
    (("sql", "SELECT 1", "--param", "x=²"), 2, "bad-input", "x"),
    (("release", "gate", "r1"), 4, "not-found", "'r1'"),
    (("release", "publish", "r1"), 4, "not-found", "'r1'"),
    (("release", "show", "r1"), 4, "not-found", "'r1'"),
    (("release", "rollback", "--reason", "none"), 4, "not-found", "no release"),
    (("release", "candidate", "cand-x"), 2, "invalid-name", "cand-x"),
    (("release", "candidate", "r1", "--again", "r0"), 4, "not-found", "r0"),
    (("run", "reconstrct", "--on", "cand-c"), 2, "bad-input", "reconstruct"),
    (("run", "reconstruct", "--on", "cand-x"), 4, "ref-not-found", "cand-x"),
    (("run", "reconstruct", "--on", "cand-c", "--up-to", "watreshed"), 2, "bad-input", "watershed"),
    (("run", "reconstruct", "--on", "cand-c", "--model", "membrane=x"), 2, "bad-input", "membranes"),
    (("run", "reconstruct", "--on", "cand-c", "--executor", "dsk"), 2, "bad-input", "dsk"),
    (("params", "add", "watreshed", "default", "--on", "cand-c"), 2, "bad-input", "watershed"),
    (("params", "add", "watershed", "default", "min_voxel=3", "--on", "cand-c"), 2, "bad-input", "min_voxels"),
    (("params", "show", "watershed", "default@1"), 4, "not-found", "default@1"),
    (("ingest", "tiles", "/nonexistent"), 4, "not-found", "/nonexistent"),
    (("ingest", "volume", "/nonexistent", "em", "--on", "cand-c"), 4, "not-found", "/nonexistent"),
    (("run", "reconstruct", "--on", "main"), 2, "bad-input", "cand-NAME"),
    (("qc", "run", "main"), 2, "bad-input", "cand-NAME"),
    (("ingest", "volume", "/nonexistent", "em", "--on", "archive"), 2, "bad-input", "'archive'"),
    (("params", "add", "watershed", "default", "--on", "ops"), 2, "bad-input", "'ops'"),
    (("doctor", "--break-lock", "cand-c"), 4, "not-found", "cand-c"),
    (("log", "--repo", "elsewhere"), 4, "repository-not-found", "emlake init "),
    (("train", "/nonexistent.toml", "/nonexistent"), 2, "bad-input", "/nonexistent.toml"),
    (("qc", "run", "cand-x"), 4, "ref-not-found", "cand-x"),
    (("qc", "show", "main"), 4, "table-not-found", "qc_metrics"),
    (("init", "new", "--block", "64,64"), 2, "bad-input", "64,64"),
    (("init", "new", "--voxel", "a,b,c"), 2, "bad-input", "a,b,c"),
    (("init", "new", "--block", "nan,64,64"), 2, "bad-input", "nan,64,64"),
    (("init", "new", "--block", "1e30,64,64"), 2, "bad-input", "1e30,64,64"),
    (("init", "new", "--voxel", "inf,1,1"), 2, "bad-input", "inf,1,1"),
    (("init", "new", "--policy", "/nonexistent"), 2, "bad-input", "/nonexistent"),
    (("init", "new", "--policy", "/dev/null"), 2, "bad-input", "/dev/null"),
    (("demo", "/etc/hostname"), 2, "bad-input", "/etc/hostname"),
    (("demo", "/etc/hostname/below"), 2, "bad-input", "/etc/hostname"),
    (("demo", "/proc/new"), 6, "storage", "/proc/new"),
    (("init", ""), 2, "bad-input", "lakefs://"),
    (("init", "http://127.0.0.1/new"), 2, "bad-input", "http://127.0.0.1/new"),
    (("log", "--repo", "s3://bucket/new"), 2, "bad-input", "s3://bucket/new"),
    (("init", "/etc"), 5, "already-exists", "/etc is not an empty folder"),
    (("init", "/etc/hostname"), 5, "already-exists", "/etc/hostname"),
    (("init", "/etc/hostname/below/it"), 2, "bad-input", "/etc/hostname"),
    (("doctor", "--break-lock", ""), 4, "not-found", "''"),
]


@pytest.mark.parametrize(
    ("arguments", "code", "kind", "told"), CASES, ids=lambda v: " ".join(v) if isinstance(v, tuple) else ""
)
def test_a_wrong_request_is_one_clear_error_and_changes_nothing(repo, emlake, arguments, code, kind, told):
    before = heads(repo)
    answer = emlake(*arguments)
    assert answer.code == code, answer.err
    assert answer.err.startswith(f"error[{kind}]: "), answer.err
    assert told in answer.err
    assert "fix: " in answer.err
    assert "Traceback" not in answer.err
    assert answer.out == ""
    assert heads(repo) == before


def test_a_policy_that_is_none_is_told_on_one_line(emlake, tmp_path):
    policy = tmp_path / "policy.toml"
    policy.write_text("version = 'one'")
    answer = emlake("init", tmp_path / "new", "--policy", policy)
    assert answer.code == 2
    told, _ = answer.err.splitlines()
    assert "version: Input should be 1" in told
    assert "more faults" in told
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("command", [("scrub", "--heal-from"), ("clone",)], ids=" ".join)
def test_nobody_is_told_to_make_the_repository_that_bytes_shall_come_from(repo, emlake, command):
    there = () if command[0] == "scrub" else ("new",)
    answer = emlake(*command, "elsewhere", *there)
    assert answer.code == 4
    assert answer.err.startswith("error[repository-not-found]: there is no repository at ")
    assert "name a repository that is there" in answer.err
    assert "init" not in answer.err
    assert not Path("new").exists()


def every_command(command=None, path=()):
    """Give the arguments that name each command and each group, from the root."""
    command = command or typer.main.get_command(app)
    yield path
    for name, below in getattr(command, "commands", {}).items():
        yield from every_command(below, (*path, name))


@pytest.mark.parametrize("command", [*every_command()], ids=" ".join)
def test_help_has_a_short_name_too(emlake, command):
    short = emlake(*command, "-h")
    assert short == emlake(*command, "--help")
    assert short.code == 0
    assert short.out.startswith("Usage: " + " ".join(("emlake", *command)))


@pytest.mark.parametrize(
    "arguments",
    [
        ("log", "-n", "0"),
        ("log", "-n", "-3"),
        ("log", "-n", str(2**63)),
        ("qc", "show", "main", "--scope", "regions"),
        ("demo", "new", "--seed", "-1"),
        ("server", "start", "--port", "65536"),
    ],
    ids=" ".join,
)
def test_a_value_out_of_range_is_bad_input(repo, emlake, arguments):
    answer = emlake(*arguments)
    assert (answer.code, answer.out) == (2, "")
    assert "Invalid value" in answer.err
    assert not Path("new").exists()


def test_the_version_is_told_without_a_command(emlake):
    assert emlake("--version").out.strip() == version("emlake")


def test_a_command_that_is_interrupted_says_what_stays(emlake, tmp_path):
    waits, over = tmp_path / "config.toml", threading.Event()
    os.mkfifo(waits)
    # A shell starts what it leaves in the background with the signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt() -> None:
        while not over.wait(0.01):
            with suppress(OSError):  # nobody reads yet
                writer = os.open(waits, os.O_WRONLY | os.O_NONBLOCK)
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
                over.wait()
                os.close(writer)

    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    try:
        answer = emlake("train", waits, tmp_path / "model")
    finally:
        over.set()
        interrupter.join()
        signal.signal(signal.SIGINT, before)
    assert (answer.code, answer.out) == (130, "")
    assert answer.err.startswith("interrupted; what was committed stays")


def test_what_is_empty_says_so_beside_the_data(repo, emlake):
    for arguments, told in ((("params", "list"), "no named set"), (("log", "--object", "note"), "no commit of main")):
        answer = emlake(*arguments)
        assert (answer.code, answer.out) == (0, "")
        assert told in answer.err


def test_with_json_the_error_is_one_object_on_stderr(repo, emlake):
    answer = emlake("release", "show", "r1", "--json")
    told = json.loads(answer.err)
    assert (answer.code, told["error"]) == (4, "not-found")
    assert told["fix"]


def test_without_a_repository_it_says_where_it_looked(tmp_path, emlake, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = emlake("log")
    assert answer.code == 4
    assert str(tmp_path) in answer.err


def test_the_repository_is_found_from_a_folder_below_it(repo, emlake, monkeypatch):
    monkeypatch.delenv("EMLAKE_REPO")
    inside = repo / "somewhere" / "below"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    assert emlake("log").code == 0


def test_a_repository_written_by_a_newer_version_is_refused_by_name(repo, emlake):
    marker = repo / MARKER
    content = json.loads(marker.read_text())
    marker.chmod(0o644)
    marker.write_text(json.dumps({**content, "format": content["format"] + 1}))
    answer = emlake("log")
    assert (answer.code, answer.err.startswith("error[format-too-new]")) == (2, True)


def test_a_policy_that_cannot_be_read_creates_nothing(tmp_path, emlake):
    policy = tmp_path / "policy.toml"
    policy.write_text("version = 1\n[[gate]]\nid = 'x'\n")
    answer = emlake("init", tmp_path / "new", "--policy", policy)
    assert answer.code == 2
    assert not (tmp_path / "new").exists()


def test_a_folder_with_foreign_files_is_not_taken_for_a_demo(tmp_path, emlake):
    (tmp_path / "thesis.txt").write_text("mine")
    answer = emlake("demo", tmp_path)
    assert answer.code == 2
    assert "not empty" in answer.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["thesis.txt"]


def test_a_second_writer_is_told_who_the_first_is(repo, emlake):
    opened = lake.open(repo)
    opened.create_branch("work", "main")
    with opened.session("work", owner="ann's run"):
        answer = emlake("params", "add", "watershed", "default", "--on", "work")
    assert answer.code == 5
    assert "ann's run" in answer.err


def test_a_dead_server_is_reported_soon(emlake):
    os.environ["LAKECTL_CREDENTIALS_ACCESS_KEY_ID"] = os.environ["LAKECTL_CREDENTIALS_SECRET_ACCESS_KEY"] = "none"
    try:
        started = time.monotonic()
        answer = emlake("log", "--repo", "lakefs://127.0.0.1:9/demo")
        assert time.monotonic() - started < 10
    finally:
        del os.environ["LAKECTL_CREDENTIALS_ACCESS_KEY_ID"], os.environ["LAKECTL_CREDENTIALS_SECRET_ACCESS_KEY"]
    assert answer.code == 6
    assert "127.0.0.1:9" in answer.err


@pytest.mark.parametrize("group", ["", "ingest", "params", "qc", "release", "server"])
def test_help_lists_every_command_with_a_sentence(emlake, group):
    answer = emlake(*([group] if group else []), "--help")
    assert answer.code == 0
    commands = answer.out.split("Commands:")[1].strip().splitlines()
    assert all(len(line.split(maxsplit=1)) == 2 for line in commands if line.strip())


def test_a_duration_may_have_a_space_before_its_unit_as_a_size_may():
    from releases.app.cli_gc import seconds

    assert seconds("14 d", "--grace") == seconds("14d", "--grace") == 14 * 86_400


def test_the_demo_names_a_command_by_the_path_it_was_run_by_where_its_name_is_not_known(monkeypatch, tmp_path):
    from releases.app.cli_demo import as_run

    monkeypatch.setattr("sys.argv", [".venv/bin/emlake", "demo"])
    monkeypatch.setenv("PATH", str(tmp_path))
    assert as_run("emlake log --repo emlake-repo") == ".venv/bin/emlake log --repo emlake-repo"
    (tmp_path / "emlake").write_text("#!/bin/sh")
    (tmp_path / "emlake").chmod(0o755)
    assert as_run("emlake log") == "emlake log"
