-- name:     tiles_of_segment
-- kind:     query
-- purpose:  Which raw tiles was this segment made from?
-- reads:    main.agglomeration, main.supervoxels, ops.block_inputs, archive.tiles
-- grain:    one row per tile
-- columns:  acquisition VARCHAR, section BIGINT, tile VARCHAR, path VARCHAR, sha256 VARCHAR
-- parameters: $root_id BIGINT
-- units:    none
-- owner:    lake
WITH RECURSIVE made (run_id, block) AS (
    SELECT DISTINCT s.run_id, s.block
    FROM main.agglomeration AS a
    JOIN main.supervoxels AS s USING (supervoxel_id)
    WHERE a.root_id = $root_id
    UNION
    SELECT i.input_run_id, i.input_id
    FROM made AS m
    JOIN ops.block_inputs AS i ON i.run_id = m.run_id AND i.block = m.block AND i.kind = 'block'
)
SELECT DISTINCT t.acquisition, t.section, t.tile, t.path, t.sha256
FROM made AS m
JOIN ops.block_inputs AS i ON i.run_id = m.run_id AND i.block = m.block AND i.kind = 'tile'
JOIN archive.tiles AS t ON t.path = i.input_id
ORDER BY t.acquisition, t.section, t.tile, t.path
