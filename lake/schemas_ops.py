"""Tables of `ops`, the append-only record of what people and machines did; see `lake.schemas`."""

from lake.columns import RUN_ID, TableSpec, bounds, flag, integer, many, moment, position, real, text

_WHO = text("user", "who did it", volatile=True)
_WHEN = moment("ts", "when")

RUNS = TableSpec(
    "runs",
    "One row per run and stage, and per ingest (a block is then a tile or a piece), written after its commit.",
    "ops",
    (
        RUN_ID,
        text("pipeline", "name of the pipeline"),
        text("stage", "name of the stage"),
        integer("version", "version of the stage"),
        text("params_id", "`<stage>/<name>/<version>`"),
        text("params_digest", "sha256 of the parameters' canonical JSON"),
        text("model_digest", "model that was used; NULL for stages without one", null=True),
        text("code_commit", "version control commit of the code, or its distribution version", volatile=True),
        text("runtime", "library versions, device, dtype, threads: canonical JSON"),
        text("branch", "branch that was written", volatile=True),
        text("input_commit", "commit the run read", volatile=True),
        text("archive_commit", "archive commit the run read", null=True, volatile=True),
        text("output_commit", "commit the run made; NULL if it made none", null=True, volatile=True),
        text(
            "merkle_root", "over (fingerprint, block, output digest) of the stage's blocks; NULL if failed", null=True
        ),
        text("state", "complete | failed | interrupted"),
        text("reason", "why it is not complete", null=True, volatile=True),
        moment("started", "start"),
        moment("finished", "end", null=True),
        integer("blocks", "blocks planned"),
        integer("computed", "blocks computed", volatile=True),
        integer("reused", "blocks taken over from earlier runs, by fingerprint", volatile=True),
        real("wall_s", "duration", volatile=True),
        real("cpu_s", "CPU seconds over all workers", volatile=True),
        integer("bytes", "bytes written", volatile=True),
        real("cost", "by the policy's price model, in its currency", volatile=True),
        integer("accepted_voxels", "voxels of the blocks that count"),
        real("wasted_cpu_s", "CPU seconds of failed attempts", volatile=True),
    ),
    ("run_id", "stage"),
)

BLOCKS = TableSpec(
    "blocks",
    "One row per block and output of a run: what it was made from, as one fingerprint, and what it gave.",
    "ops",
    (
        RUN_ID,
        text("stage", "name of the stage"),
        text("block", "`<stage>/<z_y_x>`; unique within a run together with `output`"),
        text("region", "region the block lies in; NULL for a stage over the whole volume or graph", null=True),
        text("box", "`z0:z1,y0:y1,x0:x1`, voxels at the stage's resolution, without halo"),
        *bounds("the block without halo", null=True),
        text("output", "volume or table written"),
        text("output_digest", "digest of that output"),
        text("fingerprint", "sha256 over everything the block depends on"),
        text("params_digest", "sha256 of the parameters"),
        text("model_digest", "model that was used", null=True),
        text(
            "changed", "which part of the fingerprint differs from the block's last run; NULL if it is new", null=True
        ),
        flag("reused", "taken over from `made_by` and not computed", volatile=True),
        text("made_by", "run that computed it: this one, or an earlier one if reused", volatile=True),
        integer("attempts", "attempts until it succeeded", volatile=True),
        text("exit_class", "ok | transient | fatal | poison", volatile=True),
        real("seconds", "duration of the last attempt", volatile=True),
        real("cpu_s", "CPU seconds of all attempts", volatile=True),
        integer("bytes", "bytes written", volatile=True),
        moment("finished", "when it was done"),
    ),
    ("run_id", "block", "output"),
)

BLOCK_INPUTS = TableSpec(
    "block_inputs",
    "One row per input of a block: only what overlaps the block and its halo.",
    "ops",
    (
        RUN_ID,
        text("block", "`<stage>/<z_y_x>`"),
        text("kind", "block | tile | table | run | source"),
        text("input_id", "block id; tile path; table name; run id; key or address of what was imported"),
        text("digest", "output digest; sha256; content digest; Merkle root; digest of what was imported"),
        text("input_run_id", "for a block: the run that computed it; else NULL", null=True, volatile=True),
    ),
    ("run_id", "block", "kind", "input_id"),
)

