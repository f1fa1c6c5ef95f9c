package worker

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"mailhook/cmd/receiver"
	"mailhook/db"
	"mailhook/db/dbtest"
)

// A queueWatcher is a receiver that watches the order of each recipient's events: their data has a number, n, that counts up.
type queueWatcher struct {
	t *testing.T
	// answer is the status for the nth request of an event.
	answer func(recipient string, n, request int) int

	mu       sync.Mutex
	under    map[string]int // requests under way
	last     map[string]int // the highest number that came, by recipient
	requests map[string]int // by recipient and number
}

func watchQueues(t *testing.T, answer func(recipient string, n, request int) int) *queueWatcher {
	return &queueWatcher{t: t, answer: answer, under: map[string]int{}, last: map[string]int{}, requests: map[string]int{}}
}

func (q *queueWatcher) serve(w http.ResponseWriter, r receiver.Receipt) {
	var body struct {
		Data struct {
			Recipient string
			N         int
		}
	}
	if err := json.Unmarshal(r.Body, &body); err != nil {
		q.t.Errorf("%v in %s", err, r.Body)
		return
	}
	key, n := strings.ToLower(body.Data.Recipient), body.Data.N
	q.mu.Lock()
	event := fmt.Sprint(key, n)
	q.requests[event]++
	request := q.requests[event]
	if q.under[key]++; q.under[key] > 1 {
		q.t.Errorf("%d requests of %s at one time", q.under[key], key)
	}
	if n < q.last[key] {
		q.t.Errorf("%s: %d comes after %d", key, n, q.last[key])
	}
	q.last[key] = n
	q.mu.Unlock()
	status := q.answer(key, n, request)
	q.mu.Lock()
	q.under[key]--
	q.mu.Unlock()
	w.WriteHeader(status)
}

// emitQueues emits so many events for each of so many recipients, in turns, some of them in upper case.
func (b *bundle) emitQueues(t *testing.T, recipients, events int) {
	t.Helper()
	b.Exec(t, `INSERT INTO mailhook.outbox (event_type, recipient, data)
		SELECT 'email.sent', CASE WHEN n % 2 = 0 THEN 'R' ELSE 'r' END || r || '@example.com', json_build_object('n', n)
		FROM generate_series(1, $2::int) AS n, generate_series(1, $1::int) AS r ORDER BY n, r`, recipients, events)
}

// ended counts how deliveries ended.
func (b *bundle) ended(t *testing.T, as string) int64 {
	t.Helper()
	return b.count(t, "SELECT count(*) FROM mailhook.attempts WHERE ended_as = $1", as)
}

// Two workers, some requests fail at first, some for good: of each recipient one request at a time, in the order of the events.
func TestDeliveriesOfARecipientGoInOrder(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.subscribe(t, "/", "email", "ordering = 'recipient'", "retry_schedule = '{10ms,10ms}'", "retry_jitter = 0")
	q := watchQueues(t, func(recipient string, n, request int) int {
		if n%7 == 0 || (n%3 == 0 && request == 1) { // for good, and at first
			return http.StatusInternalServerError
		}
		return http.StatusOK
	})
	b.answerWith(q.serve)
	b.Exec(t, "UPDATE mailhook.installation SET circuit_failures = 1000000")
	q.under[""] = -1000 // events without a recipient are in no order: any number at one time
	for range 2 {
		c := b.config()
		c.BatchRows = 7 // batches end in the midst of the recipients
		b.run(t, c)
	}
	b.waitForWorkers(t, 2)
	b.emitQueues(t, 30, 10)
	b.Exec(t, "INSERT INTO mailhook.outbox (event_type, data) SELECT 'email.sent', '{\"n\": 1}' FROM generate_series(1, 20)")
	dbtest.Eventually(t, "some were delivered", func() bool { return b.ended(t, "delivered") > 50 })
	b.Exec(t, "UPDATE mailhook.subscriptions SET status = 'paused' WHERE id = $1", id)
	b.Exec(t, "UPDATE mailhook.subscriptions SET status = 'active' WHERE id = $1", id)
	b.settled(t)
	if delivered, exhausted := b.ended(t, "delivered"), b.ended(t, "exhausted"); delivered != 290 || exhausted != 30 {
		t.Errorf("%d delivered and %d exhausted of 320", delivered, exhausted)
	}
}

