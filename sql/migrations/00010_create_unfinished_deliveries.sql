-- +goose Up
CREATE VIEW mailhook.unfinished_deliveries AS
SELECT d.id, d.subscription_id, d.account_id, d.event_inserted_at, d.event_id, d.event_type, d.attempt,
  (CASE WHEN d.next_attempt_at = 'infinity' THEN d.created_at ELSE d.next_attempt_at END)::timestamptz AS next_attempt_at,
  (d.next_attempt_at = 'infinity')::boolean AS is_blocked,
  d.last_outcome, d.created_at,
  (CASE
    WHEN d.lease_id IS NOT NULL THEN 'sending'
    WHEN s.status IN ('paused', 'suspended') OR a.status = 'suspended' OR h.opened_at IS NOT NULL OR h.wait_until > statement_timestamp() THEN 'held'
    ELSE 'pending'
  END)::text AS status,
  (CASE
    WHEN d.lease_id IS NOT NULL THEN ''
    WHEN s.status IN ('paused', 'suspended') THEN s.status
    WHEN a.status = 'suspended' THEN 'account'
    WHEN h.opened_at IS NOT NULL OR h.wait_until > statement_timestamp() THEN 'circuit'
    ELSE ''
  END)::text AS held_reason
FROM mailhook.deliveries AS d
LEFT JOIN mailhook.subscriptions AS s ON s.id = d.subscription_id
LEFT JOIN mailhook.subscription_health AS h ON h.subscription_id = d.subscription_id
LEFT JOIN mailhook.accounts AS a ON a.id = d.account_id;

COMMENT ON VIEW mailhook.unfinished_deliveries IS 'deliveries as people see them: with their status, which follows from lease, subscription, circuit and account. Workers do not use it.';
COMMENT ON COLUMN mailhook.unfinished_deliveries.is_blocked IS 'An earlier delivery of the same message or recipient has not ended; next_attempt_at says nothing then.';
COMMENT ON COLUMN mailhook.unfinished_deliveries.status IS 'pending, sending or held.';
COMMENT ON COLUMN mailhook.unfinished_deliveries.held_reason IS 'paused, suspended, account or circuit; empty unless held.';

-- +goose Down
DROP VIEW mailhook.unfinished_deliveries;
