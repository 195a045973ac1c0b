-- name:     changes_between_releases
-- kind:     query
-- purpose:  What changed from the snapshot attached as `old` to this one?
-- reads:    main.segments, main.synapses, old.segments, old.synapses
-- grain:    one row per kind of change; a synapse is the same one where all three of its points are
-- columns:  change VARCHAR, count BIGINT, voxels BIGINT
-- units:    voxels of the segments concerned, at full resolution; NULL for synapses
-- owner:    releases
WITH roots AS (
    SELECT
        CASE WHEN o.root_id IS NULL THEN 'roots created' WHEN n.root_id IS NULL THEN 'roots retired' ELSE 'roots kept' END AS change,
        coalesce(n.voxels, o.voxels) AS voxels
    FROM main.segments AS n
    FULL JOIN old.segments AS o ON o.root_id = n.root_id
),
synapses AS (
    SELECT
        CASE
            WHEN o.id IS NULL THEN 'synapses added'
            WHEN n.id IS NULL THEN 'synapses removed'
            WHEN (o.pre_pt_root_id, o.post_pt_root_id) = (n.pre_pt_root_id, n.post_pt_root_id) THEN 'synapses kept'
            ELSE 'synapses re-bound'
        END AS change
    FROM main.synapses AS n
    FULL JOIN old.synapses AS o
      ON (o.pre_pt_position_x, o.pre_pt_position_y, o.pre_pt_position_z)
       = (n.pre_pt_position_x, n.pre_pt_position_y, n.pre_pt_position_z)
     AND (o.post_pt_position_x, o.post_pt_position_y, o.post_pt_position_z)
       = (n.post_pt_position_x, n.post_pt_position_y, n.post_pt_position_z)
     AND (o.ctr_pt_position_x, o.ctr_pt_position_y, o.ctr_pt_position_z)
       = (n.ctr_pt_position_x, n.ctr_pt_position_y, n.ctr_pt_position_z)
)
SELECT change, count(*) AS count, sum(voxels)::BIGINT AS voxels FROM roots GROUP BY change
UNION ALL
SELECT change, count(*) AS count, NULL::BIGINT AS voxels FROM synapses GROUP BY change
ORDER BY change
