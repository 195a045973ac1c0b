-- name:     v_block_lineage
-- kind:     view
-- purpose:  Every block with all blocks it was made from, directly or not, and itself.
-- reads:    ops.blocks, ops.block_inputs
-- grain:    one row per block and ancestor
-- columns:  run_id VARCHAR, block VARCHAR, source_run_id VARCHAR, source_block VARCHAR
-- units:    none
-- owner:    lake
WITH RECURSIVE closure (run_id, block, source_run_id, source_block) AS (
    SELECT DISTINCT made_by, block, made_by, block
    FROM ops.blocks
    UNION
    SELECT c.run_id, c.block, i.input_run_id, i.input_id
    FROM closure AS c
    JOIN ops.block_inputs AS i
      ON i.run_id = c.source_run_id AND i.block = c.source_block AND i.kind = 'block'
)
SELECT run_id, block, source_run_id, source_block
FROM closure