OPERATIONS = TableSpec(
    "operations",
    "One row per proofreading edit; survives every rollback.",
    "ops",
    (
        integer("operation_id", "increasing number"),
        _WHEN,
        _WHO,
        text("kind", "merge | split | undo"),
        text("release", "release it was made on", null=True),
        many("source_supervoxels", "int64", "one side"),
        many("sink_supervoxels", "int64", "other side"),
        *position("source_pt", "point on one side", null=True),
        *position("sink_pt", "point on the other side", null=True),
        many("before_roots", "int64", "roots it replaced"),
        many("after_roots", "int64", "roots it made"),
        integer("undo_of", "operation that it undoes", null=True),
        text("status", "applied | pending | rejected"),
        text("reason", "why it is rejected", null=True),
    ),
    ("operation_id",),
)

RELEASES = TableSpec(
    "releases",
    "One row per publication; what became of it since is in `decisions` (view v_release_history).",
    "ops",
    (
        text("release", "name, and tag"),
        text("commit", "merge commit on main", volatile=True),
        text("qc_commit", "judged commit Q", volatile=True),
        text("data_commit", "measured commit D", volatile=True),
        text("archive_commit", "archive commit", null=True, volatile=True),
        text("ops_commit", "ops commit that its manifest names", null=True, volatile=True),
        text("manifest_digest", "identifies the release", volatile=True),
        text("parent", "release that main held before", null=True),
        text("verdict", "pass | waived"),
        many("run_ids", "string", "runs whose folders its tree holds", volatile=True),
        many("model_digests", "string", "models of those runs"),
        integer("operations", "operation high-water mark"),
        _WHEN,
        _WHO,
    ),
    ("release",),
)

DECISIONS = TableSpec(
    "decisions",
    "One row per decision on a release or candidate.",
    "ops",
    (
        text("decision_id", "identifies it", volatile=True),
        text("kind", "publish | rollback | patch | constrain | quarantine | lift | waive | keep"),
        text("release", "release or candidate it is about"),
        text("target", "release that main holds afterwards, for a rollback", null=True),
        text("commit", "commit that it made", null=True, volatile=True),
        text("criteria", "which criteria were applied, canonical JSON"),
        text("reason", "why"),
        text("incident", "incident it belongs to", null=True),
        _WHEN,
        _WHO,
    ),
    ("ts", "decision_id"),
)

WAIVERS = TableSpec(
    "waivers",
    "One row per gate that may fail for a stated reason until a stated day.",
    "ops",
    (
        text("waiver_id", "identifies it", volatile=True),
        text("release", "candidate it holds for"),
        text("gate", "gate it waives"),
        text("scope", "global | region | section | tile"),
        text("scope_id", "region name, section number or tile path; empty for global"),
        text("owner", "who answers for it"),
        text("reason", "why"),
        moment("expires", "until when"),
        _WHEN,
    ),
    ("release", "gate", "scope", "scope_id", "waiver_id"),
)

QUARANTINES = TableSpec(
    "quarantines",
    "One row per region put in quarantine on a release, or taken out again; the newest row of a region holds.",
    "ops",
    (
        text("release", "release it holds for"),
        text("region", "region name"),
        *bounds("the region"),
        text("state", "quarantined | lifted"),
        text("reason", "why"),
        text("incident", "incident it belongs to", null=True),
        _WHEN,
        _WHO,
    ),
    ("release", "region", "ts"),
)

INCIDENTS = TableSpec(
    "incidents",
    "One row per step of an incident, from symptom to the check that would have caught it.",
    "ops",
    (
        text("incident", "name"),
        integer("step", "number of the step, from 1"),
        text("kind", "symptom | scope | impact | options | decision | action | verification | postmortem | check"),
        text("title", "one line"),
        text("body", "details, canonical JSON"),
        text("release", "release concerned", null=True),
        text("region", "region concerned", null=True),
        text("owner", "who answers for it"),
        moment("due", "until when, for what is still to be done", null=True),
        _WHEN,
    ),
    ("incident", "step"),
)

