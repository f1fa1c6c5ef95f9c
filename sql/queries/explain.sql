-- ExplainMatch holds a dispatched event against a subscription as it is today, condition by condition, as dispatch does.
-- name: ExplainMatch :one
SELECT e.account_id AS event_account_id, s.account_id AS subscription_account_id,
  (e.account_id = s.account_id)::boolean AS account_passed,
  e.inserted_at, s.created_at,
  (s.created_at <= e.inserted_at)::boolean AS created_before_passed,
  s.status,
  (s.status <> 'inactive')::boolean AS status_passed,
  e.event_type, s.event_types,
  (s.event_types && mailhook.event_type_ancestors(e.event_type))::boolean AS event_type_passed,
  coalesce(e.sending_domain, '')::text AS sending_domain, s.filter_sending_domain,
  (s.filter_sending_domain = '{}' OR coalesce(lower(e.sending_domain) = ANY (s.filter_sending_domain), false))::boolean AS sending_domain_passed,
  coalesce(e.sending_node, '')::text AS sending_node, s.filter_sending_node,
  (s.filter_sending_node = '{}' OR coalesce(e.sending_node = ANY (s.filter_sending_node), false))::boolean AS sending_node_passed,
  coalesce(e.bridge, '')::text AS bridge, s.filter_bridge,
  (s.filter_bridge = '{}' OR coalesce(e.bridge = ANY (s.filter_bridge), false))::boolean AS bridge_passed,
  coalesce(host(e.dedicated_ip::inet), '')::text AS dedicated_ip, s.filter_dedicated_ip,
  (s.filter_dedicated_ip = '{}' OR coalesce(host(e.dedicated_ip::inet) = ANY (s.filter_dedicated_ip), false))::boolean AS dedicated_ip_passed,
  mailhook.is_about(e.event_type, e.data, s.id)::boolean AS is_about_itself,
  (e.duplicate_of IS NOT NULL)::boolean AS is_duplicate, coalesce(e.duplicate_of, '')::text AS duplicate_of
FROM mailhook.events AS e
JOIN mailhook.subscriptions AS s ON s.id = @subscription_id
WHERE e.inserted_at = @inserted_at
  AND e.id = @id;
