-- name:     regressions_by_region
-- kind:     query
-- purpose:  In which regions is a metric worse than in the snapshot attached as `old`, worst first?
-- reads:    main.qc_metrics, old.qc_metrics
-- grain:    one row per region
-- columns:  region VARCHAR, before DOUBLE, after DOUBLE, change DOUBLE, unit VARCHAR, min_x DOUBLE, min_y DOUBLE,
--           min_z DOUBLE, max_x DOUBLE, max_y DOUBLE, max_z DOUBLE
-- parameters: $metric VARCHAR
-- units:    values and change in `unit`; box in nm
-- owner:    qc
SELECT
    n.scope_id AS region,
    o.value AS before,
    n.value AS after,
    n.value - o.value AS change,
    n.unit,
    n.min_x, n.min_y, n.min_z, n.max_x, n.max_y, n.max_z
FROM main.qc_metrics AS n
JOIN old.qc_metrics AS o ON o.metric = n.metric AND o.scope = n.scope AND o.scope_id = n.scope_id
WHERE n.metric = $metric AND n.scope = 'region'
ORDER BY change DESC NULLS LAST, region
