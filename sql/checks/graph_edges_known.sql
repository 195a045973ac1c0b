-- name:     graph_edges_known
-- kind:     check
-- purpose:  Edges with an end that is no supervoxel, or whose lower id is not the first.
-- reads:    main.edges, main.supervoxels
-- grain:    one row per edge at fault
-- columns:  a BIGINT, b BIGINT
-- units:    none
-- owner:    qc
SELECT e.a, e.b
FROM main.edges AS e
LEFT JOIN main.supervoxels AS p ON p.supervoxel_id = e.a
LEFT JOIN main.supervoxels AS q ON q.supervoxel_id = e.b
WHERE p.supervoxel_id IS NULL OR q.supervoxel_id IS NULL OR e.a >= e.b
