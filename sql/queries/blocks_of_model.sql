-- name:     blocks_of_model
-- kind:     query
-- purpose:  Which blocks did this model compute, and which blocks were made from those?
-- reads:    ops.blocks, ops.block_inputs
-- grain:    one row per block
-- columns:  distance BIGINT, run_id VARCHAR, stage VARCHAR, block VARCHAR, region VARCHAR, min_x DOUBLE, min_y DOUBLE,
--           min_z DOUBLE, max_x DOUBLE, max_y DOUBLE, max_z DOUBLE
-- parameters: $model_digest VARCHAR
-- units:    model_digest whole, or its first digits (seven at least); distance in steps from the model (0:
--           computed by it); box in nm
-- owner:    lake
WITH RECURSIVE touched (run_id, block, distance) AS (
    SELECT DISTINCT made_by, block, 0::BIGINT
    FROM ops.blocks
    WHERE starts_with(model_digest, $model_digest) AND length($model_digest) >= 7
    UNION
    SELECT i.run_id, i.block, t.distance + 1
    FROM touched AS t
    JOIN ops.block_inputs AS i ON i.input_run_id = t.run_id AND i.input_id = t.block AND i.kind = 'block'
),
nearest AS (
    SELECT run_id, block, min(distance) AS distance
    FROM touched
    GROUP BY ALL
)
SELECT DISTINCT n.distance, b.run_id, b.stage, b.block, b.region, b.min_x, b.min_y, b.min_z, b.max_x, b.max_y, b.max_z
FROM nearest AS n
JOIN ops.blocks AS b ON b.run_id = n.run_id AND b.block = n.block
ORDER BY n.distance, b.run_id, b.stage, b.block
