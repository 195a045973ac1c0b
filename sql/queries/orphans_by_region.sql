-- name:     orphans_by_region
-- kind:     query
-- purpose:  How many segments of each region are orphans above a size, and how much of it do they hold?
-- reads:    main.v_orphans, main.v_segment_regions
-- grain:    one row per region
-- columns:  region VARCHAR, segments BIGINT, orphans BIGINT, orphan_voxels BIGINT, orphan_share DOUBLE
-- parameters: $min_voxels BIGINT
-- units:    voxels at full resolution; share of the region's segmented voxels, 0..1
-- owner:    qc
WITH regions AS (
    SELECT region, count(*) FILTER (WHERE home) AS segments, sum(voxels) AS voxels
    FROM main.v_segment_regions
    GROUP BY region
),
found AS (
    SELECT region, count(*) AS orphans, sum(voxels) AS voxels
    FROM main.v_orphans
    WHERE voxels >= $min_voxels
    GROUP BY region
)
SELECT
    r.region,
    r.segments,
    coalesce(f.orphans, 0) AS orphans,
    coalesce(f.voxels, 0)::BIGINT AS orphan_voxels,
    coalesce(f.voxels, 0) / r.voxels AS orphan_share
FROM regions AS r
LEFT JOIN found AS f USING (region)
ORDER BY orphan_share DESC, r.region
