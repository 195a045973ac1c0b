-- name:     v_orphans
-- kind:     view
-- purpose:  Segments that touch no face of the volume and have no valid synapse: pieces that belong to something.
-- reads:    main.segments, main.synapses, main.v_segment_regions
-- grain:    one row per root
-- columns:  root_id BIGINT, region VARCHAR, voxels BIGINT, supervoxels BIGINT,
--           centroid_x DOUBLE, centroid_y DOUBLE, centroid_z DOUBLE
-- units:    voxels at full resolution, positions in nm
-- owner:    qc
SELECT g.root_id, r.region, g.voxels, g.supervoxels, g.centroid_x, g.centroid_y, g.centroid_z
FROM main.segments AS g
JOIN main.v_segment_regions AS r ON r.root_id = g.root_id AND r.home
WHERE g.boundary_faces = 0
  AND NOT EXISTS (
      SELECT 1 FROM main.synapses AS s
      WHERE s.valid AND (s.pre_pt_root_id = g.root_id OR s.post_pt_root_id = g.root_id)
  )
