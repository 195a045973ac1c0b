import random

import pytest

from lake.engines.embedded import ranges
from lake.engines.embedded.ranges import (
    cut,
    decode,
    differing,
    encode,
    is_boundary,
    pack,
    pack_object,
    replaced,
    unpack_object,
)
from lake.engines.embedded.scratch import Scratch
from lake.engines.embedded.store import Store
from lake.engines.embedded.trees import Trees, overlay
from lake.errors import CorruptObject


@pytest.fixture
def trees(tmp_path, monkeypatch):
    monkeypatch.setattr(
        ranges, "_LIMIT", (1 << 32) // 8
    )  # ranges of about eight entries, so that small trees have many
    Store.make(tmp_path / "manifests")
    (tmp_path / "tmp").mkdir()
    scratch = Scratch(tmp_path / "tmp")
    yield Trees(Store(tmp_path / "manifests", scratch))
    scratch.close()


def value(number: int) -> bytes:
    return pack(number.to_bytes(32, "big"), number)


def keys_of(count: int) -> list[bytes]:
    return [b"volumes/em/%05d" % number for number in range(count)]


def test_a_block_gives_back_the_records_it_was_made_of():
    plain = [(b"a", value(1)), ("ä/\n".encode(), value(2)), (b"z\0", value(3))]
    mixed = [(key, each + rest) for (key, each), rest in zip(plain, [b"x", b"", b"x"], strict=True)]
    for records in ([], plain, mixed):
        keys, values = [key for key, _ in records], [each for _, each in records]
        assert decode(encode(keys, values), "t") == (keys, values)


def test_a_block_cut_short_is_reported_as_corrupt():
    block = encode([b"a", b"b"], [value(1), value(2) + b"rest"])
    for length in (0, 3, len(block) - 1):
        with pytest.raises(CorruptObject):
            decode(block[:length], "t")


def test_an_object_keeps_its_content_type_and_metadata_through_a_record():
    packed = pack_object(b"\1" * 32, 7, "text/plain", {"b": "2", "a": "\N{SNOWMAN}"})
    stat = unpack_object(b"k", packed, "here")
    assert (stat.size, stat.content_type, stat.metadata) == (7, "text/plain", {"a": "\N{SNOWMAN}", "b": "2"})
    assert packed == pack_object(b"\1" * 32, 7, "text/plain", {"a": "\N{SNOWMAN}", "b": "2"})
    assert len(pack_object(b"\1" * 32, 7, "application/octet-stream", {})) == 40


def test_ranges_of_real_looking_keys_hold_about_three_thousand_entries():
    for pattern in ("volumes/em/%09d", "raw/a1/s%06d/tile_0-0-1.tif", "volumes/seg/8_8_40/%d-%d_0-64_0-64"):
        keys = sorted((pattern % ((n, n + 64)[: pattern.count("%")])).encode() for n in range(100_000))
        sizes = [end - start for start, end in cut(keys)]
        assert sum(sizes) == len(keys)
        assert 2_000 < len(keys) / len(sizes) < 5_000


def test_equal_content_gives_an_equal_tree_however_it_came_about(trees):
    rng = random.Random(1)
    content: dict[bytes, bytes] = {}
    tree = trees.empty()
    universe = keys_of(400)
    for _ in range(60):
        picked = rng.sample(universe, rng.choice([1, 2, 10, 60]))
        edits = {key: None if rng.random() < 0.4 else value(rng.randrange(1000)) for key in picked}
        tree = trees.edit(tree, edits)
        content = {key: each for key, each in {**content, **edits}.items() if each is not None}
        assert dict(trees.items(tree)) == content
        assert len(tree) == len(content)
        assert trees.edit(trees.empty(), content).digest == tree.digest
        assert trees.load(tree.digest) == tree


def edited(content, rng, universe):
    """Content after some random edits, and the edits."""
    edits = {}
    for key in rng.sample(universe, rng.choice([1, 3, 20, 80])):
        # Mostly new values for old keys: what is put over.
        edits[key] = None if rng.random() < 0.15 else value(rng.randrange(1000))
    return {key: each for key, each in {**content, **edits}.items() if each is not None}


