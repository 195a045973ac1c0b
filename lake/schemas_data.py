"""Tables of data branches and of `archive`; see `lake.schemas` for the conventions."""

from lake.columns import BLOCK, REGION, RUN_ID, TableSpec, bounds, flag, integer, moment, position, real, text

TILES = TableSpec(
    "tiles",
    "One row per acquired tile file; the bytes are at `path` on the archive and are never rewritten.",
    "archive",
    (
        text("acquisition", "acquisition the tile belongs to"),
        integer("section", "section number, increasing in z"),
        text("tile", "tile position within its section; the same for a tile that was acquired again"),
        text("path", "object key, `raw/<acquisition>/<section>/<file>`; identifies the row; lineage names tiles by it"),
        text("sha256", "digest of the file's bytes, 64 hexadecimal digits"),
        integer("bytes", "file size"),
        integer("shape_y", "image height, px; NULL if it does not decode", null=True),
        integer("shape_x", "image width, px; NULL if it does not decode", null=True),
        text("dtype", "pixel type; NULL if it does not decode", null=True),
        real("stage_x_nm", "stage position of the upper left pixel"),
        real("stage_y_nm", "stage position of the upper left pixel"),
        real("pixel_nm", "pixel size in the plane"),
        real("focus", "variance of the Laplacian over the section median; NULL if not measured", null=True),
        real("contrast", "99th minus 1st percentile of intensity; NULL if not measured", null=True),
        real("saturation", "share of clipped pixels, 0..1; NULL if not measured", null=True),
        text("status", "ok | quarantined"),
        text("reason", "why it is quarantined", null=True),
        text("metadata", "instrument metadata as canonical JSON", null=True),
        moment("acquired", "time of acquisition, where the instrument tells it", null=True),
        moment("ingested", "time of ingest"),
        text("source", "where it was ingested from", null=True, volatile=True),
        RUN_ID,
    ),
    ("acquisition", "section", "tile", "path"),
)

TILE_MATCHES = TableSpec(
    "tile_matches",
    "One row per seam: two overlapping tiles of one section.",
    "data",
    (
        integer("section", "section number"),
        text("a", "path of the first tile"),
        text("b", "path of the second tile"),
        real("dx", "measured offset of b against a, px"),
        real("dy", "measured offset of b against a, px"),
        real("ncc", "normalised cross-correlation at that offset, -1..1"),
        flag("kept", "whether the solve used it"),
        real("residual_px", "distance left after the solve; NULL if not kept", null=True),
        RUN_ID,
    ),
    ("section", "a", "b"),
)

SECTIONS = TableSpec(
    "sections",
    "One row per section of the aligned volume.",
    "data",
    (
        integer("section", "section number"),
        integer("z", "z index in volumes/em, global voxels"),
        text("transform", "section to volume, canonical JSON; 2x3 affine row-major `a b c d e f`, px"),
        real("residual_px", "95th percentile of seam residuals after the solve; NULL with a single tile", null=True),
        real("coverage", "share of the section's area that tiles cover, 0..1"),
        integer("holes", "connected uncovered areas", null=True),
        real("ncc", "median correlation with the previous section; NULL for the first", null=True),
        real("alignment_residual_px", "median match residual against the previous section", null=True),
        integer("folds", "grid cells with a non-positive Jacobian", null=True),
        real("flow_confidence", "share of grid points whose match was accepted, 0..1", null=True),
        text("status", "ok | held"),
        text("reason", "why it is held", null=True),
        RUN_ID,
    ),
    ("section",),
)

MONTAGES = TableSpec(
    "montages",
    "One row per section that was stitched; an intermediate result, for alignment.",
    "data",
    (
        integer("section", "section number"),
        integer("z", "z index in volumes/montage and volumes/em, global voxels"),
        integer("tiles", "accepted tiles"),
        real("origin_y_px", "stage frame position of the montage's first pixel"),
        real("origin_x_px", "stage frame position of the montage's first pixel"),
        real("residual_px", "95th percentile of seam residuals after the solve; NULL without seams", null=True),
        flag("connected", "whether kept seams join all tiles"),
        real("coverage", "share of the section's area that tiles cover, 0..1"),
        integer("holes", "connected uncovered areas"),
        real("level_low", "dark grey level of the section, 0..255"),
        real("level_high", "bright grey level of the section, 0..255"),
        real("mean", "mean grey level of what was seen"),
        real("std", "standard deviation of what was seen"),
        RUN_ID,
    ),
    ("section",),
)

