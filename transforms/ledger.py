"""What was done, block by block: one object a block while a run goes on, one Parquet file of them afterwards.

::

    _runs/<run_id>/begun.json                        the run exists; who, when, from which commit
    _runs/<run_id>/blocks/<stage>/<block>.json       this block is done: written last, after all it speaks of
    _runs/<run_id>/dead/<stage>/<block>.json         this block failed every time: the cause
                       at the end they become
    _runs/<run_id>/run.json                          the run: stages, parameters, models, code, inputs, Merkle roots
    _runs/<run_id>/blocks.parquet                    a row per stage, block and output, unchanged blocks included
    _runs/<run_id>/inputs.parquet                    a row per input of each block that this run computed or copied

The newest row that *made* a block, over all run folders of a tree, is that block's state there. A row that says
"unchanged" makes nothing: after a merge it must not hide what the other side made.
"""

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import polars as pl

from lake.digests import canonical_json, merkle_root
from lake.errors import CorruptObject, ObjectNotFound
from lake.repository import ObjectStat
from lake.tables import Part
from transforms.fingerprint import InputRef

RUNS = "_runs/"
Origin = Literal["computed", "copied", "unchanged"]


class Objects(Protocol):
    """What both a session and a commit answer."""

    def get(self, key: str) -> bytes:
        """Read an object."""
        ...

    def list(self, prefix: str = "") -> Iterator[ObjectStat]:
        """List objects."""
        ...


@dataclass(frozen=True, slots=True)
class Output:
    """One thing a block wrote.

    Parameters
    ----------
    name : str
        `volumes/em`, `tables/edges` or `meshes/segmentation`.
    parts : tuple of Part
        The Parquet files, for a table; one per region.
    keys : tuple of str
        The objects, for a prefix.
    """

    name: str
    digest: str
    bytes: int
    parts: tuple[Part, ...] = ()
    keys: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Give the fields as a JSON object."""
        return {
            "name": self.name, "digest": self.digest, "bytes": self.bytes,
            "parts": [part.to_json() for part in self.parts], "keys": list(self.keys),
        }  # fmt: skip

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "Output":
        """Read back what `to_json` gave."""
        parts = tuple(Part.from_json(part) for part in raw["parts"])
        return cls(raw["name"], raw["digest"], raw["bytes"], parts, tuple(raw["keys"]))


@dataclass(frozen=True, slots=True)
class Record:
    """A finished block.

    Parameters
    ----------
    box : str
        What it covers; "" for a stage over everything.
    parts : mapping
        The parts of the fingerprint (`transforms.fingerprint`).
    made_by : str
        The run that computed it: what `run_id` and lineage mean.
    origin : "computed", "copied" or "unchanged"
        How this run came by it: its own work, from another branch's commit, or as it lay in the tree.
    attempts, seconds, cpu_s, peak_bytes
        What it cost; of the last attempt, but `cpu_s` and `attempts` over all.
    """

    stage: str
    block: str
    box: str
    fingerprint: str
    parts: Mapping[str, Any]
    outputs: tuple[Output, ...]
    made_by: str
    origin: Origin = "computed"
    region: str | None = None
    voxels: int = 0
    changed: str | None = None
    attempts: int = 1
    seconds: float = 0.0
    cpu_s: float = 0.0
    wasted_s: float = 0.0
    peak_bytes: int = 0
    finished: str = ""

    @property
    def id(self) -> str:
        """`<stage>/<block>`."""
        return f"{self.stage}/{self.block}"

    @property
    def bytes(self) -> int:
        """Bytes written."""
        return sum(output.bytes for output in self.outputs)

    def output(self, name: str) -> Output | None:
        """Give one output by name."""
        return next((output for output in self.outputs if output.name == name), None)

    def to_json(self) -> dict[str, Any]:
        """Give the fields as a JSON object."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "outputs"}
        return {**fields, "parts": dict(self.parts), "outputs": [output.to_json() for output in self.outputs]}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "Record":
        """Read back what `to_json` gave."""
        outputs = tuple(Output.from_json(output) for output in raw["outputs"])
        return cls(**{**raw, "outputs": outputs})