def test_edits_taken_over_range_by_range_give_the_tree_that_they_give_one_by_one(trees):
    rng = random.Random(3)
    universe = keys_of(500)
    taken = 0
    for _ in range(120):
        start = {key: value(rng.randrange(1000)) for key in rng.sample(universe, 300)}
        ours, theirs = edited(start, rng, universe), edited(start, rng, universe)
        base, left, right = (trees.edit(trees.empty(), each) for each in (start, ours, theirs))
        edits = {key: after for key, _, after in trees.delta(base, right)}
        result = trees.edit(left, edits, (base, right))
        expected = {key: each for key, each in {**ours, **edits}.items() if each is not None}
        assert dict(trees.items(result)) == expected
        assert result.digest == trees.edit(trees.empty(), expected).digest
        taken += len((set(result.ranges) & set(right.ranges)) - set(base.ranges) - set(left.ranges))
    assert taken > 100


def test_blocks_of_the_same_keys_are_compared_as_they_lie(trees):
    keys = keys_of(50)
    left = {key: value(number) for number, key in enumerate(keys)}
    right = {**left, keys[3]: value(77), keys[49]: value(78)}
    blocks = [encode(keys, list(side.values())) for side in (left, right)]
    assert differing(*blocks) == [(keys[at], left[keys[at]], right[keys[at]]) for at in (3, 49)]
    assert differing(blocks[0], blocks[0]) == []
    others = [*keys[:49], b"volumes/em/00099"]
    assert differing(blocks[0], encode(others, list(left.values()))) is None
    assert differing(blocks[0], encode(keys, [value(1) + b"rest", *list(left.values())[1:]])) is None
    assert differing(encode([], []), encode([], [])) is None


def test_values_are_replaced_in_a_block_as_if_it_were_decoded_changed_and_encoded_again():
    # Keys that begin, end and contain one another: only a whole key may be taken for one.
    keys = sorted({b"a" * n + tail for n in range(12) for tail in (b"", b"/", b"/b", b"b")} - {b""})
    block = encode(keys, [value(number) for number in range(len(keys))])
    for some in (keys, keys[::3], keys[:1], keys[-1:], [keys[5], keys[6], keys[-2]]):
        fresh = [value(1000 + at) for at in range(len(some))]
        records = dict(zip(keys, decode(block, "b")[1], strict=True)) | dict(zip(some, fresh, strict=True))
        assert replaced(block, some, fresh) == encode(keys, [records[key] for key in keys])
    for key, other in ((b"aab/", value(1)), (keys[3], None), (keys[3], value(1) + b"rest"), (b"", value(1))):
        assert replaced(block, [key], [other]) is None
    assert replaced(encode(keys[:1], [value(1) + b"rest"]), keys[:1], [value(2)]) is None
    assert replaced(encode([], []), keys[:1], [value(2)]) is None


def test_a_range_that_is_not_in_memory_is_edited_to_the_same_tree_as_one_that_is(trees):
    base = {key: value(1) for key in keys_of(3000)}
    start = trees.edit(trees.empty(), base)
    rng = random.Random(5)
    for removed, added in ((0, 0), (3, 0), (0, 3), (3, 3)):
        edits = {key: value(rng.randrange(9)) for key in rng.sample(sorted(base), 400)}
        edits |= dict.fromkeys(rng.sample(sorted(base), removed))
        edits |= {b"volumes/em/%05dx" % rng.randrange(3000): value(2) for _ in range(added)}
        fresh = Trees(trees._store)
        expected = {key: held for key, held in (base | edits).items() if held is not None}
        made = fresh.edit(fresh.load(start.digest), edits)
        assert made.digest == trees.edit(trees.empty(), expected).digest
        assert dict(fresh.items(made)) == expected
        changed = {key: edits[key] for key in edits if base.get(key) != edits[key]}
        assert {key: after for key, _, after in Trees(trees._store).delta(start, made)} == changed


