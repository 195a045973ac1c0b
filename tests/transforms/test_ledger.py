"""The ledger: what is written of a block is read back, and the newest maker of a block is its state."""

import io
import json

import polars as pl
import pytest

from lake.errors import CorruptObject, ObjectNotFound
from lake.repository import ObjectStat
from lake.tables import Part
from transforms import ledger as book
from transforms.fingerprint import InputRef
from transforms.ledger import Ledger, Output, Record


class Objects:
    """A tree of objects in memory."""

    def __init__(self):
        self.objects = {}

    def get(self, key):
        if key not in self.objects:
            raise ObjectNotFound(key)
        return self.objects[key]

    def list(self, prefix=""):
        return iter([ObjectStat(k, len(d), "") for k, d in sorted(self.objects.items()) if k.startswith(prefix)])

    def run(self, run_id, started, records):
        self.objects[f"_runs/{run_id}/run.json"] = json.dumps({"started": started}).encode()
        self.objects[f"_runs/{run_id}/blocks.parquet"] = book.blocks_parquet(records)


def record(block="0_0_0", digest="d", made_by="r1", origin="computed", **more):
    part = Part("edges", f"region={block}/x.parquet", 10, 2, {"region": block}, "{}", digest)
    outputs = (Output("volumes/em", digest, 512), Output("tables/edges", digest * 2, 10, (part,)))
    parts = {"params": "p", "model": None, "box": "0:1,0:1,0:1"}
    return Record("cut", block, "0:1,0:1,0:1", f"f{digest}", parts, outputs, made_by, origin, **more)


def test_a_done_object_holds_the_record_and_its_inputs():
    inputs = [InputRef("tile", "raw/x", "2"), InputRef("block", "paint/0", "1", "r0")]
    data = book.done_object(record(attempts=2, region="0_0_0", changed="inputs"), inputs)
    back, refs = book.read_done(data, "key")
    assert back == record(attempts=2, region="0_0_0", changed="inputs")
    assert refs == sorted(inputs)
    assert [ref.made_by for ref in refs] == ["r0", None]


@pytest.mark.parametrize("data", [b"", b"{}", b'{"inputs": []}', b"\xff"])
def test_a_torn_record_is_named_and_not_believed(data):
    with pytest.raises(CorruptObject, match="_runs/r/blocks/cut/0"):
        book.read_done(data, "_runs/r/blocks/cut/0.json")


def test_blocks_parquet_gives_back_what_it_was_given():
    records = [record("0_0_1", "e", seconds=1.5, voxels=7), record("0_0_0")]
    assert book.read_blocks(book.blocks_parquet(records)) == sorted(records, key=lambda r: r.block)
    assert book.read_blocks(book.blocks_parquet([])) == []


def test_inputs_parquet_has_a_row_per_block_and_input():
    data = book.inputs_parquet(
        [("cut/1", [InputRef("tile", "b", "2"), InputRef("block", "a", "1", "r")]), ("cut/0", [])]
    )
    rows = book.read_inputs(data).rows()
    assert rows == [("cut/1", "block", "a", "1", "r"), ("cut/1", "tile", "b", "2", None)]
    assert pl.read_parquet(io.BytesIO(book.inputs_parquet([]))).height == 0


def test_the_newest_run_that_made_a_block_is_its_state():
    tree = Objects()
    tree.run("b-late", "2026-01-02", [record("0_0_0", "new", "b-late"), record("0_0_1", "old", "a-early", "unchanged")])
    tree.run("a-early", "2026-01-01", [record("0_0_0", "old", "a-early"), record("0_0_1", "old", "a-early")])
    ledger, runs = book.state_of(tree)
    assert list(runs) == ["a-early", "b-late"]
    assert ledger.get("cut", "0_0_0").made_by == "b-late"
    assert ledger.get("cut", "0_0_1").made_by == "a-early"


def test_a_run_that_found_a_block_unchanged_does_not_hide_what_a_merge_brought():
    # Branch B listed the block as it was; meanwhile main recomputed it, and was merged into B.
    tree = Objects()
    tree.run("1-base", "2026-01-01", [record(digest="old", made_by="1-base")])
    tree.run("2-main", "2026-01-02", [record(digest="new", made_by="2-main")])
    tree.run("3-b", "2026-01-03", [record(digest="old", made_by="1-base", origin="unchanged")])
    ledger, _ = book.state_of(tree)
    assert ledger.get("cut", "0_0_0").made_by == "2-main"


def test_a_copied_block_counts_where_its_maker_is_not_in_the_tree():
    tree = Objects()
    tree.run("2-here", "2026-01-02", [record(made_by="1-elsewhere", origin="copied")])
    ledger, _ = book.state_of(tree)
    assert ledger.get("cut", "0_0_0").made_by == "1-elsewhere"


def test_roots_depend_on_blocks_and_digests_and_not_on_who_made_them():
    one, two = record("0_0_0", "a"), record("0_0_1", "b")
    root = book.stage_root([one, two])
    assert root == book.stage_root([record("0_0_1", "b", made_by="other", attempts=3), one])
    assert root != book.stage_root([one, record("0_0_1", "c")])
    assert book.outputs_root([one, two], "volumes/em") != book.outputs_root([one], "volumes/em")
    assert book.outputs_root([one, two], "tables/none") == book.outputs_root([], "tables/none")


def test_a_run_that_began_and_did_not_end_is_found():
    tree = Objects()
    tree.objects = {"_runs/r1/begun.json": b"{}", "_runs/r2/begun.json": b"{}", "_runs/r2/run.json": b"{}"}
    assert book.begun_runs(tree) == ["r1"]


def test_writers_are_found_by_what_they_wrote():
    ledger = Ledger()
    ledger.add(record("0_0_0"))
    ledger.add(record("0_0_1"))
    assert {r.block for r in ledger.writers_of("tables/edges")} == {"0_0_0", "0_0_1"}
    assert ledger.writers_of("tables/none") == []
    assert ledger.root("cut") == book.stage_root(ledger)
