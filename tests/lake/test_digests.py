"""Digests: equal for equal content, whatever its layout; different for different content."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lake.box import Box
from lake.digests import array_digest, bytes_digest, canonical_json, file_digest, json_digest, merkle_root
from lake.errors import BadInput

BOX = Box((1, 2, 3), (3, 5, 7))


def test_canonical_json_has_one_form() -> None:
    assert canonical_json({"b": 1, "a": [1.0, "é", None, True]}) == '{"a":[1.0,"é",null,true],"b":1}'.encode()
    assert canonical_json({"n": np.int64(3), "p": Path("a/b"), "t": (1, 2)}) == b'{"n":3,"p":"a/b","t":[1,2]}'


@pytest.mark.parametrize("value", [float("nan"), {1: "a"}, {"a": {2: 3}}, [{None: 1}], object(), {1, 2}])
def test_what_json_cannot_say_exactly_is_refused(value: object) -> None:
    with pytest.raises(BadInput):
        json_digest(value)


def test_an_array_digest_ignores_memory_layout_and_byte_order() -> None:
    array = np.arange(24, dtype=np.uint16).reshape(BOX.shape)
    expected = array_digest(array, BOX)
    assert array_digest(np.asfortranarray(array), BOX) == expected
    assert array_digest(array.astype(">u2"), BOX) == expected
    assert array_digest(np.repeat(array, 2, axis=2)[:, :, ::2], BOX) == expected


def test_an_array_digest_tells_values_type_shape_and_place_apart() -> None:
    array = np.arange(24, dtype=np.uint16).reshape(BOX.shape)
    other = array.copy()
    other[0, 0, 0] += 1
    digests = {
        array_digest(array, BOX),
        array_digest(other, BOX),
        array_digest(array.astype(np.int16), BOX),
        array_digest(array, BOX.shift((1, 0, 0))),
        array_digest(array[None], BOX),
    }
    assert len(digests) == 5


def test_an_array_must_fit_its_box() -> None:
    with pytest.raises(BadInput, match="1:3,2:5,3:7"):
        array_digest(np.zeros((2, 3, 5), np.uint8), BOX)


few = settings(deadline=None, max_examples=40)
rows = st.lists(st.tuples(st.text(max_size=3), st.integers(0, 9)), max_size=9)


@few
@given(rows, st.randoms(use_true_random=False))
def test_a_merkle_root_does_not_depend_on_order(given_rows: list, random) -> None:
    shuffled = list(given_rows)
    random.shuffle(shuffled)
    assert merkle_root(shuffled) == merkle_root(given_rows)


@few
@given(rows, st.tuples(st.text(max_size=3), st.integers(0, 9)))
def test_a_row_more_is_another_root(given_rows: list, extra: tuple) -> None:
    assert merkle_root([*given_rows, extra]) != merkle_root(given_rows)


def test_a_merkle_root_is_the_tree_that_the_docstring_draws() -> None:
    a, b, c = (hashlib.sha256(b"\0" + text).digest() for text in (b'["a"]', b'["b"]', b'["c"]'))
    left = hashlib.sha256(b"\1" + a + b).digest()
    assert merkle_root([["c"], ["a"], ["b"]]) == hashlib.sha256(b"\1" + left + c).hexdigest()
    assert merkle_root([]) == hashlib.sha256(b"").hexdigest()


def test_a_file_digests_like_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert file_digest(tmp_path / "f") == bytes_digest(b"abc") == hashlib.sha256(b"abc").hexdigest()