def test_an_edit_leaves_nothing_behind_that_its_tree_does_not_name(trees, tmp_path):
    none = trees.empty()
    start = trees.edit(none, {key: value(1) for key in keys_of(200)})
    # Without its last key a range runs into the next, whose changed value was put into its bytes ahead of that.
    edits = {start.lasts[3]: None, start.lasts[4]: value(2)}
    cold = Trees(trees._store)
    made = cold.edit(cold.load(start.digest), edits)
    expected = {key: value(1) for key in keys_of(200)} | edits
    del expected[start.lasts[3]]
    assert dict(cold.items(made)) == expected
    there = {bytes.fromhex(path.parent.name + path.name) for path in (tmp_path / "manifests").glob("*/*")}
    assert there == {tree.digest for tree in (none, start, made)} | {*start.ranges, *made.ranges}
    assert not [path for path in (tmp_path / "tmp").rglob("t*") if path.is_file()]


def test_a_change_rewrites_only_the_ranges_it_falls_into(trees):
    before = trees.edit(trees.empty(), {key: value(1) for key in keys_of(2000)})
    after = trees.edit(before, {b"volumes/em/00700": value(2), b"volumes/em/00701": None})
    assert len(set(before.ranges) - set(after.ranges)) <= 3
    assert len(before.ranges) > 100


def reads(trees, left, right) -> set[bytes]:
    """The ranges that a comparison reads."""
    seen: set[bytes] = set()

    class Watched:
        def read(self, digest, what):
            seen.add(digest)
            return trees._store.read(digest, what)

    list(Trees(Watched()).delta(left, right))
    return seen


def test_a_delta_is_what_differs_and_reads_no_shared_range(trees):
    rng = random.Random(2)
    universe = keys_of(600)
    left = {key: value(1) for key in universe[::2]}
    for _ in range(30):
        right = dict(left)
        for key in rng.sample(universe, rng.choice([0, 1, 5, 50])):
            right.pop(key, None) if rng.random() < 0.5 else right.__setitem__(key, value(rng.randrange(3)))
        ours, theirs = trees.edit(trees.empty(), left), trees.edit(trees.empty(), right)
        for prefix in (b"", b"volumes/em/002", b"volumes/em/00200", b"zz"):
            expected = [
                (key, left.get(key), right.get(key))
                for key in sorted(left.keys() | right.keys())
                if left.get(key) != right.get(key) and key.startswith(prefix)
            ]
            assert list(trees.delta(ours, theirs, prefix)) == expected
        assert not reads(trees, ours, theirs) & set(ours.ranges) & set(theirs.ranges)
        left = right


def test_keys_are_found_and_listed_from_any_point(trees):
    content = {key: value(n) for n, key in enumerate(keys_of(300)[::3])}
    tree = trees.edit(trees.empty(), content)
    for key in keys_of(300):
        assert trees.find(tree, key) == content.get(key)
    for prefix, after in [(b"", b""), (b"volumes/em/001", b""), (b"volumes/em/001", b"volumes/em/00150"), (b"", b"w")]:
        expected = [(key, content[key]) for key in sorted(content) if key.startswith(prefix) and key > after]
        assert list(trees.items(tree, prefix, after)) == expected
    assert list(trees.items(tree, b"volumes/em/001", b"volumes/em/002")) == []
    assert list(trees.items(tree, b"volumes/em/002", b"a")) == list(trees.items(tree, b"volumes/em/002"))


def test_staged_records_hide_committed_ones():
    committed = [(b"a", b"1"), (b"b", b"2"), (b"d", b"4")]
    assert list(overlay(iter(committed), [(b"b", None), (b"c", b"3"), (b"d", b"5")])) == [
        (b"a", b"1"),
        (b"c", b"3"),
        (b"d", b"5"),
    ]


def test_a_flipped_bit_in_a_manifest_is_found(trees, tmp_path):
    tree = trees.edit(trees.empty(), {key: value(1) for key in keys_of(50)})
    fresh = Trees(Store(tmp_path / "manifests", trees._store._scratch))
    path = tmp_path / "manifests" / tree.ranges[0].hex()[:2] / tree.ranges[0].hex()[2:]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    with pytest.raises(CorruptObject, match=tree.ranges[0].hex()):
        list(fresh.items(fresh.load(tree.digest)))


def test_a_boundary_depends_on_the_key_alone():
    keys = keys_of(20_000)
    ends = [end for _, end in cut(keys)]
    assert all(is_boundary(keys[end - 1]) for end in ends[:-1])
    assert sum(is_boundary(key) for key in keys) == len(ends) - (not is_boundary(keys[-1]))
