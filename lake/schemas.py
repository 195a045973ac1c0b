"""Every table of the lake, declared once.

Conventions
-----------
- All ids are non-negative int64. Positions are flat columns `<name>_x`, `_y`, `_z`: double, nm, voxel centres, so the
  centre of voxel (z, y, x) is `((x + 0.5) * nm_x, (y + 0.5) * nm_y, (z + 0.5) * nm_z)`. Boxes are `min_*`, `max_*`:
  double, nm, half-open.
- A column is NOT NULL unless it says so; a nullable column may be left out of the rows that are written.
- Volatile columns (times, hosts, durations, attempts, costs, run ids, commit ids) are left out of `content_digest`.

Lineage
-------
A block of a run is named `<stage>/<z_y_x>` (a stage over the whole graph has the single block `<stage>/0_0_0`). Rows
of data tables carry (`run_id`, `block`) of the block that made them. `block_inputs` has one row per input::

    kind     input_id            digest                       input_run_id
    block    '<stage>/<z_y_x>'   its output digest            the run that *computed* it (not one that reused it)
    tile     tiles.path          tiles.sha256                 NULL
    table    table name          content digest of the rows read   NULL
    run      run id              Merkle root of the stage read     NULL
    source   key or address      digest of what was imported       NULL

    segment -> agglomeration -> supervoxels (run_id, block)
            -> block_inputs where kind = 'block': (input_run_id, input_id) = (run_id, block), and so on
            -> block_inputs where kind = 'tile': tiles.path

So the recursion is on (run_id, block), and a segment's tiles are those under its own supervoxels' blocks alone. A
block that a run reused is a row of `blocks` with `reused` and `made_by` = the run that computed it; its inputs are
recorded under `made_by`, and what reads it names `made_by` as `input_run_id`.
"""

from lake import schemas_data as data
from lake import schemas_ops as ops
from lake.columns import Column, TableSpec
from lake.errors import TableNotFound, nearest

__all__ = ["TABLES", "Column", "TableSpec", "table_spec"]

_ALL = (
    data.TILES,
    data.TILE_MATCHES,
    data.SECTIONS,
    data.MONTAGES,
    data.TILE_POSITIONS,
    data.SECTION_MATCHES,
    data.TILE_PLACEMENTS,
    data.SUPERVOXELS,
    data.EDGES,
    data.AGGLOMERATION,
    data.SEGMENTS,
    data.SYNAPSES,
    data.CONNECTIONS,
    data.SKELETON_NODES,
    data.MESHES,
    data.GROUND_TRUTH_SYNAPSES,
    data.QC_METRICS,
    data.QC_RESULTS,
    ops.RUNS,
    ops.BLOCKS,
    ops.BLOCK_INPUTS,
    ops.OPERATIONS,
    ops.RELEASES,
    ops.DECISIONS,
    ops.WAIVERS,
    ops.QUARANTINES,
    ops.INCIDENTS,
    ops.SLO_STATUS,
    ops.COSTS,
    ops.SCRUBS,
    ops.SCRUB_FAULTS,
    ops.SCRUB_DIGESTS,
)
TABLES: dict[str, TableSpec] = {spec.name: spec for spec in _ALL}


def table_spec(name: str) -> TableSpec:
    """Give the declaration of table `name`, or raise `TableNotFound` with the nearest name."""
    try:
        return TABLES[name]
    except KeyError:
        raise TableNotFound(f"there is no table {name!r}", fix=nearest(name, TABLES)) from None
