-- name:     graph_synapses_bound
-- kind:     check
-- purpose:  Synapses with an end whose root is not the root of the supervoxel at that end.
-- reads:    main.synapses, main.agglomeration
-- grain:    one row per synapse at fault
-- columns:  id BIGINT
-- units:    none
-- owner:    qc
SELECT s.id
FROM main.synapses AS s
LEFT JOIN main.agglomeration AS p ON p.supervoxel_id = s.pre_pt_supervoxel_id
LEFT JOIN main.agglomeration AS q ON q.supervoxel_id = s.post_pt_supervoxel_id
WHERE coalesce(p.root_id, 0) <> s.pre_pt_root_id OR coalesce(q.root_id, 0) <> s.post_pt_root_id
