-- name:     v_segment_blocks
-- kind:     view
-- purpose:  Which blocks made the supervoxels of a segment: where its lineage begins.
-- reads:    main.agglomeration, main.supervoxels
-- grain:    one row per root and block
-- columns:  root_id BIGINT, run_id VARCHAR, block VARCHAR, region VARCHAR, supervoxels BIGINT, voxels BIGINT
-- units:    voxels at full resolution
-- owner:    lake
SELECT
    a.root_id,
    s.run_id,
    s.block,
    s.region,
    count(*) AS supervoxels,
    sum(s.voxels)::BIGINT AS voxels
FROM main.agglomeration AS a
JOIN main.supervoxels AS s USING (supervoxel_id)
GROUP BY ALL
