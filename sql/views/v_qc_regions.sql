-- name:     v_qc_regions
-- kind:     view
-- purpose:  Each regional QC value beside the same metric's value over the whole volume.
-- reads:    main.qc_metrics
-- grain:    one row per metric and region
-- columns:  metric VARCHAR, region VARCHAR, value DOUBLE, unit VARCHAR, status VARCHAR, reason VARCHAR,
--           global_value DOUBLE, median_value DOUBLE, min_x DOUBLE, min_y DOUBLE, min_z DOUBLE,
--           max_x DOUBLE, max_y DOUBLE, max_z DOUBLE
-- units:    value in `unit`; box in nm
-- owner:    qc
SELECT
    r.metric,
    r.scope_id AS region,
    r.value,
    r.unit,
    r.status,
    r.reason,
    g.value AS global_value,
    median(r.value) OVER (PARTITION BY r.metric) AS median_value,
    r.min_x, r.min_y, r.min_z, r.max_x, r.max_y, r.max_z
FROM main.qc_metrics AS r
LEFT JOIN main.qc_metrics AS g ON g.metric = r.metric AND g.scope = 'global'
WHERE r.scope = 'region'
