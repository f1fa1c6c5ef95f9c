package worker

import (
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"mailhook/db/dbtest"
)

// alike is a request with n deliveries of one subscription, half of which came with another lease, as it was answered.
func (b *bundle) alike(t *testing.T, w *Worker, subscription uuid.UUID, n int, o outcome) (outcomes []outcome) {
	t.Helper()
	b.waiting(t, subscription, n, 1)
	ids := dbtest.QueryOne[[]uuid.UUID](t, b.DB, "SELECT array_agg(id ORDER BY id) FROM mailhook.deliveries WHERE subscription_id = $1", subscription)
	leases := []uuid.UUID{uuid.New(), uuid.New()}
	for i, lease := range leases {
		b.Exec(t, "UPDATE mailhook.deliveries SET leased_by = $1, lease_id = $2 WHERE id = ANY ($3)", w.identity.get(), lease, ids[i*n/2:(i+1)*n/2])
	}
	o.startedAt = time.Now()
	for i, id := range ids {
		o.delivery = &delivery{id: id, leaseID: leases[i*2/n], subscriptionID: subscription, requests: 1}
		outcomes = append(outcomes, o)
	}
	return outcomes
}

// The lease of one of them was taken away, and it got another that the request has, too: that one stays.
func TestARequestWithManyEventsIsRecordedInOneGo(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := b.idleWorker(t, b.config())
	id := b.subscribe(t, "/", "email")
	outcomes := b.alike(t, w, id, 2*leastAlike, outcome{word: outcomeOK, statusCode: 202, duration: 7 * time.Millisecond, excerpt: []byte("\x00taken")})
	late := outcomes[len(outcomes)-1].delivery
	b.Exec(t, "UPDATE mailhook.deliveries SET lease_id = $2 WHERE id = $1", late.id, outcomes[0].delivery.leaseID)
	alone := outcome{delivery: &delivery{subscriptionID: uuid.New()}, word: outcomeOK}
	if rest := w.recordAlike(t.Context(), slices.Concat([]outcome{alone}, outcomes)); len(rest) != 1 || rest[0].delivery != alone.delivery {
		t.Errorf("%d outcomes are left", len(rest))
	}
	if left := dbtest.QueryOne[[]uuid.UUID](t, b.DB, "SELECT array_agg(id) FROM mailhook.deliveries"); len(left) != 1 || left[0] != late.id {
		t.Errorf("left are %v instead of %v", left, late.id)
	}
	if n := dbtest.QueryOne[int64](t, b.DB, `SELECT count(DISTINCT a.id) FROM mailhook.attempts AS a
		WHERE a.number = 1 AND a.status_code = 202 AND a.outcome = 'ok' AND a.ended_as = 'delivered' AND a.response_excerpt = '\x0074616b656e' AND a.duration_ms = 7
			AND a.started_at BETWEEN now() - interval '1 minute' AND now() AND substr(a.id::text, 15, 1) = '7' AND a.id > mailhook.uuid7(now() - interval '1 minute')`); n != 2*leastAlike-1 {
		t.Errorf("%d attempts are as they were", n)
	}
}

// What failed, and what is delivered to an endpoint that had failed, goes the long way: circuits, schedules and events follow.
func TestWhatChangesHealthIsNotRecordedInOneGo(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := b.idleWorker(t, b.config())
	for _, health := range []string{"3, NULL, NULL", "10, now(), now()"} {
		id := b.subscribe(t, "/", "email")
		b.Exec(t, "INSERT INTO mailhook.subscription_health (subscription_id, consecutive_failures, opened_at, open_until) SELECT $1, "+health, id)
		outcomes := b.alike(t, w, id, leastAlike, outcome{word: outcomeOK, statusCode: 200})
		rest := w.recordAlike(t.Context(), outcomes)
		if len(rest) != len(outcomes) {
			t.Errorf("%s: %d of %d are left", health, len(rest), len(outcomes))
		}
		w.recordAll(t.Context(), rest)
		if n := dbtest.QueryOne[int](t, b.DB, "SELECT consecutive_failures FROM mailhook.subscription_health WHERE subscription_id = $1 AND opened_at IS NULL", id); n != 0 {
			t.Errorf("%s: %d failures are left", health, n)
		}
	}
	failed := b.alike(t, w, b.subscribe(t, "/", "email"), leastAlike, outcome{word: outcomeHTTP5xx, statusCode: 500})
	if rest := w.recordAlike(t.Context(), failed); len(rest) != len(failed) {
		t.Errorf("%d of %d failures are left", len(rest), len(failed))
	}
}

// One of many is refused at the end of its schedule, and all others of the request are delivered: nobody is suspended for that.
func TestARequestIsJudgedAsAWhole(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := b.idleWorker(t, b.config())
	id := b.subscribe(t, "/", "email", "retry_schedule = '{1s}'", "suspend_when_exhausted = true")
	outcomes := b.alike(t, w, id, 3*leastAlike, outcome{word: outcomeOK, statusCode: 200})
	b.Exec(t, "UPDATE mailhook.deliveries SET attempt = 1")
	outcomes[leastAlike+1].word = outcomePartialFailure
	w.recordAll(t.Context(), w.recordAlike(t.Context(), outcomes))
	if status := dbtest.QueryOne[string](t, b.DB, "SELECT status FROM mailhook.subscriptions WHERE id = $1", id); status != "active" {
		t.Errorf("the subscription is %s", status)
	}
	if n := b.count(t, "SELECT count(*) FROM mailhook.attempts WHERE ended_as = 'delivered'"); n != 3*leastAlike-1 {
		t.Errorf("%d are delivered", n)
	}
	if n := b.count(t, "SELECT count(*) FROM mailhook.dead_letters"); n != 1 {
		t.Errorf("%d are exhausted", n)
	}
}
