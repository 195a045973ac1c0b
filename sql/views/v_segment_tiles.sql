-- name:     v_segment_tiles
-- kind:     view
-- purpose:  The raw tiles that each segment was made from, through the real overlaps of blocks.
-- reads:    main.v_segment_blocks, main.v_block_lineage, ops.block_inputs, archive.tiles
-- grain:    one row per root and tile
-- columns:  root_id BIGINT, acquisition VARCHAR, section BIGINT, tile VARCHAR, path VARCHAR, sha256 VARCHAR
-- units:    none
-- owner:    lake
SELECT DISTINCT s.root_id, t.acquisition, t.section, t.tile, t.path, t.sha256
FROM main.v_segment_blocks AS s
JOIN main.v_block_lineage AS l USING (run_id, block)
JOIN ops.block_inputs AS i ON i.run_id = l.source_run_id AND i.block = l.source_block AND i.kind = 'tile'
JOIN archive.tiles AS t ON t.path = i.input_id
