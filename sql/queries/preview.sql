-- ReadFilters answers filters as subscriptions have them, and the time that is @over back from now.
-- name: ReadFilters :one
SELECT ARRAY(SELECT lower(given.value) FROM unnest(@sending_domain::text[]) AS given (value))::text[] AS sending_domain,
  ARRAY(SELECT host(given.value::inet) FROM unnest(@dedicated_ip::text[]) AS given (value))::text[] AS dedicated_ip,
  coalesce(mailhook.filter_of(@filter_conditions::jsonb)::text, '')::text AS filter,
  (statement_timestamp() - @over::interval)::timestamptz AS since;

-- BoundScans bounds the statements that follow in the transaction, in milliseconds, and has them read by index: each slice is
-- a few rows, which the planner does not know of a table that it has no statistics of.
-- name: BoundScans :exec
SELECT set_config('statement_timeout', @milliseconds::text, true), set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true);

-- ScanPreview answers the newest @max_rows events of an account from @since on and before the key given, and which of them a
-- subscription to these types with these filters would get.
-- name: ScanPreview :many
SELECT e.inserted_at, e.id,
  (e.duplicate_of IS NULL AND e.erased_at IS NULL
    AND mailhook.event_type_ancestors(e.event_type) && @event_types::text[]
    AND coalesce(mailhook.passes_filters(e.sending_domain, e.sending_node, e.bridge, mailhook.address_of(e.dedicated_ip),
      mailhook.fields_of(e.event_type, e.recipient, e.message_id, e.campaign_id, e.sending_domain, e.sending_node, e.bridge, e.dedicated_ip, e.data),
      @filter_sending_domain::text[], @filter_sending_node::text[], @filter_bridge::text[], @filter_dedicated_ip::text[],
      nullif(@filter::text, '')::jsonpath), false))::boolean AS is_match
FROM mailhook.events AS e
WHERE e.account_id = @account_id
  AND e.inserted_at >= @since
  AND (e.inserted_at, e.id) < (@before_at::timestamptz, @before_id::bigint)
ORDER BY e.inserted_at DESC, e.id DESC
LIMIT @max_rows;
