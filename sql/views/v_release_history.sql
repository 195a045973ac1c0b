-- name:     v_release_history
-- kind:     view
-- purpose:  Every release, and what became of it.
-- reads:    ops.releases, ops.decisions
-- grain:    one row per release
-- columns:  release VARCHAR, state VARCHAR, verdict VARCHAR, parent VARCHAR, published TIMESTAMP WITH TIME ZONE,
--           decided TIMESTAMP WITH TIME ZONE, reason VARCHAR, commit_id VARCHAR, data_commit VARCHAR,
--           manifest_digest VARCHAR, model_digests VARCHAR[], published_by VARCHAR
-- units:    none
-- owner:    releases
WITH undone AS (
    SELECT release, ts, reason
    FROM ops.decisions
    WHERE kind = 'rollback'
    QUALIFY row_number() OVER (PARTITION BY release ORDER BY ts DESC) = 1
)
SELECT
    r.release,
    CASE WHEN u.release IS NULL THEN 'published' ELSE 'rolled back' END AS state,
    r.verdict,
    r.parent,
    r.ts AS published,
    u.ts AS decided,
    u.reason,
    r."commit" AS commit_id,
    r.data_commit,
    r.manifest_digest,
    r.model_digests,
    r."user" AS published_by
FROM ops.releases AS r
LEFT JOIN undone AS u USING (release)
