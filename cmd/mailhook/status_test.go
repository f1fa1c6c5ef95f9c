package main

import (
	"encoding/json"
	"regexp"
	"testing"

	"mailhook/db/dbtest"
)

// What waits for its next attempt is in no other row of the table.
func TestStatusTellsWhatWaitsForARetry(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	d.Exec(t, `WITH s AS (
			INSERT INTO mailhook.subscriptions (id, account_id, url, event_types) SELECT mailhook.uuid7(), 'acme', 'https://receiver.example/', '{email}' FROM generate_series(1, 2)
			RETURNING id
		), h AS (
			INSERT INTO mailhook.subscription_health (subscription_id, consecutive_failures, last_outcome) SELECT id, row_number() OVER (), 'dns' FROM s
		)
		INSERT INTO mailhook.deliveries (subscription_id, account_id, event_inserted_at, event_id, event_type, attempt, next_attempt_at, last_outcome, created_at)
		SELECT id, 'acme', now(), 1, 'email.sent', 1, now() + make_interval(hours => n), 'dns', now() FROM s, generate_series(-1, 2) AS n WHERE n <> 0`)
	env := []string{"MAILHOOK_DATABASE_URL=" + d.URL}
	var s status
	out, stderr, _ := mailhook(t, env, "status", "--json")
	if err := json.Unmarshal([]byte(out), &s); err != nil || s.Waiting != 4 || s.Due != 2 || s.Held != 0 {
		t.Errorf("%v\n%s%s", err, out, stderr)
	}
	out, stderr, _ = mailhook(t, env, "status")
	for _, line := range []string{`(?m)^waiting for a retry +4$`, ` 1 failure  `, ` 2 failures  `} {
		if !regexp.MustCompile(line).MatchString(out) {
			t.Errorf("no %s in\n%s%s", line, out, stderr)
		}
	}
}
