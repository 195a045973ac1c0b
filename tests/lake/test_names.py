import pytest
from hypothesis import given
from hypothesis import strategies as st

from lake.errors import BadInput, InvalidName
from lake.names import (
    check_branch,
    check_key,
    check_metadata,
    check_pattern,
    check_release,
    check_tag,
    contested_units,
    is_commit_id,
    unit_of,
)


@pytest.mark.parametrize("name", ["main", "cand-a", "session-0af3", "_x", "A1", "0", "a" * 200])
def test_branch_names_are_letters_digits_underscores_and_hyphens(name):
    assert check_branch(name) == name


@pytest.mark.parametrize("name", ["", "-a", "a/b", "a.b", "a b", "a\n", "a~1", "a@", "a$", "é", "a^", "日本"])
def test_other_branch_names_are_refused_and_quoted(name):
    with pytest.raises(InvalidName) as caught:
        check_branch(name)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize(
    "name", ["r1", "v1.2.3", "lock.cand-a", "lock.main.claim-0123456789abcdef", "a_b-c", "a.locks"]
)
def test_tag_names_may_hold_dots(name):
    assert check_tag(name) == name


@pytest.mark.parametrize(
    "name",
    ["", ".a", "a.", "a..b", "a.lock", "a/b", "a b", "a^b", "a~b", "a:b", "a?b", "a*b", "a[b", "a\\b", "@", "a@b"],
)
def test_tag_names_that_git_refuses_are_refused(name):
    with pytest.raises(InvalidName):
        check_tag(name)


@given(st.text(max_size=20))
def test_what_names_a_branch_can_name_a_tag(name):
    try:
        check_branch(name)
    except InvalidName:
        return
    assert check_tag(name) == name


@pytest.mark.parametrize("name", ["r1", "2026-07_a", "candy", "sessions", "Main"])
def test_release_names(name):
    assert check_release(name) == name


@pytest.mark.parametrize(
    "name", ["", "_a", "-a", "r.1", "main", "archive", "ops", "cand-a", "session-a", "lock.a", "r 1"]
)
def test_a_release_cannot_take_a_reserved_or_malformed_name(name):
    with pytest.raises(InvalidName) as caught:
        check_release(name)
    assert repr(name) in str(caught.value)


@given(st.text(min_size=1))
def test_a_key_is_measured_in_bytes(key):
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        size = 0
    if 1 <= size <= 1024:
        assert check_key(key) == key
    else:
        with pytest.raises(InvalidName):
            check_key(key)


@pytest.mark.parametrize(("key", "size"), [("", "0 bytes"), ("é" * 513, "1026 bytes"), ("k" * 1025, "1025 bytes")])
def test_a_key_out_of_range_is_told_its_size(key, size):
    with pytest.raises(InvalidName, match=size):
        check_key(key)


@pytest.mark.parametrize("pattern", ["main", "cand-*", "?", "*"])
def test_a_pattern_is_a_glob(pattern):
    assert check_pattern(pattern) == pattern


@pytest.mark.parametrize("pattern", ["", "[", "[a]", "a b", "a/*", "{a,b}"])
def test_a_pattern_that_would_break_the_server_is_refused(pattern):
    with pytest.raises(InvalidName):
        check_pattern(pattern)


def test_metadata_is_text_and_copied():
    given = {"a": "1"}
    checked = check_metadata(given)
    given["a"] = "2"
    assert checked == {"a": "1"}
    for bad in ({"a": 1}, {1: "a"}, {"a": None}):
        with pytest.raises(BadInput):
            check_metadata(bad)


@pytest.mark.parametrize(
    ("key", "unit"),
    [
        ("tables/synapses/_delta_log/0.json", "tables/synapses/"),
        ("volumes/em/", "volumes/em/"),
        ("meshes/seg/1", "meshes/seg/"),
        ("skeletons/seg//1", "skeletons/seg/"),
        ("tables/readme", None),
        ("tables//x", None),
        ("tables", None),
        ("raw/a/b", None),
        ("_qc/x/y", None),
        ("xtables/a/b", None),
    ],
)
def test_the_unit_of_a_key_is_its_table_volume_mesh_or_skeleton_folder(key, unit):
    assert unit_of(key) == unit


def test_a_unit_is_contested_if_both_sides_changed_it_differently():
    ours = {"tables/a/1": "x", "tables/b/1": "x", "tables/c/1": "x", "free": "x", "volumes/v/1": None}
    theirs = {"tables/a/2": "x", "tables/b/1": "x", "tables/d/1": "x", "free": "y", "volumes/v/1": "x"}
    assert contested_units(ours, theirs) == ["tables/a/", "volumes/v/"]
    assert contested_units(theirs, ours) == ["tables/a/", "volumes/v/"]
    assert contested_units(ours, ours) == []


@pytest.mark.parametrize(("text", "is_id"), [("0" * 64, True), ("a" * 63, False), ("A" * 64, False), ("g" * 64, False)])
def test_a_commit_id_is_64_hexadecimal_digits(text, is_id):
    assert is_commit_id(text) is is_id
