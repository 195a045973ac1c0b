"""Is a run complete? What was planned against what is there, asked of the files and not of the records.

Every planned block has a record; every chunk of every scale of a volume that was written has a file; every table holds
exactly the parts that its blocks wrote; every object exists. A run that fails this is not called complete.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lake import tables
from transforms.layout import Layout
from transforms.ledger import Ledger, Record
from transforms.tree import Tree


@dataclass(frozen=True, slots=True)
class Gap:
    """Something that should be there and is not."""

    stage: str
    what: str

    def __str__(self) -> str:
        return f"{self.stage}: {self.what}"


def audit(tree: Tree, ledger: Ledger, stages: Sequence[tuple[str, Layout]]) -> list[Gap]:
    """List what is missing of the given stages; an empty list means complete."""
    gaps: list[Gap] = []
    for stage, layout in stages:
        records = ledger.of(stage)
        gaps += [Gap(stage, f"block {name} has no record") for name in layout.blocks if name not in records]
        mine = [records[name] for name in layout.blocks if name in records]
        for output in sorted({output.name for record in mine for output in record.outputs}):
            gaps += [Gap(stage, what) for what in _missing(tree, output, mine)]
    return gaps


def _missing(tree: Tree, output: str, records: Iterable[Record]) -> list[str]:
    kind, _, name = output.partition("/")
    if kind == "volumes":
        volume = tree.volume(name)
        if volume is None:
            return [f"{output} does not exist"]
        scales = range(len(volume.spec.scales))
        return [f"{output} scale {s} lacks chunk {cell}" for s in scales for cell in volume.missing_chunks(scale=s)]
    written = [found for record in records if (found := record.output(output)) is not None]
    present = tree.written_files(f"{output}/")
    wanted = [key for found in written for key in ([part.path for part in found.parts] or found.keys)]
    gaps = [f"{output}/{key} does not exist" for key in wanted if key not in present]
    if kind == "tables" and not gaps:
        location = tree.read(f"{output}/")
        rows = sum(part.rows for found in written for part in found.parts)
        held = tables.table_rows(location) if tables.table_exists(location) else -1
        if held != rows:
            gaps.append(f"{output} holds {held} rows, its blocks wrote {rows}")
    return gaps