// The head of one recipient fails: nothing of it goes ahead, and all of the others does.
func TestAFailingKeyBlocksOnlyItself(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "/", "email", "ordering = 'recipient'", "retry_schedule = '{1h}'")
	q := watchQueues(t, func(recipient string, _, _ int) int {
		if recipient == "r1@example.com" {
			return http.StatusInternalServerError
		}
		return http.StatusOK
	})
	b.answerWith(q.serve)
	b.run(t, b.config())
	b.emitQueues(t, 20, 10)
	dbtest.Eventually(t, "the others are through", func() bool { return b.ended(t, "delivered") == 190 })
	dbtest.Eventually(t, "the failure is recorded", func() bool {
		return b.count(t, "SELECT count(*) FROM mailhook.deliveries WHERE attempt = 1 AND next_attempt_at < 'infinity'") == 1
	})
	if n := b.count(t, "SELECT count(*) FROM mailhook.unfinished_deliveries WHERE is_blocked AND status = 'pending'"); n != 9 {
		t.Errorf("%d are blocked behind it", n)
	}
	if n := b.count(t, "SELECT count(*) FROM mailhook.attempts"); n != 191 {
		t.Errorf("%d attempts", n)
	}
}

// What ordering takes as the key, and that a subscription without it has none.
func TestOrderKeys(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, ordering := range []string{"none", "message", "recipient"} {
		b.subscribe(t, "/"+ordering, "email", "status = 'paused'", "ordering = '"+ordering+"'")
	}
	b.run(t, b.config())
	b.Exec(t, `INSERT INTO mailhook.outbox (event_type, message_id, recipient) VALUES
		('email.sent', 'm1', 'A@example.com'), ('email.sent', 'm1', 'b@example.com'), ('email.sent', 'M1', 'a@EXAMPLE.com'), ('email.sent', NULL, ''), ('email.sent', NULL, NULL)`)
	dbtest.Eventually(t, "dispatched", func() bool { return b.count(t, "SELECT count(*) FROM mailhook.deliveries") == 15 })
	for ordering, want := range map[string]string{"none": "0 keys, 0 blocked", "message": "2 keys, 1 blocked", "recipient": "2 keys, 1 blocked"} {
		got := dbtest.QueryOne[string](t, b.DB, `SELECT format('%s keys, %s blocked', count(DISTINCT d.order_key), count(*) FILTER (WHERE d.next_attempt_at = 'infinity'))
			FROM mailhook.deliveries AS d JOIN mailhook.subscriptions AS s ON s.id = d.subscription_id WHERE s.ordering = $1`, ordering)
		if got != want {
			t.Errorf("%s: %s, want %s", ordering, got, want)
		}
	}
}

// Deliveries that wait lose their order with their subscription.
func TestWithoutOrderNothingIsBlocked(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.subscribe(t, "/", "email", "ordering = 'recipient'", "retry_schedule = '{1h}'")
	var once sync.Once
	b.answerWith(func(w http.ResponseWriter, _ receiver.Receipt) {
		once.Do(func() { w.WriteHeader(http.StatusInternalServerError) })
	})
	b.run(t, b.config())
	b.emitQueues(t, 1, 20)
	dbtest.Eventually(t, "the head has failed", func() bool {
		return b.count(t, "SELECT count(*) FROM mailhook.deliveries WHERE next_attempt_at < 'infinity' AND attempt = 1") == 1
	})
	if n := b.ended(t, "delivered"); n != 0 {
		t.Errorf("%d went ahead", n)
	}
	b.Exec(t, "UPDATE mailhook.subscriptions SET ordering = 'none' WHERE id = $1", id)
	dbtest.Eventually(t, "the others are through", func() bool { return b.ended(t, "delivered") == 19 })
}

// A replay goes in order, too, behind what is unfinished.
func TestReplaysGoInOrder(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.subscribe(t, "/", "email", "ordering = 'recipient'", "retry_schedule = '{10ms}'", "retry_jitter = 0")
	b.Exec(t, "UPDATE mailhook.installation SET circuit_failures = 1000000")
	var mu sync.Mutex
	broken := true
	q := watchQueues(t, func(string, int, int) int {
		mu.Lock()
		defer mu.Unlock()
		if broken {
			return http.StatusInternalServerError
		}
		return http.StatusOK
	})
	b.answerWith(q.serve)
	b.run(t, b.config())
	b.emitQueues(t, 5, 4)
	dbtest.Eventually(t, "all are dead letters", func() bool { return b.ended(t, "exhausted") == 20 })
	for i, source := range []string{"exhausted", "all"} {
		mu.Lock()
		broken = false
		mu.Unlock()
		q.mu.Lock()
		clear(q.last)
		q.mu.Unlock()
		b.Exec(t, `INSERT INTO mailhook.replays (subscription_id, account_id, since, until, source, rate_per_second, matched)
			VALUES ($1, 'default', now() - interval '1 hour', now() + interval '1 hour', $2, 1000, 20)`, id, source)
		dbtest.Eventually(t, "the replay is through", func() bool { return b.ended(t, "delivered") == int64(20*(i+1)) })
	}
}

