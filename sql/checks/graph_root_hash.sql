-- name:     graph_root_hash
-- kind:     check
-- purpose:  Roots whose id is not the sum of their supervoxels' voxel hashes modulo 2^63 (0 becomes 1).
-- reads:    main.supervoxels, main.agglomeration
-- grain:    one row per root at fault
-- columns:  root_id BIGINT, expected HUGEINT
-- units:    none
-- owner:    qc
WITH sums AS (
    SELECT a.root_id, sum(s.voxel_hash::HUGEINT) % 9223372036854775808::HUGEINT AS total
    FROM main.agglomeration AS a
    JOIN main.supervoxels AS s USING (supervoxel_id)
    GROUP BY a.root_id
)
SELECT root_id, CASE WHEN total = 0 THEN 1::HUGEINT ELSE total::HUGEINT END AS expected
FROM sums
WHERE root_id::HUGEINT <> CASE WHEN total = 0 THEN 1::HUGEINT ELSE total::HUGEINT END
