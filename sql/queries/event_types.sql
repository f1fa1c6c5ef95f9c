-- ListEventTypes names the registered types after @after, in the order of their names.
-- name: ListEventTypes :many
SELECT t.name, t.description, t.sample
FROM mailhook.event_types AS t
WHERE t.name > @after::text
ORDER BY t.name
LIMIT @max_rows;

-- ConcreteEventType answers a type that an event may have for a node of the hierarchy: the node itself where it is
-- registered or has nothing below it, else a registered type below it, email.delivered rather than another.
-- name: ConcreteEventType :one
SELECT coalesce((
  SELECT t.name
  FROM mailhook.event_types AS t
  WHERE @node::text = ANY (mailhook.event_type_ancestors(t.name))
  ORDER BY t.name = @node::text DESC, t.name = 'email.delivered' DESC, t.name
  LIMIT 1
), @node::text)::text AS name;
