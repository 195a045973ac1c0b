from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lake.errors import RefNotFound
from lake.refs import RefExpr, is_prefix, not_found, parse, resolve_steps, unique_prefix

# A small history: c is a merge of b (first parent) and x; b and x come from a.
PARENTS = {"a": (), "b": ("a",), "x": ("a",), "c": ("b", "x"), "d": ("c",)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("main", RefExpr("main")),
        ("lock.cand-a", RefExpr("lock.cand-a")),
        ("main~", RefExpr("main", (("~", 1),))),
        ("main^", RefExpr("main", (("^", 1),))),
        ("main~12^2~0^0", RefExpr("main", (("~", 12), ("^", 2), ("~", 0), ("^", 0)))),
        ("main~~", RefExpr("main", (("~", 1), ("~", 1)))),
        ("main@", RefExpr("main", (), "@")),
        ("main$", RefExpr("main", (), "$")),
    ],
)
def test_an_expression_is_a_base_and_what_follows(text, expected):
    assert parse(text) == expected


@pytest.mark.parametrize(
    "text", ["", "~1", "^", "@", "$", "main@~1", "main~1@", "main@@", "main$@", "main~x", "main~-1", "a b", "main\n"]
)
def test_what_follows_no_form_is_refused_with_its_text(text):
    with pytest.raises(RefNotFound) as caught:
        parse(text)
    assert repr(text) in str(caught.value)
    assert caught.value.fix


@given(
    st.from_regex(r"[A-Za-z0-9_.-]{1,20}", fullmatch=True),
    st.lists(st.tuples(st.sampled_from("~^"), st.integers(0, 999_999_999)), max_size=4),
)
def test_what_is_written_out_is_read_back(base, steps):
    text = base + "".join(f"{kind}{count}" for kind, count in steps)
    assert parse(text) == RefExpr(base, tuple(steps))
    assert parse(text).plain == (not steps)


@given(st.text(max_size=12))
def test_any_text_is_parsed_or_not_found(text):
    with suppress(RefNotFound):
        assert parse(text).base


@pytest.mark.parametrize(
    ("start", "steps", "end"),
    [("d", "~0", "d"), ("d", "~1", "c"), ("d", "~2", "b"), ("d", "~1^2", "x"), ("d", "^^2~1", "a"), ("d", "~3^0", "a")],
)
def test_steps_walk_the_parents(start, steps, end):
    assert resolve_steps(PARENTS.__getitem__, start, parse("x" + steps).steps) == end


@pytest.mark.parametrize("steps", ["~4", "^2", "^3", "~2^2", "~999999999"])
def test_a_step_beyond_the_last_parent_names_the_commit(steps):
    with pytest.raises(RefNotFound, match=r"has \d parents?, so"):
        resolve_steps(PARENTS.__getitem__, "d", parse("x" + steps).steps)


def test_a_prefix_is_found_if_it_is_unique_in_either_case():
    commits = ["ab12" + "0" * 60, "ab34" + "0" * 60]
    assert unique_prefix("ab1", commits) == commits[0]
    assert unique_prefix("AB3", commits) == commits[1]
    assert unique_prefix(commits[0], commits) == commits[0]
    for text in ("ab", "a", "", "cd", "main", commits[0] + "0"):
        assert unique_prefix(text, commits) is None
    assert not is_prefix("ab1g")


def test_the_nearest_name_is_offered():
    error = not_found("cand-mrach", ["main", "cand-march", "ops"])
    assert "'cand-mrach'" in error.message
    assert "'cand-march'" in error.fix