@dataclass(slots=True)
class Ledger:
    """Finished blocks by stage and name.

    A few hundred bytes a block: the inputs, which are many, stay in the objects.
    """

    records: dict[str, dict[str, Record]] = field(default_factory=dict)

    def add(self, record: Record) -> None:
        """Keep a record, in place of an earlier one of the same block."""
        self.records.setdefault(record.stage, {})[record.block] = record

    def get(self, stage: str, block: str) -> Record | None:
        """Give a block's record."""
        return self.records.get(stage, {}).get(block)

    def of(self, stage: str) -> dict[str, Record]:
        """Give all records of a stage by block name."""
        return self.records.get(stage, {})

    def __iter__(self) -> Iterator[Record]:
        for blocks in self.records.values():
            yield from blocks.values()

    def writers_of(self, output: str) -> list[Record]:
        """List the blocks that wrote an output, whatever their stage."""
        return [record for record in self if record.output(output) is not None]

    def root(self, stage: str) -> str:
        """Give the Merkle root of a stage: over (fingerprint, block, output digest)."""
        return stage_root(self.of(stage).values())


def stage_root(records: Iterable[Record]) -> str:
    """Give the Merkle root over (fingerprint, block, output, digest)."""
    return merkle_root(
        (record.fingerprint, record.id, output.name, output.digest) for record in records for output in record.outputs
    )


def outputs_root(records: Iterable[Record], name: str) -> str:
    """Give the Merkle root over (block, digest) of one output: what a reader of the whole output depends on."""
    rows = ((record.id, record.output(name)) for record in records)
    return merkle_root((block, output.digest) for block, output in rows if output is not None)


def as_unchanged(record: Record) -> Record:
    """Give the row by which a run says that it found a block as it was."""
    return replace(record, origin="unchanged", changed=None)


# -- objects of a run that goes on -------------------------------------------------------------------------------
def run_folder(run_id: str) -> str:
    """Name the folder of a run."""
    return f"{RUNS}{run_id}/"


def done_key(run_id: str, stage: str, block: str) -> str:
    """Name the object that proves a block done."""
    return f"{RUNS}{run_id}/blocks/{stage}/{block}.json"


def dead_key(run_id: str, stage: str, block: str) -> str:
    """Name the object that says why a block cannot be done."""
    return f"{RUNS}{run_id}/dead/{stage}/{block}.json"


def done_object(record: Record, inputs: Iterable[InputRef]) -> bytes:
    """Write a record and its inputs."""
    refs = [[ref.kind, ref.id, ref.digest, ref.made_by] for ref in sorted(inputs)]
    return canonical_json({**record.to_json(), "inputs": refs})


def read_done(data: bytes, key: str) -> tuple[Record, list[InputRef]]:
    """Read back what `done_object` wrote; `CorruptObject` if it is not that."""
    try:
        raw = json.loads(data)
        inputs = [InputRef(*ref) for ref in raw.pop("inputs")]
        return Record.from_json(raw), inputs
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptObject(
            f"{key} is not a block's record: {error!r}", fix="remove it; the block is run again"
        ) from error


def unfinished(objects: Objects, run_id: str) -> Iterator[tuple[Record, list[InputRef]]]:
    """Yield the finished blocks of a run that goes on."""
    for stat in objects.list(f"{run_folder(run_id)}blocks/"):
        yield read_done(objects.get(stat.key), stat.key)


# -- a run's folder in a tree ------------------------------------------------------------------------------------
_COLUMNS = (
    "stage", "block", "box", "region", "fingerprint", "made_by", "origin", "voxels", "changed", "attempts", "seconds",
    "cpu_s", "wasted_s", "peak_bytes", "finished",
)  # fmt: skip
_SCHEMA: dict[str, Any] = {
    **dict.fromkeys(_COLUMNS, pl.String),
    **dict.fromkeys(("voxels", "attempts", "peak_bytes", "bytes"), pl.Int64),
    **dict.fromkeys(("seconds", "cpu_s", "wasted_s"), pl.Float64),
    "parts": pl.String, "output": pl.String, "output_digest": pl.String, "output_parts": pl.String, "keys": pl.String,
}  # fmt: skip