// Deliveries that are blocked for too long end, and those behind them go on.
func TestBlockedDeliveriesExpire(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.subscribe(t, "/", "email", "ordering = 'recipient'", "status = 'paused'")
	_, stop := b.run(t, b.config())
	b.emitQueues(t, 2, 10)
	dbtest.Eventually(t, "held", func() bool { return b.count(t, "SELECT count(*) FROM mailhook.deliveries") == 20 })
	stop()
	b.Exec(t, "UPDATE mailhook.deliveries SET created_at = now() - interval '8 days', next_attempt_at = CASE WHEN next_attempt_at < 'infinity' THEN now() - interval '8 days' ELSE 'infinity' END WHERE event_id <= 10")
	w := b.idleWorker(t, b.config())
	if n, err := w.q.ExpireBlocked(t.Context(), db.ExpireBlockedParams{MaxAge: 7 * 24 * time.Hour, MaxRows: smallBatch}); err != nil || n != 8 {
		t.Fatalf("%d blocked ones expired: %v", n, err)
	}
	if n, err := w.q.ExpireHeld(t.Context(), db.ExpireHeldParams{MaxAge: 7 * 24 * time.Hour, MaxHeld: 1000, MaxRows: smallBatch}); err != nil || n != 2 {
		t.Fatalf("%d heads expired: %v", n, err)
	}
	if n := b.count(t, "SELECT count(*) FROM mailhook.dead_letters AS l JOIN mailhook.attempts AS a ON a.delivery_id = l.id WHERE l.reason = 'expired' AND a.ended_reason = 'expired'"); n != 10 {
		t.Errorf("%d dead letters", n)
	}
	b.Exec(t, "UPDATE mailhook.subscriptions SET status = 'active' WHERE id = $1", id)
	b.run(t, b.config()) // its sweep finds that both keys have no head
	b.settled(t)
	if n := b.ended(t, "delivered"); n != 10 {
		t.Errorf("%d delivered", n)
	}
}

// Everything that a worker may leave behind when it is killed: heads under its lease, and keys whose head it had just
// recorded.
func TestTheOrderOfADeadWorkerGoesOn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.subscribe(t, "/", "email", "ordering = 'recipient'", "status = 'paused'")
	_, stop := b.run(t, b.config())
	b.emitQueues(t, 10, 5)
	dbtest.Eventually(t, "held", func() bool { return b.count(t, "SELECT count(*) FROM mailhook.deliveries") == 50 })
	stop()
	q := watchQueues(t, func(string, int, int) int { return http.StatusOK })
	b.answerWith(q.serve)
	w, _ := b.run(t, b.config())
	dbtest.Eventually(t, "its first sweep is over", func() bool { return !w.sweepAll.Load() && w.Ready() == nil })
	killed := uuid.New()
	b.Exec(t, "INSERT INTO mailhook.workers (id, hostname, pid, version) VALUES ($1, 'gone', 1, 'test')", killed)
	b.Exec(t, "UPDATE mailhook.deliveries SET leased_by = $1, lease_id = $1 WHERE next_attempt_at < 'infinity'", killed)
	b.Exec(t, "DELETE FROM mailhook.deliveries WHERE next_attempt_at < 'infinity' AND event_id <= 5")
	b.Exec(t, "UPDATE mailhook.subscriptions SET status = 'active' WHERE id = $1", id)
	if err := w.takeFrom(t.Context(), db.ListHeartbeatsRow{ID: killed}); err != nil {
		t.Fatal(err)
	}
	b.settled(t)
	if n := b.ended(t, "delivered"); n != 45 {
		t.Errorf("%d delivered", n)
	}
}

// A worker that is stopped while it has the turn holds up nobody's events: those in no order go as ever, and the others are made due.
func TestAHeldTurnHoldsUpNobody(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "/ordered", "email.sent", "ordering = 'recipient'")
	b.subscribe(t, "/free", "email.sent")
	tx, err := b.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tx.Rollback(context.Background()) })
	if _, err := tx.Exec(t.Context(), "SELECT pg_advisory_xact_lock($1)", int64(dispatchTurn)); err != nil {
		t.Fatal(err)
	}
	w, _ := b.run(t, b.config())
	dbtest.Eventually(t, "the worker knows of the order", w.state.ordered)
	b.Exec(t, "INSERT INTO mailhook.outbox (event_type, recipient) SELECT 'email.sent', 'r' || n % 3 FROM generate_series(1, 12) AS n")
	b.waitFor(t, 24)
}
