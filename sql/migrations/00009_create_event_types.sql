-- +goose Up
CREATE TABLE mailhook.event_types (
  name        text NOT NULL,
  description text NOT NULL,
  fields      json NOT NULL DEFAULT '[]',
  sample      json NOT NULL,
  origin      text NOT NULL DEFAULT 'host',
  created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
  CONSTRAINT event_types_name_pkey PRIMARY KEY (name),
  CONSTRAINT event_types_name_check CHECK (octet_length(name) <= 100 AND name ~ '^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*$'),
  CONSTRAINT event_types_fields_check CHECK (json_typeof(fields) = 'array'),
  CONSTRAINT event_types_sample_check CHECK (json_typeof(sample) = 'object'),
  CONSTRAINT event_types_origin_check CHECK (origin IN ('mailhook', 'host'))
);
COMMENT ON TABLE mailhook.event_types IS 'The event types that are documented to customers. Nothing is checked against it: an event may be of any valid type. A host registers its own with mailhook.register_event_type.';
COMMENT ON COLUMN mailhook.event_types.fields IS 'What data of such an event may hold, recipient and message_id included: an array of {"name", "type", "description"}, type as JSON has it.';
COMMENT ON COLUMN mailhook.event_types.sample IS 'What data of such an event looks like, recipient and message_id included: for the documentation and for test sends.';
COMMENT ON COLUMN mailhook.event_types.origin IS 'mailhook: one of ours, which hosts cannot register anew; host: one of the host''s.';

