-- name:     graph_connections_add_up
-- kind:     check
-- purpose:  Connections whose synapse count is not that of the valid synapses between the two roots.
-- reads:    main.connections, main.synapses
-- grain:    one row per pair of roots at fault
-- columns:  pre_root_id BIGINT, post_root_id BIGINT, synapses BIGINT, expected BIGINT
-- units:    none
-- owner:    qc
WITH counted AS (
    SELECT pre_pt_root_id AS pre_root_id, post_pt_root_id AS post_root_id, count(*) AS synapses
    FROM main.synapses
    WHERE valid
    GROUP BY ALL
)
SELECT
    coalesce(c.pre_root_id, n.pre_root_id) AS pre_root_id,
    coalesce(c.post_root_id, n.post_root_id) AS post_root_id,
    c.synapses,
    n.synapses AS expected
FROM main.connections AS c
FULL JOIN counted AS n ON n.pre_root_id = c.pre_root_id AND n.post_root_id = c.post_root_id
WHERE c.synapses IS DISTINCT FROM n.synapses
