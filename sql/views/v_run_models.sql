-- name:     v_run_models
-- kind:     view
-- purpose:  Which models ran when, in which stage, and whether the run is part of this snapshot.
-- reads:    ops.runs, main.snapshot_runs
-- grain:    one row per run and stage that used a model
-- columns:  model_digest VARCHAR, stage VARCHAR, run_id VARCHAR, branch VARCHAR, output_commit VARCHAR,
--           params_id VARCHAR, started TIMESTAMP WITH TIME ZONE, blocks BIGINT, cpu_s DOUBLE, in_snapshot BOOLEAN
-- units:    cpu_s in seconds
-- owner:    lake
SELECT
    model_digest,
    stage,
    run_id,
    branch,
    output_commit,
    params_id,
    started,
    blocks,
    cpu_s,
    run_id IN (SELECT run_id FROM main.snapshot_runs) AS in_snapshot
FROM ops.runs
WHERE model_digest IS NOT NULL
