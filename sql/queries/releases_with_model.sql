-- name:     releases_with_model
-- kind:     query
-- purpose:  Which releases carry this model, and are they still out?
-- reads:    main.v_release_history
-- grain:    one row per release
-- columns:  release VARCHAR, state VARCHAR, verdict VARCHAR, published TIMESTAMP WITH TIME ZONE, reason VARCHAR
-- parameters: $model_digest VARCHAR
-- units:    model_digest whole, or its first digits (seven at least)
-- owner:    releases
SELECT release, state, verdict, published, reason
FROM main.v_release_history
WHERE
    length($model_digest) >= 7
    AND len(list_filter(model_digests, lambda digest: starts_with(digest, $model_digest))) > 0
ORDER BY published, release
