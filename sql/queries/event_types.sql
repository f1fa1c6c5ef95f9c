-- ListEventTypes names the registered types after @after, in the order of their names. aliases is an array of
-- {"word", "format"}.
-- name: ListEventTypes :many
SELECT t.name, t.description, t.fields, t.sample,
  coalesce((
    SELECT json_agg(json_build_object('word', a.word, 'format', nullif(a.format, '')) ORDER BY a.format, a.normalized)
    FROM mailhook.event_type_aliases AS a
    WHERE a.event_type = t.name
  ), '[]')::json AS aliases
FROM mailhook.event_types AS t
WHERE t.name > @after::text
  AND (sqlc.narg('name')::text IS NULL OR t.name = sqlc.narg('name')::text)
ORDER BY t.name
LIMIT @max_rows;

-- FindEventTypes answers what each of @words means to subscriptions of a format: itself where it is registered, else the
-- types that it is an alias of, by that format or, where that has none, by none. A word without a row means none of these.
-- name: FindEventTypes :many
SELECT w.nth::int AS nth, m.event_type::text AS event_type
FROM unnest(@words::text[]) WITH ORDINALITY AS w (word, nth)
CROSS JOIN LATERAL (
  SELECT t.name AS event_type, 0 AS rank
  FROM mailhook.event_types AS t
  WHERE t.name = w.word
  UNION ALL
  SELECT a.event_type, CASE WHEN a.format = '' THEN 2 ELSE 1 END
  FROM mailhook.event_type_aliases AS a
  WHERE a.normalized = mailhook.event_word(w.word) AND a.format IN ('', @format::text)
  ORDER BY rank
  FETCH FIRST ROW WITH TIES
) AS m
ORDER BY w.nth, m.event_type;

-- ListEventWords names all that FindEventTypes knows, to tell what is near a word that it does not know.
-- name: ListEventWords :many
SELECT t.name AS word FROM mailhook.event_types AS t
UNION
SELECT a.word FROM mailhook.event_type_aliases AS a WHERE a.format IN ('', @format::text)
LIMIT 5000;

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
