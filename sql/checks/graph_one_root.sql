-- name:     graph_one_root
-- kind:     check
-- purpose:  Supervoxels that do not belong to exactly one root.
-- reads:    main.supervoxels, main.agglomeration
-- grain:    one row per supervoxel at fault
-- columns:  supervoxel_id BIGINT, roots BIGINT
-- units:    none
-- owner:    qc
SELECT s.supervoxel_id, count(a.root_id) AS roots
FROM main.supervoxels AS s
LEFT JOIN main.agglomeration AS a USING (supervoxel_id)
GROUP BY s.supervoxel_id
HAVING count(a.root_id) <> 1