CREATE FUNCTION mailhook.event_word(word text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN btrim(lower(regexp_replace(word, '[][(){}[:space:]_-]+', ' ', 'g') COLLATE "C"));
COMMENT ON FUNCTION mailhook.event_word IS 'A word for an event type as words are compared: in lower case, with one space for each run of spaces, hyphens, underscores and brackets.';

CREATE TABLE mailhook.event_type_aliases (
  word       text NOT NULL,
  format     text NOT NULL DEFAULT '',
  event_type text NOT NULL,
  normalized text NOT NULL GENERATED ALWAYS AS (mailhook.event_word(word)) STORED,
  CONSTRAINT event_type_aliases_pkey PRIMARY KEY (normalized, format, event_type),
  CONSTRAINT event_type_aliases_word_check CHECK (mailhook.event_word(word) <> '' AND octet_length(word) <= 100)
);
CREATE INDEX event_type_aliases_event_type_idx ON mailhook.event_type_aliases (event_type);
COMMENT ON TABLE mailhook.event_type_aliases IS 'Words of other mail platforms for event types, which the API takes in the place of names. A word may mean several types. A registered name always means itself.';
COMMENT ON COLUMN mailhook.event_type_aliases.word IS 'As that platform writes it.';
COMMENT ON COLUMN mailhook.event_type_aliases.format IS 'The format of subscriptions in which alone the word means this; empty: in all others.';
COMMENT ON COLUMN mailhook.event_type_aliases.normalized IS 'By what words are compared.';

-- Each field is written once; a type has the fields of its group and those that it names, in this order. Its sample has the values here,
-- but for those that it has itself; null: it has the field at times, and its sample has not.
WITH known (name, type, description, value) AS (
  VALUES
    ('recipient', 'string', 'the address that the message was for', '"r@example.com"'::json),
    ('message_id', 'string', 'the platform''s id of the message: one message has many events', '"abc123xyz"'::json),
    ('campaign_id', 'string', 'the campaign or broadcast that the message belongs to', '"123"'::json),
    ('sending_domain', 'string', 'the domain that the message was sent from', '"mail.example.com"'::json),
    ('sending_node', 'string', 'the server that sent it', '"smtp1"'::json),
    ('bridge', 'string', 'the SMTP credential that the message came in by', '"cred-7"'::json),
    ('dedicated_ip', 'string', 'the address that it was sent from', '"203.0.113.9"'::json),
    ('broadcast_name', 'string', 'the name of the campaign or broadcast', '"January Newsletter"'::json),
    ('provider_message_id', 'string', 'the id that the sending server gave the message', '"0100018d0c2f"'::json),
    ('form_id', 'string', 'the form', '"f1"'::json),
    ('form_name', 'string', 'its name', '"Signup"'::json),
    ('workflow_id', 'string', 'the workflow', '"w1"'::json),
    ('workflow_name', 'string', 'its name', '"Onboarding"'::json),
    ('step_id', 'string', 'the step of the workflow', '"s3"'::json),
    ('step_name', 'string', 'its name', '"Send day 3"'::json),
    ('trigger_id', 'string', 'the trigger', '"t1"'::json),
    ('trigger_name', 'string', 'its name', '"Birthday"'::json),
    ('action', 'string', 'what was done', '"email_sent"'::json),
    ('list_id', 'string', 'the list that the recipient is on', '"7"'::json),
    ('subscriber_id', 'string', 'the recipient''s id on the platform', '"320"'::json),
    ('custom_id', 'string', 'the id that the sender gave the message', '"order-1001"'::json),
    ('tags', 'array', 'the tags of the message: texts', '["january","offer"]'::json),
    ('message_class', 'string', 'newsletter or transactional; without it, or with another value, the type stays the parent', '"newsletter"'::json),
    ('bounce_type', 'string', 'hard (for good) or soft (for now); without it, or with another value, the type stays the parent', '"hard"'::json),
    ('smtp_code', 'number', 'the SMTP reply code (RFC 5321)', '550'::json),
    ('enhanced_code', 'string', 'the enhanced status code (RFC 3463)', '"5.1.1"'::json),
    ('reason', 'string', 'why, in words', '"user unknown"'::json),
    ('response', 'string', 'the whole answer of the server', '"250 2.0.0 OK"'::json),
    ('attempt', 'number', 'which attempt to hand the message over it was', '3'::json),
    ('complaint_type', 'string', 'the feedback type (RFC 5965): abuse, fraud, virus, other', '"abuse"'::json),
    ('source', 'string', 'where it came from: a feedback loop, a form, an import', '"feedback-loop.example"'::json),
    ('sender', 'string', 'who sent the message that came in', '"r@example.com"'::json),
    ('reply_message_id', 'string', 'the id of the answer', '"def456uvw"'::json),
    ('subject', 'string', 'the subject of the message that came in', '"Re: January Newsletter"'::json),
    ('link_url', 'string', 'the link that was followed', '"https://example.com/offer"'::json),
    ('fields', 'object', 'what was filled in: the form''s fields by name', '{"company":"Acme"}'::json),
    ('page_url', 'string', 'the page that the form was on', '"https://example.com/signup"'::json),
    ('ip_address', 'string', 'the address that the request came from', '"192.0.2.1"'::json),
    ('geo', 'string', 'the country of that address (ISO 3166-1, two letters)', '"DE"'::json),
    ('user_agent', 'string', 'the User-Agent of that request', '"Mozilla/5.0 (X11; Linux x86_64)"'::json),
    ('meta_data', 'object', 'custom fields of the recipient or the message', '{"plan":"pro"}'::json),
    ('subscription_id', 'string', 'the subscription that it is about', '"sub_0192f0c1a2b37c4d8e5f60718293a4b5"'::json),
    ('name', 'string', 'its name', '"CRM"'::json),
    ('since', 'string', 'when the first of the failures began: RFC 3339, UTC', '"2024-01-15T10:30:00.000Z"'::json),
    ('consecutive_failures', 'number', 'how many attempts have failed one after the other', '20'::json),
    ('last_outcome', 'string', 'how the last attempt ended: one of the outcomes', '"http_5xx"'::json)
),
groups (name, fields) AS (
  VALUES
    ('bulk', '{recipient,message_id,campaign_id,sending_domain,sending_node,bridge,dedicated_ip,broadcast_name,provider_message_id,list_id,subscriber_id,custom_id,tags,meta_data}'::text[]),
    ('single', '{recipient,message_id,sending_domain,sending_node,bridge,dedicated_ip,provider_message_id,custom_id,tags,meta_data}'),
    ('health', '{subscription_id,name,since,consecutive_failures,last_outcome}')
),
fields AS (
  SELECT row_number() OVER () AS nth, k.* FROM known AS k
),
types (name, description, in_group, fields, own) AS (
  VALUES
    ('email.queued', 'The platform has taken the message in and will send it.', 'bulk', '{}'::text[], '{"provider_message_id":null}'::json),
    ('email.sent', 'The message has been handed to a sending server.', 'bulk', '{}', '{}'),
    ('email.received', 'The sending server has accepted the message. Mail that comes in is email.inbound.', 'bulk', '{}', '{}'),
    ('email.delivered', 'The recipient''s server has accepted the message.', 'bulk', '{response}', '{}'),
    ('email.delayed', 'The recipient''s server has put the message off; it will be tried again.', 'bulk', '{smtp_code,enhanced_code,reason,response,attempt}', '{"smtp_code":451,"enhanced_code":"4.7.1","reason":"try again later","response":"451 4.7.1 <r@example.com>: try again later"}'),
    ('email.bounced', 'The message has come back (as this type where it is not known whether for good or for now).', 'bulk', '{bounce_type,smtp_code,enhanced_code,reason}', '{"bounce_type":null,"smtp_code":550,"enhanced_code":"5.0.0","reason":"message refused"}'),
    ('email.bounced.hard', 'The message has come back for good: the address does not work.', 'bulk', '{bounce_type,smtp_code,enhanced_code,reason}', '{}'),
    ('email.bounced.soft', 'The message has come back for now: the mailbox is full, or the server would not take it.', 'bulk', '{bounce_type,smtp_code,enhanced_code,reason}', '{"bounce_type":"soft","smtp_code":452,"enhanced_code":"4.2.2","reason":"mailbox full"}'),
    ('email.rejected', 'The receiving server has rejected the message.', 'bulk', '{smtp_code,enhanced_code,reason}', '{"smtp_code":550,"enhanced_code":"5.7.1","reason":"message content rejected"}'),
    ('email.blocked', 'The recipient''s server has refused the sender.', 'bulk', '{smtp_code,enhanced_code,reason}', '{"smtp_code":554,"enhanced_code":"5.7.1","reason":"sender address listed"}'),
    ('email.failed', 'The message could not be sent.', 'bulk', '{reason}', '{"reason":"no route to the sending server"}'),
    ('email.suppressed', 'The message was not sent, because the recipient is on a suppression list.', 'bulk', '{reason}', '{"provider_message_id":null,"reason":"bounced before"}'),
    ('email.opened', 'The recipient has opened the message (as this type where its class is not known).', 'bulk', '{message_class,ip_address,geo,user_agent}', '{"message_class":null}'),
    ('email.opened.newsletter', 'The recipient has opened a newsletter.', 'bulk', '{message_class,ip_address,geo,user_agent}', '{}'),
    ('email.opened.transactional', 'The recipient has opened a transactional message.', 'single', '{message_class,ip_address,geo,user_agent}', '{"message_class":"transactional","meta_data":{"order":"A-1001"}}'),
    ('email.clicked', 'The recipient has followed a link (as this type where the class of the message is not known).', 'bulk', '{message_class,link_url,ip_address,geo,user_agent}', '{"message_class":null}'),
    ('email.clicked.newsletter', 'The recipient has followed a link in a newsletter.', 'bulk', '{message_class,link_url,ip_address,geo,user_agent}', '{}'),
    ('email.clicked.transactional', 'The recipient has followed a link in a transactional message.', 'single', '{message_class,link_url,ip_address,geo,user_agent}', '{"message_class":"transactional","link_url":"https://example.com/receipt","meta_data":{"order":"A-1001"}}'),
    ('email.complained', 'The recipient has called the message spam.', 'bulk', '{complaint_type,source}', '{}'),
    ('email.unsubscribed', 'The recipient wants no more mail of a list.', 'bulk', '{reason,ip_address,geo,user_agent}', '{"reason":"one_click"}'),
    ('email.subscribed', 'The recipient has joined a list.', '', '{recipient,list_id,subscriber_id,source,ip_address,user_agent,meta_data}', '{"source":"form"}'),
    ('email.replied', 'The recipient has answered the message.', 'bulk', '{reply_message_id,subject}', '{}'),
    ('email.inbound', 'A message has come in.', '', '{recipient,message_id,sending_domain,sender,subject}', '{"recipient":"inbox@mail.example.com","message_id":"def456uvw","subject":"A question"}'),
    ('recipient.deleted', 'A recipient has been deleted from the platform.', '', '{recipient,list_id,subscriber_id,reason}', '{"reason":"requested"}'),
    ('form.submitted', 'Somebody has sent a form.', '', '{recipient,form_id,form_name,list_id,subscriber_id,fields,page_url,ip_address,user_agent}', '{}'),
    ('trigger.fired', 'A trigger has acted.', '', '{recipient,trigger_id,trigger_name,action,subscriber_id}', '{}'),
    ('workflow.step', 'A recipient has come to a step of a workflow.', '', '{recipient,workflow_id,workflow_name,step_id,step_name,action,subscriber_id}', '{}'),
    ('subscription.failing', 'Deliveries to a subscription fail one after the other: they are held, and one at a time is tried. Not matched by *, and never sent to the subscription that it is about.', 'health', '{}', '{}'),
    ('subscription.recovered', 'Deliveries to a failing subscription arrive again: what was held is sent.', 'health', '{}', '{"consecutive_failures":31,"last_outcome":"ok"}'),
    ('subscription.suspended', 'A subscription is suspended: its endpoint answered 410, or nothing but failures for days. What it would get is held until it is resumed.', 'health', '{}', '{"consecutive_failures":214,"last_outcome":"connect_timeout"}')
)
INSERT INTO mailhook.event_types (name, description, fields, sample, origin)
SELECT t.name, t.description,
  json_agg(json_build_object('name', f.name, 'type', f.type, 'description', f.description) ORDER BY f.nth),
  json_object_agg(f.name, coalesce(t.own -> f.name, f.value) ORDER BY f.nth) FILTER (WHERE coalesce(json_typeof(t.own -> f.name), '') <> 'null'),
  'mailhook'
FROM types AS t
LEFT JOIN groups AS g ON g.name = t.in_group
JOIN fields AS f ON f.name = ANY (t.fields || g.fields)
GROUP BY t.name, t.description;

-- The words of Mumara Campaigns, Mumara's article, Mumara ONE, Mailjet, SendGrid, Mailgun, Postmark, Amazon SES, SparkPost, Brevo and Resend.
-- In a format that writes one word for several types, the word means all of them: what is sent under that word is what is asked for by it.
-- Not so where one message would then be told of twice under one word: processed (SendGrid) and sent (Mailjet) mean one type each.
INSERT INTO mailhook.event_type_aliases (event_type, format, word)
SELECT a.event_type, a.format, unnest(a.words)
FROM (
  VALUES
    ('email.queued', '', ARRAY['queued', 'accepted', 'email.scheduled']),
    ('email.sent', '', ARRAY['sent', 'Email Sent', 'send', 'processed', 'request']),
    ('email.received', '', ARRAY['Received', 'Received (by mail server)', 'injection']),
    ('email.delivered', '', ARRAY['delivered', 'Delivered (to inbox)', 'delivery']),
    ('email.delivered', 'mailjet', ARRAY['sent']),
    ('email.delayed', '', ARRAY['delayed', 'Delayed (in queue)', 'delay', 'deferred', 'temporary_fail', 'DeliveryDelay', 'delivery_delay', 'email.delivery_delayed']),
    ('email.bounced', '', ARRAY['bounced', 'Bounced (hard or soft)', 'bounce', 'out_of_band']),
    ('email.bounced', 'sendgrid', ARRAY['bounce']),
    ('email.blocked', 'sendgrid', ARRAY['bounce']),
    ('email.bounced.hard', '', ARRAY['Hard Bounced', 'hard_bounce', 'hardBounce', 'permanent_fail']),
    ('email.bounced.soft', '', ARRAY['Soft Bounced', 'soft_bounce', 'softBounce']),
    ('email.rejected', '', ARRAY['rejected', 'Rejected (by receiving server)', 'reject', 'policy_rejection']),
    ('email.rejected', 'mumara', ARRAY['Rejected (by receiving server)', 'Rejected']),
    ('email.blocked', 'mumara', ARRAY['Rejected (by receiving server)', 'Rejected']),
    ('email.blocked', '', ARRAY['blocked']),
    ('email.blocked', 'mailjet', ARRAY['blocked']),
    ('email.rejected', 'mailjet', ARRAY['blocked']),
    ('email.failed', 'mailjet', ARRAY['blocked']),
    ('email.suppressed', 'mailjet', ARRAY['blocked']),
    ('email.failed', '', ARRAY['failed', 'error', 'invalid', 'invalid_email', 'invalidEmail', 'Rendering Failure', 'generation_failure', 'generation_rejection']),
    ('email.suppressed', '', ARRAY['suppressed', 'dropped']),
    ('email.suppressed', 'sendgrid', ARRAY['dropped']),
    ('email.rejected', 'sendgrid', ARRAY['bounce']),
    ('email.failed', 'sendgrid', ARRAY['dropped']),
    ('email.opened', '', ARRAY['opened', 'open', 'initial_open', 'unique_opened', 'uniqueOpened', 'proxy_open']),
    ('email.opened.newsletter', '', ARRAY['Newsletter Opened']),
    ('email.opened.transactional', '', ARRAY['Transactional Opened']),
    ('email.clicked', '', ARRAY['clicked', 'click']),
    ('email.clicked.newsletter', '', ARRAY['Newsletter Clicked']),
    ('email.clicked.transactional', '', ARRAY['Transactional Clicked']),
    ('email.complained', '', ARRAY['complained', 'Complaints', 'complaint', 'Complained (Spam Report)', 'Spam Report', 'spamreport', 'spam', 'spam_complaint', 'SpamComplaint']),
    ('email.unsubscribed', '', ARRAY['unsubscribed', 'unsubscribe', 'unsub', 'list_unsubscribe', 'link_unsubscribe', 'group_unsubscribe', 'SubscriptionChange']),
    ('email.subscribed', '', ARRAY['subscribed', 'group_resubscribe', 'listAddition', 'SubscriptionChange']),
    ('email.replied', '', ARRAY['replied', 'reply', 'replies']),
    ('email.inbound', '', ARRAY['inbound', 'relay_injection', 'inboundEmailProcessed']),
    ('form.submitted', '', ARRAY['form submit']),
    ('trigger.fired', '', ARRAY['trigger action']),
    ('workflow.step', '', ARRAY['workflow step'])
) AS a (event_type, format, words);

-- Hosts register their own types. MH007: an argument is wrong; the error names it as its column.
-- +goose StatementBegin
CREATE FUNCTION mailhook.refuse_argument(argument text, message text, hint text) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
  RAISE EXCEPTION '%', argument || ' ' || message USING ERRCODE = 'MH007', COLUMN = argument, HINT = hint;
END
$$;

CREATE FUNCTION mailhook.json_argument(argument text, value text, kind text, example text) RETURNS json
LANGUAGE plpgsql
AS $$
DECLARE
  parsed json;
BEGIN
  BEGIN
    parsed := value;
    PERFORM value::jsonb; -- and can be read back, as the data of events
  EXCEPTION WHEN data_exception OR program_limit_exceeded THEN
    PERFORM mailhook.refuse_argument(argument, 'is not JSON that can be read: ' || SQLERRM, 'For example ' || example);
  END;
  IF json_typeof(parsed) <> kind THEN
    PERFORM mailhook.refuse_argument(argument, 'is not a JSON ' || kind, 'For example ' || example);
  END IF;
  IF octet_length(value) > 262144 THEN
    PERFORM mailhook.refuse_argument(argument, 'is longer than 262,144 bytes', 'Shorten it.');
  END IF;
  RETURN parsed;
END
$$;

CREATE FUNCTION mailhook.fields_argument(value text) RETURNS json
LANGUAGE plpgsql
AS $$
DECLARE
  example constant text := '[{"name": "score", "type": "number", "description": "1 to 10"}]';
  fields  json := mailhook.json_argument('fields', value, 'array', example);
  wrong   text;
BEGIN
  SELECT 'has ' || left(f.value::text, 200) || ' as an element' INTO wrong
  FROM json_array_elements(fields) AS f
  WHERE json_typeof(f.value) <> 'object'
  LIMIT 1;
  IF wrong IS NULL THEN
    SELECT 'has ' || left(f.value::text, 200) || ' as an element' INTO wrong
    FROM json_array_elements(fields) AS f
    WHERE coalesce(f.value ->> 'name', '') = ''
      OR coalesce(f.value ->> 'type', '') NOT IN ('string', 'number', 'boolean', 'object', 'array')
      OR EXISTS (
        SELECT FROM json_each(f.value) AS member
        WHERE member.key NOT IN ('name', 'type', 'description') OR json_typeof(member.value) <> 'string')
    LIMIT 1;
  END IF;
  IF wrong IS NULL THEN
    SELECT 'names ' || quote_literal(left(f.value ->> 'name', 100)) || ' twice' INTO wrong
    FROM json_array_elements(fields) AS f
    GROUP BY f.value ->> 'name'
    HAVING count(*) > 1
    LIMIT 1;
  END IF;
  IF wrong IS NOT NULL THEN
    PERFORM mailhook.refuse_argument('fields', wrong,
      'Each is an object of name, type (string, number, boolean, object or array) and, if you like, description: ' || example);
  END IF;
  RETURN (
    SELECT coalesce(json_agg(json_build_object('name', f.value ->> 'name', 'type', f.value ->> 'type', 'description', coalesce(f.value ->> 'description', '')) ORDER BY f.nth), '[]')
    FROM json_array_elements(fields) WITH ORDINALITY AS f (value, nth));
END
$$;

CREATE FUNCTION mailhook.check_own_event_type(name text) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
  meaning text;
BEGIN
  IF name IS NULL OR octet_length(name) > 100 OR name !~ '^[a-z][a-z0-9_]*([.][a-z][a-z0-9_]*)*$' THEN
    PERFORM mailhook.refuse_argument('name', 'is not valid: ' || coalesce(quote_literal(left(name, 120)), 'NULL'),
      'A type is dotted lower-case words of letters, digits and _, at most 100 bytes: invoice.paid.');
  END IF;
  IF name LIKE 'subscription.%' OR EXISTS (
    SELECT FROM mailhook.event_types AS t WHERE t.origin = 'mailhook' AND (t.name = check_own_event_type.name OR starts_with(t.name, check_own_event_type.name || '.')))
  THEN
    PERFORM mailhook.refuse_argument('name', quote_literal(name) || ' is a type of mailhook''s', 'Give yours a name of its own: invoice.paid.');
  END IF;
  SELECT string_agg(DISTINCT a.event_type, ', ') INTO meaning
  FROM mailhook.event_type_aliases AS a
  WHERE a.normalized = mailhook.event_word(name) AND a.event_type <> check_own_event_type.name;
  IF meaning IS NOT NULL THEN
    PERFORM mailhook.refuse_argument('name', quote_literal(name) || ' is a word for ' || meaning, 'Give yours a name of its own: invoice.paid.');
  END IF;
END
$$;

CREATE FUNCTION mailhook.set_aliases(name text, aliases text[]) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
  given   text;
  meaning text;
BEGIN
  DELETE FROM mailhook.event_type_aliases AS a WHERE a.event_type = set_aliases.name;
  FOREACH given IN ARRAY coalesce(aliases, '{}') LOOP
    IF given IS NULL OR mailhook.event_word(given) = '' OR octet_length(given) > 100 OR given ~ '[[:cntrl:]]' THEN
      PERFORM mailhook.refuse_argument('aliases', 'has ' || coalesce(quote_literal(left(given, 120)), 'NULL'), 'Each is a word or some, at most 100 bytes: ''{Invoice Paid}''.');
    END IF;
    meaning := coalesce(
      (SELECT string_agg(DISTINCT a.event_type, ', ') FROM mailhook.event_type_aliases AS a WHERE a.normalized = mailhook.event_word(given) AND a.event_type <> set_aliases.name),
      (SELECT t.name FROM mailhook.event_types AS t WHERE t.name = given AND t.name <> set_aliases.name));
    IF meaning IS NOT NULL THEN
      PERFORM mailhook.refuse_argument('aliases', 'has ' || quote_literal(given) || ', which means ' || meaning, 'Leave it out, or take another word.');
    END IF;
    INSERT INTO mailhook.event_type_aliases (word, event_type) VALUES (given, set_aliases.name) ON CONFLICT DO NOTHING;
  END LOOP;
END
$$;

CREATE FUNCTION mailhook.store_event_type(name text, description text, sample text, fields text, aliases text[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  LOCK TABLE mailhook.event_type_aliases IN SHARE ROW EXCLUSIVE MODE; -- one at a time: words must not collide
  PERFORM mailhook.check_own_event_type(name);
  IF btrim(coalesce(description, '')) = '' OR octet_length(description) > 2000 THEN
    PERFORM mailhook.refuse_argument('description', 'is empty, or longer than 2,000 bytes', 'Say in a sentence what happened.');
  END IF;
  INSERT INTO mailhook.event_types AS t (name, description, sample, fields)
  VALUES (store_event_type.name, store_event_type.description,
    mailhook.json_argument('sample', coalesce(nullif(sample, ''), '{}'), 'object', '{"recipient": "r@example.com", "score": 9}'),
    mailhook.fields_argument(coalesce(nullif(fields, ''), '[]')))
  ON CONFLICT ON CONSTRAINT event_types_name_pkey DO UPDATE
  SET description = excluded.description, sample = excluded.sample, fields = excluded.fields;
  PERFORM mailhook.set_aliases(name, aliases);
END
$$;

-- With the rights of the caller: the cast to text of a type of the caller's may be a function of the caller's.
-- In a DO block, because sqlc does not know anycompatible.
DO $do$
BEGIN
  EXECUTE $create$
    CREATE FUNCTION mailhook.register_event_type(
      name        text,
      description text,
      sample      anycompatible DEFAULT NULL,
      fields      anycompatible DEFAULT NULL,
      aliases     text[] DEFAULT NULL
    ) RETURNS void
    LANGUAGE plpgsql
    AS $$
    BEGIN
      PERFORM mailhook.store_event_type(name, description, sample::text, fields::text, aliases);
    END
    $$
  $create$;
  COMMENT ON FUNCTION mailhook.register_event_type IS 'Documents an event type of the host''s to its customers, or documents it anew: what is left out is empty. sample is a JSON object, fields a JSON array of {"name", "type", "description"}, aliases other words for it. Errors of code MH007 name the argument.';
END
$do$;

CREATE FUNCTION mailhook.unregister_event_type(name text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  IF EXISTS (SELECT FROM mailhook.event_types AS t WHERE t.name = unregister_event_type.name AND t.origin = 'mailhook') THEN
    PERFORM mailhook.refuse_argument('name', quote_literal(name) || ' is a type of mailhook''s', 'Only types that were registered with mailhook.register_event_type can be removed.');
  END IF;
  DELETE FROM mailhook.event_type_aliases AS a WHERE a.event_type = unregister_event_type.name;
  DELETE FROM mailhook.event_types AS t WHERE t.name = unregister_event_type.name;
  RETURN FOUND;
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION mailhook.unregister_event_type IS 'Takes a type of the host''s and its aliases out of the catalogue; answers whether it was there. Events and subscriptions of that type go on.';
COMMENT ON FUNCTION mailhook.store_event_type IS 'What register_event_type does, with the rights of the owner.';
COMMENT ON FUNCTION mailhook.refuse_argument IS 'Raises MH007.';
COMMENT ON FUNCTION mailhook.json_argument IS 'An argument as json of one kind, or MH007.';
COMMENT ON FUNCTION mailhook.fields_argument IS 'The argument fields with its members in one order, or MH007.';
COMMENT ON FUNCTION mailhook.check_own_event_type IS 'MH007 unless a host may register that name.';
COMMENT ON FUNCTION mailhook.set_aliases IS 'Replaces the aliases of a type; MH007 where a word means another.';

-- The helpers run with the rights of store_event_type, which the host may call.
-- +goose StatementBegin
DO $$
DECLARE
  signature regprocedure;
BEGIN
  FOR signature IN
    SELECT p.oid FROM pg_catalog.pg_proc AS p
    WHERE p.pronamespace = 'mailhook'::regnamespace
      AND p.proname IN ('event_word', 'refuse_argument', 'json_argument', 'fields_argument', 'check_own_event_type', 'set_aliases', 'store_event_type', 'register_event_type', 'unregister_event_type')
  LOOP
    EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', signature);
    IF signature::text ~ '(store|register)_event_type[(]' THEN
      EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO mailhook_producer', signature);
    END IF;
  END LOOP;
END
$$;
-- +goose StatementEnd

-- +goose Down
DROP TABLE mailhook.event_type_aliases, mailhook.event_types;
-- +goose StatementBegin
DO $$
BEGIN
  EXECUTE (
    SELECT 'DROP FUNCTION ' || string_agg(p.oid::regprocedure::text, ', ')
    FROM pg_catalog.pg_proc AS p
    WHERE p.pronamespace = 'mailhook'::regnamespace
      AND p.proname IN ('event_word', 'refuse_argument', 'json_argument', 'fields_argument', 'check_own_event_type', 'set_aliases', 'store_event_type', 'register_event_type', 'unregister_event_type')
  );
END
$$;
-- +goose StatementEnd
