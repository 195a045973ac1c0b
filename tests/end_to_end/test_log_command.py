"""`emlake log` says which commits changed a path."""

import json

import lake
from lake.testing.trees import save


def test_the_log_of_a_path_names_the_commits_and_merges_that_changed_it(tmp_path, emlake, monkeypatch):
    monkeypatch.setenv("EMLAKE_REPO", str(tmp_path / "repo"))
    with_history(tmp_path / "repo")

    def messages(*arguments: str) -> list[str]:
        answer = emlake("log", "main", "--json", *arguments)
        assert answer.code == 0, answer.err
        return [commit["message"] for commit in json.loads(answer.out)["commits"]]

    assert messages("--prefix", "volumes/em/") == ["release", "em"]
    assert messages("--prefix", "volumes/em/", "--first-parent") == ["release"]
    assert messages("--object", "notes", "--prefix", "volumes/em/") == ["release", "em", "notes"]
    assert messages("--object", "note") == []
    assert messages("--object", "notes", "-n", "1") == ["notes"]
    assert "  release\n" in emlake("log", "main", "--object", "volumes/em/info").out


def test_a_path_that_no_key_can_be_is_bad_input(tmp_path, emlake):
    with_history(tmp_path / "repo")
    answer = emlake("log", "--repo", tmp_path / "repo", "--prefix", "")
    assert (answer.code, answer.out, "0 bytes" in answer.err) == (2, "", True)


def with_history(folder):
    repo = lake.create(folder)
    save(repo, "main", {"notes": b"1"}, "notes")
    repo.create_branch("cand", "main")
    save(repo, "cand", {"volumes/em/info": b"{}"}, "em")
    repo.merge("cand", "main", "release")
    repo.close()


def test_a_message_of_many_lines_is_one_line_of_the_log_and_whole_in_json(tmp_path, emlake):
    repo = lake.create(tmp_path / "repo")
    save(repo, "main", {"notes": b"1"}, "first line\n\nand why")
    repo.close()
    lines = emlake("log", "--repo", tmp_path / "repo").out.splitlines()
    assert len(lines) == 2
    assert lines[0].endswith("  first line")
    said = json.loads(emlake("log", "--repo", tmp_path / "repo", "--json").out)
    assert said["commits"][0]["message"] == "first line\n\nand why"
