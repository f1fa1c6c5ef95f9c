package worker

import (
	"net/http"
	"testing"
	"time"

	"mailhook/cmd/receiver"
	"mailhook/db"
	"mailhook/db/dbtest"
)

// With the rule 200 another 2xx is a failure: it is retried, counts in the subscription's health, and has a word of its own. With the
// rule 2xx the same answer is success.
func TestTheSuccessRule(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.answerWith(func(w http.ResponseWriter, _ receiver.Receipt) { w.WriteHeader(http.StatusAccepted) })
	strict := b.subscribe(t, "/strict", "email", "success_rule = '200', retry_schedule = '{1s}', retry_jitter = 0")
	b.subscribe(t, "/", "email")
	b.run(t, b.config())
	b.Exec(t, "SELECT mailhook.emit('email.sent')")
	b.waitFor(t, 3)
	b.settled(t)
	const attempts = `SELECT string_agg(format('%s %s %s %s', number, outcome, status_code, ended_as), ', ' ORDER BY number, started_at)
		FROM mailhook.attempts WHERE (subscription_id = $1) = $2`
	if got, want := dbtest.QueryOne[string](t, b.DB, attempts, strict, true), "1 http_2xx 202 , 2 http_2xx 202 exhausted"; got != want {
		t.Errorf("by the rule 200: %s, want %s", got, want)
	}
	if got, want := dbtest.QueryOne[string](t, b.DB, attempts, strict, false), "1 ok 202 delivered"; got != want {
		t.Errorf("by the rule 2xx: %s, want %s", got, want)
	}
	if got := dbtest.QueryOne[string](t, b.DB, "SELECT consecutive_failures || ' ' || last_outcome FROM mailhook.subscription_health WHERE subscription_id = $1", strict); got != "2 http_2xx" {
		t.Errorf("health: %s", got)
	}
	// 200 is success by both.
	b.answerWith(func(w http.ResponseWriter, _ receiver.Receipt) { w.WriteHeader(http.StatusOK) })
	b.Exec(t, "SELECT mailhook.emit('email.opened')")
	b.waitFor(t, 5)
	b.settled(t)
	if n := dbtest.QueryOne[int](t, b.DB, "SELECT count(*)::int FROM mailhook.attempts WHERE event_type = 'email.opened' AND outcome = 'ok'"); n != 2 {
		t.Errorf("%d of 2 took 200 for success", n)
	}
}

// Events are kept for the longest hold and the longest preset: with all its jitter, and an hour of Retry-After for each failure.
func TestNoPresetOutlivesItsEvents(t *testing.T) {
	t.Parallel()
	for _, preset := range db.RetryPresets() {
		most := time.Duration(len(preset.Schedule)) * time.Hour
		for _, delay := range preset.Schedule {
			most += delay + time.Duration(float64(delay)*float64(preset.Jitter))
		}
		if most > longestSchedule {
			t.Errorf("%s may take %v", preset.Name, most)
		}
	}
}

// A limit is for creating: of an account that has more subscriptions than its plan, or a plan without webhooks, all deliver.
func TestALowerLimitHarmsNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for range 3 {
		b.subscribe(t, "/", "email")
	}
	b.run(t, b.config())
	for i, limit := range []int{3, 1, 0} {
		b.Exec(t, "INSERT INTO mailhook.accounts (id, subscription_limit) VALUES ('default', $1) ON CONFLICT (id) DO UPDATE SET subscription_limit = $1, updated_at = clock_timestamp()", limit)
		b.Exec(t, "SELECT mailhook.emit('email.sent')")
		b.waitFor(t, 3*(i+1))
	}
	b.settled(t)
	if got := dbtest.QueryOne[string](t, b.DB, "SELECT count(*) FILTER (WHERE ended_as = 'delivered') || ' of ' || count(*) FROM mailhook.attempts"); got != "9 of 9" {
		t.Errorf("delivered %s", got)
	}
}
