-- name:     v_synapses_valid
-- kind:     view
-- purpose:  The synapses to count: valid, bound on both sides, no autapse, outside quarantined regions.
-- reads:    main.synapses, main.v_quarantined
-- grain:    one row per synapse
-- columns:  id BIGINT, region VARCHAR, block VARCHAR,
--           pre_pt_position_x DOUBLE, pre_pt_position_y DOUBLE, pre_pt_position_z DOUBLE,
--           pre_pt_supervoxel_id BIGINT, pre_pt_root_id BIGINT,
--           post_pt_position_x DOUBLE, post_pt_position_y DOUBLE, post_pt_position_z DOUBLE,
--           post_pt_supervoxel_id BIGINT, post_pt_root_id BIGINT,
--           ctr_pt_position_x DOUBLE, ctr_pt_position_y DOUBLE, ctr_pt_position_z DOUBLE,
--           size DOUBLE, score DOUBLE, run_id VARCHAR
-- units:    positions in nm, size in voxels, score 0..1
-- owner:    lake
SELECT * EXCLUDE (valid)
FROM main.synapses
WHERE valid
  AND pre_pt_root_id <> 0
  AND post_pt_root_id <> 0
  AND pre_pt_root_id <> post_pt_root_id
  AND region NOT IN (SELECT region FROM main.v_quarantined)