SLO_STATUS = TableSpec(
    "slo_status",
    "One row per evaluation of a service level objective.",
    "ops",
    (
        text("slo", "name"),
        text("indicator", "what is measured"),
        real("value", "measured value; NULL if unknown", null=True),
        real("target", "target"),
        text("unit", "unit of value and target"),
        real("window_s", "length of the window"),
        real("budget_left", "share of the error budget that is left", null=True),
        real("burn_rate", "1 = the budget lasts exactly the window", null=True),
        text("status", "met | missed | unknown"),
        text("reason", "why it is missed or unknown", null=True),
        _WHEN,
    ),
    ("slo", "ts"),
)

COSTS = TableSpec(
    "costs",
    "One row per thing that was paid for.",
    "ops",
    (
        text("kind", "compute | storage | people"),
        RUN_ID,
        text("stage", "stage, for compute", null=True),
        text("release", "release it was spent on", null=True),
        real("quantity", "how much", volatile=True),
        text("unit", "s | byte-day | h"),
        real("cost", "price times quantity", volatile=True),
        text("currency", "of the price model"),
        flag("wasted", "failed, superseded or rolled back"),
        text("reason", "why it is wasted", null=True),
        _WHEN,
    ),
    ("ts", "kind", "run_id", "stage"),
    unique=False,
)

_PLACE = text("place", "which bytes: a copy of the repository is another place", volatile=True)

SCRUBS = TableSpec(
    "scrubs",
    "What was read back and compared, when. The newest rows of a place (by `ts`) cover all that is there, once: each "
    "tells of the contents in one rectangle of (slot, birth) when they were last checked; see lake.coverage. So a run "
    "adds a handful of rows, however many objects there are.",
    "ops",
    (
        text("scrub_id", "run of `emlake scrub`", volatile=True),
        _PLACE,
        text("kind", "object | manifest | commit | refs | repository | copy | table | volume"),
        text("low", "lowest slot, 16 hexadecimal digits: embedded, of the sha256; server, of the address's sha256"),
        text("high", "highest slot, inclusive"),
        integer("since", "lowest birth: number of the first commit that held it; server, its second"),
        integer("until", "births below this"),
        integer("objects", "how many there are"),
        integer("bytes", "bytes of them"),
        integer("faults", "damaged ones that this run found"),
        moment("checked", "when they were last read back, at the earliest; NULL if never", null=True),
        moment("ts", "when the row was written"),
    ),
    ("ts", "place", "kind", "since", "low"),
)

SCRUB_FAULTS = TableSpec(
    "scrub_faults",
    "One row per damaged thing that a scrub found, or found whole again, or whose loss somebody accepted; the newest "
    "row of a thing holds.",
    "ops",
    (
        text("scrub_id", "run of `emlake scrub`", volatile=True),
        _PLACE,
        text("state", "damaged | healed | accepted: damaged, and known to be lost for good"),
        text("kind", "object | copy | view | staged | manifest | commit | refs | repository | table | volume"),
        text("object", "digest, address, commit or file"),
        text("slot", "of a content, 16 hexadecimal digits", null=True),
        text("what", "what is wrong"),
        text("fix", "what to do"),
        many("keys", "string", "keys under which commits hold it, the first hundred"),
        integer("commits", "how many commits hold it"),
        text("first_commit", "the oldest of them", null=True, volatile=True),
        text("last_commit", "the newest of them", null=True, volatile=True),
        many("refs", "string", "branches and tags whose head holds it"),
        many("releases", "string", "releases that hold it"),
        many("tables", "string", "tables it belongs to"),
        _WHEN,
        text("user", "who accepted its loss", null=True, volatile=True),
        text("reason", "why it was accepted", null=True),
        moment("accepted", "when it was accepted", null=True),
    ),
    ("ts", "kind", "object", "what"),
    unique=False,
)

SCRUB_DIGESTS = TableSpec(
    "scrub_digests",
    "One row per object of a server whose checksum is no digest of its bytes: what they were when first read back.",
    "ops",
    (
        _PLACE,
        text("address", "where the server keeps it", volatile=True),
        integer("bytes", "its size"),
        text("checksum", "the server's checksum, an md5 of md5s"),
        text("sha256", "of the bytes"),
        _WHEN,
    ),
    ("address", "ts"),
    unique=False,
)
