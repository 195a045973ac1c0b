-- name:     v_quarantined
-- kind:     view
-- purpose:  Regions in quarantine for the release this snapshot shows: by its manifest, or put in since.
-- reads:    main.snapshot, main.manifest_quarantines, ops.quarantines
-- grain:    one row per region
-- columns:  region VARCHAR, reason VARCHAR, incident VARCHAR, source VARCHAR
-- units:    none
-- owner:    releases
WITH newest AS (
    SELECT q.region, q.reason, q.incident, q.state
    FROM ops.quarantines AS q
    JOIN main.snapshot AS s ON s.schema_name = 'main' AND s.release = q.release
    QUALIFY row_number() OVER (PARTITION BY q.region ORDER BY q.ts DESC, q.state) = 1
)
SELECT region, reason, incident, 'operations' AS source
FROM newest
WHERE state = 'quarantined'
UNION ALL
SELECT region, reason, incident, 'manifest' AS source
FROM main.manifest_quarantines
WHERE region NOT IN (SELECT region FROM newest)