def blocks_parquet(records: Iterable[Record]) -> bytes:
    """Write `blocks.parquet`: a row per stage, block and output, sorted."""
    rows = []
    for record in sorted(records, key=lambda r: (r.stage, r.block)):
        shared = {name: getattr(record, name) for name in _COLUMNS}
        shared["parts"] = canonical_json(dict(record.parts)).decode()
        for output in record.outputs:
            parts = canonical_json([part.to_json() for part in output.parts]).decode()
            rows.append(
                {
                    **shared, "output": output.name, "output_digest": output.digest, "bytes": output.bytes,
                    "output_parts": parts, "keys": canonical_json(list(output.keys)).decode(),
                }
            )  # fmt: skip
    return _parquet(pl.DataFrame(rows, schema=_SCHEMA))


def inputs_parquet(entries: Iterable[tuple[str, Iterable[InputRef]]]) -> bytes:
    """Write `inputs.parquet`: a row per (block id, input)."""
    rows = [
        {"block": block, "kind": ref.kind, "input_id": ref.id, "digest": ref.digest, "input_run_id": ref.made_by}
        for block, refs in sorted(entries, key=lambda entry: entry[0])
        for ref in sorted(refs)
    ]
    schema = dict.fromkeys(("block", "kind", "input_id", "digest", "input_run_id"), pl.String)
    return _parquet(pl.DataFrame(rows, schema=schema))


def _parquet(frame: pl.DataFrame) -> bytes:
    sink = io.BytesIO()
    frame.write_parquet(sink, compression="zstd")
    return sink.getvalue()


def read_blocks(data: bytes) -> list[Record]:
    """Read the records of a `blocks.parquet`."""
    records: dict[tuple[str, str], Record] = {}
    for row in pl.read_parquet(io.BytesIO(data)).iter_rows(named=True):
        parts = tuple(Part.from_json(part) for part in json.loads(row["output_parts"]))
        output = Output(row["output"], row["output_digest"], row["bytes"], parts, tuple(json.loads(row["keys"])))
        key = (row["stage"], row["block"])
        if key in records:
            records[key] = replace(records[key], outputs=(*records[key].outputs, output))
        else:
            shared = {name: row[name] for name in _COLUMNS}
            records[key] = Record(**shared, parts=json.loads(row["parts"]), outputs=(output,))
    return list(records.values())


def read_inputs(data: bytes) -> pl.DataFrame:
    """Read an `inputs.parquet`."""
    return pl.read_parquet(io.BytesIO(data))


def runs_in(objects: Objects) -> dict[str, dict[str, Any]]:
    """Map the complete runs of a tree to their `run.json`, oldest first."""
    found = {}
    for stat in objects.list(RUNS):
        run_id, _, name = stat.key.removeprefix(RUNS).partition("/")
        if name == "run.json":
            found[run_id] = json.loads(objects.get(stat.key))
    return dict(sorted(found.items(), key=lambda item: (item[1]["started"], item[0])))


def state_of(objects: Objects) -> tuple[Ledger, dict[str, dict[str, Any]]]:
    """Give the state of every block in a tree, and its runs: for each block the newest record that made it."""
    ledger, runs = Ledger(), runs_in(objects)
    for run_id in runs:
        for record in read_blocks(objects.get(f"{run_folder(run_id)}blocks.parquet")):
            if record.origin != "unchanged":
                ledger.add(record)
    return ledger, runs


def begun_runs(objects: Objects) -> list[str]:
    """List the runs that began in a tree and did not end: in a session, the one to go on with."""
    begun, ended = [], set()
    for stat in objects.list(RUNS):
        run_id, _, name = stat.key.removeprefix(RUNS).partition("/")
        if name == "begun.json":
            begun.append(run_id)
        elif name == "run.json":
            ended.add(run_id)
    return [run_id for run_id in begun if run_id not in ended]


def recorded_run(objects: Objects, base: Objects, pipeline: str) -> dict[str, Any] | None:
    """Read the run of a pipeline whose record is whole in a session and not in the tree that it began from, if any."""
    known = {stat.key for stat in base.list(RUNS)}
    for stat in objects.list(RUNS):
        if stat.key.endswith("/run.json") and stat.key not in known:
            run = read_json(objects, stat.key)
            if run is not None and (run["pipeline"], run["state"]) == (pipeline, "complete"):
                return run
    return None


def read_json(objects: Objects, key: str) -> dict[str, Any] | None:
    """Read a JSON object, or None if there is none."""
    try:
        found: dict[str, Any] = json.loads(objects.get(key))
    except ObjectNotFound:
        return None
    return found
