-- name:     graph_segments_match
-- kind:     check
-- purpose:  Roots that are no segment, segments that are no root, and segments with another size than their parts.
-- reads:    main.segments, main.agglomeration, main.supervoxels
-- grain:    one row per root at fault
-- columns:  root_id BIGINT, voxels BIGINT, expected HUGEINT
-- units:    voxels
-- owner:    qc
WITH parts AS (
    SELECT a.root_id, sum(s.voxels) AS voxels, count(*) AS supervoxels
    FROM main.agglomeration AS a
    JOIN main.supervoxels AS s USING (supervoxel_id)
    GROUP BY a.root_id
)
SELECT coalesce(g.root_id, p.root_id) AS root_id, g.voxels, p.voxels AS expected
FROM main.segments AS g
FULL JOIN parts AS p ON p.root_id = g.root_id
WHERE g.voxels IS DISTINCT FROM p.voxels OR g.supervoxels IS DISTINCT FROM p.supervoxels
