-- name:     impact_of_model
-- kind:     query
-- purpose:  What in this snapshot was made with this model, region by region?
-- reads:    main.supervoxels, main.agglomeration, main.synapses, ops.blocks, ops.block_inputs
-- grain:    one row per region
-- columns:  region VARCHAR, blocks BIGINT, supervoxels BIGINT, segments BIGINT, synapses BIGINT
-- parameters: $model_digest VARCHAR
-- units:    model_digest whole, or its first digits (seven at least)
-- owner:    lake
WITH RECURSIVE touched (run_id, block) AS (
    SELECT DISTINCT made_by, block
    FROM ops.blocks
    WHERE starts_with(model_digest, $model_digest) AND length($model_digest) >= 7
    UNION
    SELECT i.run_id, i.block
    FROM touched AS t
    JOIN ops.block_inputs AS i ON i.input_run_id = t.run_id AND i.input_id = t.block AND i.kind = 'block'
),
volume AS (
    SELECT s.region, count(DISTINCT s.block) AS blocks, count(*) AS supervoxels, count(DISTINCT a.root_id) AS segments
    FROM main.supervoxels AS s
    JOIN touched AS t USING (run_id, block)
    LEFT JOIN main.agglomeration AS a USING (supervoxel_id)
    GROUP BY s.region
),
contacts AS (
    SELECT s.region, count(*) AS synapses
    FROM main.synapses AS s
    JOIN touched AS t USING (run_id, block)
    GROUP BY s.region
)
SELECT
    region,
    coalesce(v.blocks, 0) AS blocks,
    coalesce(v.supervoxels, 0) AS supervoxels,
    coalesce(v.segments, 0) AS segments,
    coalesce(c.synapses, 0) AS synapses
FROM volume AS v
FULL JOIN contacts AS c USING (region)
ORDER BY region
