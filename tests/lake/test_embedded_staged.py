"""What was put and is not committed yet: kept from a kill, judged after a power cut, swept when nobody wants it."""

import os

import pytest

import lake
from lake.engines.embedded import files
from lake.errors import CorruptObject
from lake.testing.crash import check_whole, content


@pytest.fixture
def repo(tmp_path):
    repo = lake.create(tmp_path / "repo")
    yield repo
    repo.close()


def after_reboot(repo, monkeypatch, tmp_path):
    """Open the repository as if the machine had been started again."""
    repo.close()
    (tmp_path / "boot_id").write_text("another-boot\n")
    monkeypatch.setattr(files, "BOOT_ID", tmp_path / "boot_id")
    return lake.open(repo.location)


def test_what_was_put_before_a_reboot_is_committed_if_its_bytes_are_sound(repo, monkeypatch, tmp_path):
    repo.put("main", "sound", b"s" * 1000)
    repo.put("main", "large", b"l" * 100_000)
    again = after_reboot(repo, monkeypatch, tmp_path)
    assert again.get("main", "sound") == b"s" * 1000
    assert (again.workspace("main", "").path / "large").stat().st_size == 100_000
    again.commit("main", "after the power cut")
    check_whole(again)
    again.close()


def test_what_a_power_cut_tore_is_no_loss_if_the_store_has_the_same_bytes(repo, monkeypatch, tmp_path):
    repo.put("main", "torn", b"t" * 1000)
    (kept,) = [path for path in (repo.root / "incoming").rglob("*") if path.stat().st_size == 1000]
    folder = repo.workspace("main", "other/").path
    (folder / "same").write_bytes(b"t" * 1000)
    # As a commit leaves it that was cut off after it had stored what was written in the folder.
    found = repo._engine.objects.survey(str(folder / "same"), known := set())
    repo._engine.objects.adopt([found], known)
    kept.chmod(0o644)
    os.truncate(kept, 300)
    again = after_reboot(repo, monkeypatch, tmp_path)
    again.commit("main", "after the power cut")
    assert content(again, "main@") == {"torn": b"t" * 1000, "other/same": b"t" * 1000}
    check_whole(again)
    again.close()


def test_what_a_power_cut_tore_is_not_committed_though_it_looks_right(repo, monkeypatch, tmp_path):
    repo.put("main", "torn", b"t" * 1000)
    (kept,) = [path for path in (repo.root / "incoming").glob("*/*") if path.is_file()]
    seal = kept.stat().st_mtime_ns
    kept.chmod(0o644)
    kept.write_bytes(b"\0" * 1000)  # a file system may leave the length and the time, and no bytes
    os.utime(kept, ns=(seal, seal))
    head = repo.resolve("main")
    again = after_reboot(repo, monkeypatch, tmp_path)
    for action in (lambda: again.commit("main", "no"), lambda: again.get("main", "torn")):
        with pytest.raises(CorruptObject, match="torn"):
            action()
    assert again.resolve("main") == head
    again.put("main", "torn", b"t" * 1000)
    again.commit("main", "put again")
    assert again.get("main", "torn") == b"t" * 1000
    again.close()


def test_what_nobody_stages_any_more_is_swept_on_opening_and_with_its_branch(repo):
    for key in ("a", "b", "c"):
        repo.put("main", key, key.encode())
    repo.put("main", "a", b"over it")
    repo.create_branch("side", "main")
    repo.put("side", "x", b"side")
    assert len([path for path in (repo.root / "incoming").glob("*/*") if path.is_file()]) == 5
    lake.open(repo.location).close()
    assert len([path for path in (repo.root / "incoming").glob("*/*") if path.is_file()]) == 4
    repo.delete_branch("side")
    assert len([path for path in (repo.root / "incoming").glob("*/*") if path.is_file()]) == 3
    repo.commit("main", "first")
    assert content(repo, "main") == {"a": b"over it", "b": b"b", "c": b"c"}
    assert not [path for path in (repo.root / "incoming").glob("*/*") if path.is_file()]


def test_a_damaged_staged_object_is_not_committed(repo):
    repo.put("main", "k", b"x" * 1000)
    (kept,) = [path for path in (repo.root / "incoming").glob("*/*") if path.is_file()]
    kept.chmod(0o644)
    kept.write_bytes(b"y" * 1000)
    with pytest.raises(CorruptObject, match="k"):
        repo.commit("main", "no")


def test_a_view_from_before_a_reboot_is_made_again(repo, monkeypatch, tmp_path):
    repo.put("main", "t/a", b"1")
    repo.put("main", "t/b", b"2")
    repo.commit("main", "first")
    view = repo.location_of("main", "t/").path
    (view / "a").unlink()  # as a power cut may have left it
    again = after_reboot(repo, monkeypatch, tmp_path)
    made = again.location_of("main", "t/").path
    assert sorted(os.listdir(made)) == ["a", "b"]
    assert not view.exists()
    again.close()
