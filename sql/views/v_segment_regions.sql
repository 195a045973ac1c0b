-- name:     v_segment_regions
-- kind:     view
-- purpose:  How much of each segment lies in each region, and which region holds most of it (its home).
-- reads:    main.agglomeration, main.supervoxels
-- grain:    one row per root and region
-- columns:  root_id BIGINT, region VARCHAR, voxels BIGINT, home BOOLEAN
-- units:    voxels at full resolution
-- owner:    lake
WITH parts AS (
    SELECT a.root_id, s.region, sum(s.voxels)::BIGINT AS voxels
    FROM main.agglomeration AS a
    JOIN main.supervoxels AS s USING (supervoxel_id)
    GROUP BY ALL
)
SELECT root_id, region, voxels, row_number() OVER (PARTITION BY root_id ORDER BY voxels DESC, region) = 1 AS home
FROM parts