TILE_POSITIONS = TableSpec(
    "tile_positions",
    "One row per stitched tile: its place in the stage frame, and its light; an intermediate result.",
    "data",
    (
        integer("section", "section number"),
        integer("z", "z index in volumes/em, global voxels"),
        text("path", "path of the tile"),
        real("y_px", "stage frame position of the tile's first pixel"),
        real("x_px", "stage frame position of the tile's first pixel"),
        integer("height_px", "image height"),
        integer("width_px", "image width"),
        real("gain", "brightness against the section's"),
        real("light_y", "vignetting: log brightness falls by light_y * y^2, y from -1 to 1 over the tile"),
        real("light_x", "vignetting along x"),
        RUN_ID,
    ),
    ("section", "path"),
)

SECTION_MATCHES = TableSpec(
    "section_matches",
    "One row per window of a section that was looked for in another; an intermediate result.",
    "data",
    (
        integer("z", "first section, z index"),
        integer("other_z", "second section, z index"),
        integer("number", "number of the window within its pair"),
        real("y_px", "centre of the window in the first section's stage frame"),
        real("x_px", "centre of the window in the first section's stage frame"),
        real("found_y_px", "where the same tissue lies in the second section's stage frame"),
        real("found_x_px", "where the same tissue lies in the second section's stage frame"),
        real("ncc", "normalised cross-correlation, -1..1"),
        flag("kept", "whether the solve uses it"),
        RUN_ID,
    ),
    ("z", "other_z", "number"),
)

TILE_PLACEMENTS = TableSpec(
    "tile_placements",
    "One row per aligned tile: what drawing it needs, and the voxels of volumes/em that it can reach.",
    "data",
    (
        integer("section", "section number"),
        integer("z", "z index in volumes/em, global voxels"),
        text("path", "path of the tile"),
        real("y_px", "stage frame position of the tile's first pixel"),
        real("x_px", "stage frame position of the tile's first pixel"),
        real("gain", "brightness against the section's"),
        real("light_y", "vignetting along y, see tile_positions"),
        real("light_x", "vignetting along x"),
        integer("y0", "first voxel reached, volume frame"),
        integer("y1", "one past the last voxel reached, volume frame"),
        integer("x0", "first voxel reached, volume frame"),
        integer("x1", "one past the last voxel reached, volume frame"),
        RUN_ID,
    ),
    ("section", "path"),
)

SUPERVOXELS = TableSpec(
    "supervoxels",
    "One row per supervoxel; ids pack the block index, `lake.ids`.",
    "data",
    (
        integer("supervoxel_id", "packed block index and local number"),
        REGION,
        BLOCK,
        integer("voxels", "size at full resolution"),
        integer("voxel_hash", "sum of mix64 over its voxels modulo 2^63"),
        *position("centroid", "mean of its voxel centres"),
        *bounds("bounding box"),
        RUN_ID,
    ),
    ("supervoxel_id",),
    ("region",),
)

EDGES = TableSpec(
    "edges",
    "One row per pair of touching supervoxels; sums add up over blocks.",
    "data",
    (
        REGION,
        BLOCK,
        integer("a", "lower supervoxel id; the edge belongs to its region"),
        integer("b", "higher supervoxel id"),
        integer("sum_affinity", "sum of uint8 affinities over the touching voxel faces"),
        integer("count", "touching voxel faces"),
        real("contact_area", "area of those faces, nm^2"),
        RUN_ID,
    ),
    ("a", "b"),
    ("region",),
)

AGGLOMERATION = TableSpec(
    "agglomeration",
    "Which root each supervoxel belongs to; exactly one row per supervoxel.",
    "data",
    (
        integer("supervoxel_id", "supervoxel"),
        integer("root_id", "sum of the voxel hashes of the root's supervoxels modulo 2^63; 0 becomes 1"),
        RUN_ID,
    ),
    ("supervoxel_id",),
)

SEGMENTS = TableSpec(
    "segments",
    "One row per root.",
    "data",
    (
        integer("root_id", "root"),
        integer("voxels", "size at full resolution"),
        integer("supervoxels", "number of supervoxels"),
        *position("centroid", "mean of its voxel centres"),
        *bounds("bounding box"),
        integer("boundary_faces", "how many of the volume's six faces it touches, 0..6", null=True),
        real("completeness", "share of its expected extent that is present, 0..1; NULL if not judged", null=True),
        text("mesh", "key of the object that holds its mesh", null=True),
        text("skeleton", "key of the object that holds its skeleton", null=True),
        RUN_ID,
    ),
    ("root_id",),
)

