-- name:     releases_with_model
-- kind:     query
-- purpose:  Which releases carry this model, and are they still out?
-- reads:    main.v_release_history
-- grain:    one row per release
-- columns:  release VARCHAR, state VARCHAR, verdict VARCHAR, published TIMESTAMP WITH TIME ZONE, reason VARCHAR
-- parameters: $model_digest VARCHAR
-- units:    none
-- owner:    releases
SELECT release, state, verdict, published, reason
FROM main.v_release_history
WHERE list_contains(model_digests, $model_digest)
ORDER BY published, release
