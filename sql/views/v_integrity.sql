-- name:     v_integrity
-- kind:     view
-- purpose:  Which share of all stored contents was read back and compared within the last days, and what is damaged
--           (accepted: damaged, and known to be lost for good).
-- reads:    ops.scrubs, ops.scrub_faults
-- grain:    one row per place and number of days
-- columns:  place VARCHAR, days INTEGER, objects BIGINT, bytes BIGINT, checked_objects BIGINT, checked_bytes BIGINT,
--           share DOUBLE, oldest TIMESTAMP WITH TIME ZONE, never_objects BIGINT, damaged BIGINT, accepted BIGINT,
--           last_scrub TIMESTAMP WITH TIME ZONE
-- units:    share: 1, of the bytes
-- owner:    lake
WITH newest AS (
    SELECT place, max(ts) AS ts
    FROM ops.scrubs
    GROUP BY place
),
state AS (
    SELECT s.*
    FROM ops.scrubs AS s
    JOIN newest USING (place, ts)
    WHERE s.kind = 'object'
),
faults AS (
    SELECT
        place,
        count(*) FILTER (WHERE state = 'damaged') AS damaged,
        count(*) FILTER (WHERE state = 'accepted') AS accepted
    FROM (
        SELECT place, state
        FROM ops.scrub_faults
        QUALIFY row_number() OVER (PARTITION BY place, kind, object ORDER BY ts DESC) = 1
    )
    GROUP BY place
),
spans AS (SELECT unnest([1, 7, 30, 90, 365])::INTEGER AS days)
SELECT
    s.place,
    d.days,
    sum(s.objects)::BIGINT AS objects,
    sum(s.bytes)::BIGINT AS bytes,
    coalesce(sum(s.objects) FILTER (WHERE s.checked >= now() - to_days(d.days)), 0)::BIGINT AS checked_objects,
    coalesce(sum(s.bytes) FILTER (WHERE s.checked >= now() - to_days(d.days)), 0)::BIGINT AS checked_bytes,
    CASE WHEN sum(s.bytes) = 0 THEN 1.0
         ELSE coalesce(sum(s.bytes) FILTER (WHERE s.checked >= now() - to_days(d.days)), 0) / sum(s.bytes) END::DOUBLE AS share,
    min(s.checked) FILTER (WHERE s.objects > 0) AS oldest,
    coalesce(sum(s.objects) FILTER (WHERE s.checked IS NULL), 0)::BIGINT AS never_objects,
    coalesce(max(f.damaged), 0)::BIGINT AS damaged,
    coalesce(max(f.accepted), 0)::BIGINT AS accepted,
    max(s.ts) AS last_scrub
FROM state AS s
CROSS JOIN spans AS d
LEFT JOIN faults AS f ON f.place = s.place
GROUP BY s.place, d.days
ORDER BY s.place, d.days