SYNAPSES = TableSpec(
    "synapses",
    "One row per synaptic partner pair; column names follow the CAVE synapse annotation.",
    "data",
    (
        integer("id", "synapse, packed like a supervoxel id: region index and a local number"),
        REGION,
        BLOCK,
        *position("pre_pt_position", "presynaptic point"),
        integer("pre_pt_supervoxel_id", "supervoxel at that point; 0 = none"),
        integer("pre_pt_root_id", "root at that point; 0 = none"),
        *position("post_pt_position", "postsynaptic point"),
        integer("post_pt_supervoxel_id", "supervoxel at that point; 0 = none"),
        integer("post_pt_root_id", "root at that point; 0 = none"),
        *position("ctr_pt_position", "centre of the cleft; decides the region"),
        real("size", "voxels of the detected cleft"),
        real("score", "mean probability over the cleft, 0..1"),
        flag("valid", "both ends bound and the two roots differ"),
        RUN_ID,
    ),
    ("id",),
    ("region",),
)

CONNECTIONS = TableSpec(
    "connections",
    "One row per ordered pair of connected roots, over valid synapses.",
    "data",
    (
        integer("pre_root_id", "presynaptic root"),
        integer("post_root_id", "postsynaptic root"),
        integer("synapses", "number of synapses"),
        real("size", "sum of their sizes"),
        RUN_ID,
    ),
    ("pre_root_id", "post_root_id"),
)

SKELETON_NODES = TableSpec(
    "skeleton_nodes",
    "One row per skeleton node (SWC: node, parent, radius).",
    "data",
    (
        integer("root_id", "root"),
        integer("node", "node number within its root, from 0"),
        integer("parent", "node it hangs on; -1 at the skeleton's root"),
        *position("position", "node"),
        real("radius", "distance to the nearest membrane, nm", null=True),
        RUN_ID,
    ),
    ("root_id", "node"),
)

MESHES = TableSpec(
    "meshes",
    "One row per mesh that was made; it is named by its root and so never stale.",
    "data",
    (
        integer("root_id", "root"),
        text("path", "object that holds it"),
        integer("lod", "levels of detail"),
        integer("vertices", "vertices at full detail"),
        integer("faces", "triangles at full detail"),
        integer("bytes", "encoded size"),
        RUN_ID,
    ),
    ("root_id",),
)

GROUND_TRUTH_SYNAPSES = TableSpec(
    "ground_truth_synapses",
    "Synapses known from the truth; QC compares `synapses` with them.",
    "data",
    (
        integer("id", "synapse"),
        *position("pre_pt_position", "presynaptic point"),
        *position("post_pt_position", "postsynaptic point"),
        *position("ctr_pt_position", "centre of the cleft"),
        integer("pre_gt_id", "presynaptic body in volumes/ground_truth"),
        integer("post_gt_id", "postsynaptic body in volumes/ground_truth"),
    ),
    ("id",),
)

QC_METRICS = TableSpec(
    "qc_metrics",
    "One row per measured value; replaced whole by each QC run.",
    "data",
    (
        text("metric", "name as in the list of metrics, e.g. `vi_split`"),
        text("scope", "global | region | section | tile"),
        text("scope_id", "region name, section number or tile path; empty for global"),
        *bounds("what was measured", null=True),
        real("value", "the value; NULL if unknown", null=True),
        text("unit", "unit of the value, `1` for a ratio"),
        text("definition", "how it is computed, in one sentence"),
        text("status", "ok | unknown; unknown blocks a release"),
        text("reason", "why it is unknown", null=True),
        text("data_commit", "commit D that was measured", volatile=True),
        RUN_ID,
    ),
    ("metric", "scope", "scope_id"),
)

QC_RESULTS = TableSpec(
    "qc_results",
    "One row per expectation that was checked; replaced whole by each QC run.",
    "data",
    (
        text("suite", "suite of expectations"),
        text("expectation", "name of the expectation within its suite"),
        text("scope", "global | region | section | tile"),
        text("scope_id", "region name, section number or tile path; empty for global"),
        text("table_name", "table or view that was checked"),
        text("observed", "observed value as canonical JSON", null=True),
        text("expected", "limits as canonical JSON", null=True),
        flag("passed", "outcome; NULL if it could not be checked", null=True),
        text("severity", "critical | warning | info"),
        text("reason", "why it could not be checked, or what failed", null=True),
        text("data_commit", "commit D that was checked", volatile=True),
        RUN_ID,
    ),
    ("suite", "expectation", "scope", "scope_id"),
)
