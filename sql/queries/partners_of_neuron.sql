-- name:     partners_of_neuron
-- kind:     query
-- purpose:  Which neurons does this one receive from and give to, and by how many synapses?
-- reads:    main.v_synapses_valid
-- grain:    one row per direction and partner
-- columns:  direction VARCHAR, partner_root_id BIGINT, synapses BIGINT, size DOUBLE, mean_score DOUBLE
-- parameters: $root_id BIGINT
-- units:    size in voxels, score 0..1
-- owner:    lake
WITH sides AS (
    SELECT 'output' AS direction, post_pt_root_id AS partner_root_id, size, score
    FROM main.v_synapses_valid
    WHERE pre_pt_root_id = $root_id
    UNION ALL
    SELECT 'input' AS direction, pre_pt_root_id AS partner_root_id, size, score
    FROM main.v_synapses_valid
    WHERE post_pt_root_id = $root_id
)
SELECT direction, partner_root_id, count(*) AS synapses, sum(size) AS size, avg(score) AS mean_score
FROM sides
GROUP BY ALL
ORDER BY direction, synapses DESC, partner_root_id
