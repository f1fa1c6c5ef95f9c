package worker

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"mailhook/cmd/receiver"
	"mailhook/db"
	"mailhook/db/dbtest"
)

// count is the one number that a statement answers.
func (b *bundle) count(t *testing.T, sql string, args ...any) int64 {
	t.Helper()
	return dbtest.QueryOne[int64](t, b.DB, sql, args...)
}

// A gauge keeps the most requests that were under way at one time.
type gauge struct {
	mu        sync.Mutex
	now, most int
}

func (g *gauge) enter() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.now++
	g.most = max(g.most, g.now)
}

func (g *gauge) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.now--
}

func (g *gauge) reset() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.most = g.now
}

func (g *gauge) peak() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.most
}

// An endpoint dies, its circuit opens, one request at a time asks for it; when it is back, what was held arrives oldest
// first at the bounded rate. Another subscription of the account is told, the dead one and * are not.
func TestTheCircuitOpensHoldsAndRecovers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.Exec(t, "UPDATE mailhook.installation SET circuit_failures = 5, circuit_after = '0 s', probe_pause = '200 ms', longest_probe_pause = '400 ms', release_rate = 50")
	id := b.subscribe(t, "/dying", "email,subscription", "retry_schedule = '{1h}'", "name = 'dying'")
	b.subscribe(t, "/star", "*", "filter_bridge = '{none}'")
	b.subscribe(t, "/told", "subscription.failing,subscription.recovered")
	var dead atomic.Bool
	var under gauge
	dead.Store(true)
	b.answerWith(func(w http.ResponseWriter, r receiver.Receipt) {
		if r.Path == "/dying" {
			under.enter()
			defer under.leave()
			if dead.Load() {
				w.WriteHeader(http.StatusInternalServerError)
			}
		}
	})
	b.run(t, b.config())
	b.Exec(t, "SELECT mailhook.emit('email.sent') FROM generate_series(1, 5)")
	open := "SELECT count(*) FROM mailhook.subscription_health WHERE subscription_id = $1 AND opened_at IS NOT NULL"
	dbtest.Eventually(t, "the circuit opens", func() bool { return b.count(t, open, id) == 1 })

	under.reset()
	b.Exec(t, "SELECT mailhook.emit('email.sent') FROM generate_series(1, 100)")
	dbtest.Eventually(t, "held, as the view says", func() bool {
		return b.count(t, "SELECT count(*) FROM mailhook.unfinished_deliveries WHERE status = 'held' AND held_reason = 'circuit'") > 100
	})
	dbtest.Eventually(t, "probes fail", func() bool {
		return b.count(t, "SELECT failed_probes FROM mailhook.subscription_health WHERE subscription_id = $1", id) >= 3
	})
	if under.peak() > 1 {
		t.Errorf("%d requests at one time while the circuit was open", under.peak())
	}
	if touched := b.count(t, "SELECT count(*) FROM mailhook.deliveries WHERE event_id > 5 AND attempt > 0"); touched > 20 {
		t.Errorf("%d of 100 held deliveries have burned an attempt", touched)
	}

	b.mu.Lock()
	before := len(b.receipts)
	b.mu.Unlock()
	dead.Store(false)
	waiting := int(b.count(t, "SELECT count(*) FROM mailhook.deliveries WHERE attempt = 0 AND subscription_id = $1", id))
	dbtest.Eventually(t, "all that was held is delivered", func() bool {
		return b.count(t, "SELECT count(*) FROM mailhook.deliveries WHERE attempt = 0") == 0
	})
	b.waitFor(t, before+waiting)
	b.checkRelease(t, before, 50)
	if n := b.count(t, open, id); n != 0 {
		t.Error("the circuit is still open")
	}
	dbtest.Eventually(t, "the release is over", func() bool {
		return b.count(t, "SELECT count(*) FROM mailhook.subscription_health WHERE release_before IS NOT NULL") == 0
	})
	b.checkTold(t)
}

// checkRelease checks the requests to /dying from number n on: oldest first, and never more in a time than the rate
// allows. A claim may release a second's worth at once.
func (b *bundle) checkRelease(t *testing.T, n, rate int) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	var at []time.Time
	var ids []string
	for _, r := range b.receipts[n:] {
		if r.Path == "/dying" {
			at, ids = append(at, r.At), append(ids, r.ID)
		}
	}
	slices.SortFunc(at, time.Time.Compare)
	if took, least := at[len(at)-1].Sub(at[0]), time.Duration(len(at)-2*rate)*time.Second/time.Duration(rate); took < least {
		t.Errorf("%d were released within %v, at %d a second", len(at), took, rate)
	}
	// Requests of one claim overtake each other: what is checked is the order of claims, of which each has 50 at most.
	for i := range ids {
		if i >= rate && ids[i] < ids[i-rate] && i > 1 {
			t.Errorf("request %d is for an older event than number %d", i, i-rate)
		}
	}
}

func (b *bundle) checkTold(t *testing.T) {
	t.Helper()
	var told []string
	dbtest.Eventually(t, "failing and recovered are told", func() bool {
		told = nil
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, r := range b.receipts {
			var body struct {
				Type string
				Data struct {
					SubscriptionID      string `json:"subscription_id"`
					Name, Since         string
					ConsecutiveFailures int    `json:"consecutive_failures"`
					LastOutcome         string `json:"last_outcome"`
				}
			}
			if err := json.Unmarshal(r.Body, &body); err != nil || body.Type == "email.sent" {
				continue
			}
			if r.Path != "/told" {
				t.Errorf("%s got %s", r.Path, r.Body)
			}
			if body.Data.Name != "dying" || body.Data.ConsecutiveFailures < 5 || body.Data.SubscriptionID[:4] != "sub_" || len(body.Data.Since) != len("2024-01-15T10:30:00.000Z") {
				t.Errorf("%s", r.Body)
			}
			told = append(told, body.Type+" "+body.Data.LastOutcome)
		}
		return len(told) >= 2
	})
	if !slices.Equal(told, []string{"subscription.failing http_5xx", "subscription.recovered ok"}) {
		t.Error(told)
	}
}

// Retry-After with 503 is for the endpoint: nothing goes there before it, and then not all at once.
func TestRetryAfterSlowsTheEndpoint(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "/", "email", "retry_schedule = '{1s}'", "max_in_flight = 8")
	var refused atomic.Int64 // when, in nanoseconds
	var early atomic.Int64
	b.answerWith(func(w http.ResponseWriter, r receiver.Receipt) {
		if refused.CompareAndSwap(0, r.At.UnixNano()) {
			w.Header().Set("Retry-After", "2")
			w.WriteHeader(http.StatusServiceUnavailable)
		} else if r.At.UnixNano() < refused.Load()+int64(1900*time.Millisecond) {
			early.Add(1)
		}
	})
	b.run(t, b.config())
	b.Exec(t, "SELECT mailhook.emit('email.sent')")
	dbtest.Eventually(t, "asked to wait", func() bool {
		return b.count(t, "SELECT count(*) FROM mailhook.subscription_health WHERE wait_until IS NOT NULL AND in_flight_limit = 4") == 1
	})
	b.Exec(t, "SELECT mailhook.emit('email.sent') FROM generate_series(1, 10)")
	b.settled(t)
	if early.Load() > 0 {
		t.Errorf("%d requests came before Retry-After was over", early.Load())
	}
	if n := b.count(t, "SELECT count(*) FROM mailhook.attempts WHERE ended_as = 'delivered'"); n != 11 {
		t.Errorf("%d delivered", n)
	}
}

// Nothing but failures for days: suspended when a schedule ends, and by a failed probe while the circuit holds the rest.
func TestFailingForDaysSuspends(t *testing.T) {
	t.Parallel()
	for name, set := range map[string]string{
		"a schedule ends": "UPDATE mailhook.subscription_health SET first_failed_at = now() - interval '6 days', consecutive_failures = 1",
		"a probe fails":   "UPDATE mailhook.subscription_health SET opened_at = now() - interval '6 days', open_until = now()",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.answerWith(fail(500))
			schedule := "{1h}"
			if name == "a probe fails" {
				schedule = "{1h,1h}"
			}
			id := b.subscribe(t, "/", "email", "retry_schedule = '"+schedule+"'")
			b.run(t, b.config())
			b.Exec(t, "SELECT mailhook.emit('email.sent')")
			dbtest.Eventually(t, "failed once", func() bool { return b.count(t, "SELECT count(*) FROM mailhook.subscription_health") == 1 })
			b.Exec(t, set)
			b.Exec(t, "UPDATE mailhook.deliveries SET next_attempt_at = now()")
			dbtest.Eventually(t, "suspended", func() bool {
				return dbtest.QueryOne[string](t, b.DB, "SELECT concat_ws(' ', status, status_reason) FROM mailhook.subscriptions WHERE id = $1", id) == "suspended failing"
			})
			if n := b.count(t, `SELECT count(*) FROM (SELECT event_type FROM mailhook.outbox UNION ALL SELECT event_type FROM mailhook.events) AS e WHERE event_type = 'subscription.suspended'`); n != 1 {
				t.Errorf("%d events tell of it", n)
			}
		})
	}
}

// More than the bound is held: the oldest become dead letters, with the reason.
func TestHoldingIsBounded(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.subscribe(t, "/", "email", "status = 'paused'")
	b.waiting(t, id, 30, 1)
	b.Exec(t, "UPDATE mailhook.deliveries SET next_attempt_at = now() - event_id * interval '1 second'")
	b.Exec(t, "UPDATE mailhook.deliveries SET next_attempt_at = now() - interval '8 days' WHERE event_id > 28")
	c := b.config()
	c.Retention.MaxHeld = 20
	w := b.idleWorker(t, c)
	n, err := w.q.ExpireHeld(t.Context(), db.ExpireHeldParams{MaxAge: c.Retention.Held, MaxHeld: int32(c.Retention.MaxHeld), MaxRows: smallBatch})
	if err != nil || n != 10 {
		t.Fatal(n, err)
	}
	got := dbtest.QueryOne[string](t, b.DB, `SELECT concat_ws(' ', count(*), min(l.event_id), count(*) FILTER (WHERE l.reason = 'expired' AND a.ended_reason = 'expired' AND l.event_id > 28),
		count(*) FILTER (WHERE l.reason = 'overflow' AND a.ended_reason = 'overflow')) FROM mailhook.dead_letters AS l JOIN mailhook.attempts AS a ON a.delivery_id = l.id`)
	if got != "10 21 2 8" {
		t.Error(got)
	}
}

// max_in_flight holds while workers come and go, of single requests and of those with batches: 5 is no multiple of 2 or 3.
func TestTheCapHoldsWhileWorkersComeAndGo(t *testing.T) {
	t.Parallel()
	for name, batch := range map[string]string{"single": "batch_max_events = NULL", "batches": "batch_max_events = 4, batch_max_wait = '0s'"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.subscribe(t, "/", "email.sent", "max_in_flight = 5", "timeout = '60 s'", batch)
			var under gauge
			gate := make(chan struct{})
			b.answerWith(func(http.ResponseWriter, receiver.Receipt) {
				under.enter()
				defer under.leave()
				<-gate
			})
			open := func(n int) {
				for range n {
					gate <- struct{}{}
				}
			}
			b.run(t, b.config())
			b.Exec(t, "SELECT mailhook.emit('email.sent') FROM generate_series(1, 400)")
			dbtest.Eventually(t, "the first has all of it", func() bool { return under.peak() == 5 })
			_, stop := b.run(t, b.config())
			b.waitForWorkers(t, 2)
			open(40)
			b.run(t, b.config())
			b.run(t, b.config()) // two at once
			b.waitForWorkers(t, 4)
			open(40)
			go stop()
			close(gate) // of the batches nobody knows how many are left
			b.settled(t)
			if under.peak() != 5 {
				t.Errorf("%d requests at one time, the cap is 5", under.peak())
			}
			shares := b.count(t, `SELECT sum(mailhook.in_flight_share(5, s.id, crew.workers, w.id)) FROM mailhook.subscriptions AS s, mailhook.workers AS w,
				(SELECT array_agg(id) AS workers FROM mailhook.workers) AS crew`)
			if shares != 5 {
				t.Errorf("the shares add up to %d", shares)
			}
		})
	}
}

// A worker that joins takes of a cap what is left when all others have their shares, or what they have already where that is more: those
// with more end requests, and those with less begin some, in any order.
func TestANewWorkerLeavesTheOthersTheirShares(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.subscribe(t, "/", "email.sent", "max_in_flight = 5")
	crew := []*Worker{b.idleWorker(t, b.config()), b.idleWorker(t, b.config()), b.idleWorker(t, b.config())}
	joins := crew[2]
	b.waiting(t, id, 30, 1)
	b.emit(t, 1600) // a hundred for each dispatch
	for n := range 16 {
		want := int64(5)
		for i, held := range []int64{int64(n % 4), int64(n / 4)} {
			b.Exec(t, `UPDATE mailhook.deliveries SET leased_by = $1, lease_id = gen_random_uuid() WHERE id IN (
				SELECT id FROM mailhook.deliveries WHERE leased_by IS NULL LIMIT $2)`, crew[i].identity.get(), held)
			want -= max(held, b.count(t, "SELECT mailhook.in_flight_share(5, $1, (SELECT array_agg(id) FROM mailhook.workers), $2)", id, crew[i].identity.get()))
		}
		for by, lease := range map[string]func(){"claim": func() { b.claimAsNew(t, joins) }, "dispatch": func() { b.dispatchAsNew(t, joins) }} {
			lease()
			if got := b.count(t, "SELECT count(*) FROM mailhook.deliveries WHERE leased_by = $1", joins.identity.get()); got != max(0, want) {
				t.Errorf("the others have %d and %d: %s leased %d, not %d", n%4, n/4, by, got, want)
			}
			b.Exec(t, "UPDATE mailhook.deliveries SET leased_by = NULL, lease_id = NULL WHERE leased_by = $1", joins.identity.get())
		}
		b.Exec(t, "UPDATE mailhook.deliveries SET leased_by = NULL, lease_id = NULL")
	}
}

// claimAsNew claims for a worker that has just joined.
func (b *bundle) claimAsNew(t *testing.T, w *Worker) []db.ClaimRow {
	t.Helper()
	rows, err := w.q.Claim(t.Context(), db.ClaimParams{
		MaxSteps: claimSteps, MaxOfEach: claimOfEach, FreeSlots: 100, FreeBatched: 100, MaxBytes: batchBytes, WorkerID: w.identity.get(), LeaseID: uuid.New(),
		IsNew: true, InFlight: []byte("{}"), UrgentInFlight: []byte("{}"), Limits: []byte("{}"),
	})
	if err != nil {
		t.Fatal(err)
	}
	return rows
}

// dispatchAsNew dispatches for a worker that has just joined.
func (b *bundle) dispatchAsNew(t *testing.T, w *Worker) []db.DispatchRow {
	t.Helper()
	rows, err := w.q.Dispatch(t.Context(), db.DispatchParams{
		Holes: []int64{}, MaxRows: 100, MaxBytes: batchBytes, FreeSlots: 100, FreeBatched: 100, WorkerID: w.identity.get(), LeaseID: uuid.New(), IDPrefix: idPrefix(),
		IsNew: true, InFlight: []byte("{}"), UrgentInFlight: []byte("{}"), Limits: []byte("{}"),
	})
	if err != nil {
		t.Fatal(err)
	}
	return rows
}

// A worker that joins waits for what leases since before it was known, for it does not count with it; not for what began later.
func TestANewWorkerWaitsForStatementsUnderWay(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.idleWorker(t, b.config())
	lease := func() pgx.Tx {
		tx, err := b.Pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(t.Context(), "UPDATE mailhook.deliveries SET leased_by = NULL WHERE false"); err != nil {
			t.Fatal(err)
		}
		return tx
	}
	before := lease()
	defer before.Rollback(t.Context())
	w := b.idleWorker(t, b.config())
	settled := make(chan struct{})
	go func() {
		defer close(settled)
		w.settle(t.Context())
	}()
	asked := map[time.Time]bool{}
	asks := func(times int) {
		dbtest.Eventually(t, fmt.Sprintf("it has asked %d times", times), func() bool {
			at := dbtest.QueryOne[*time.Time](t, b.DB, `SELECT max(query_start) FROM pg_stat_activity
				WHERE datname = current_database() AND application_name = 'mailhook worker' AND query LIKE '%ListWriters%'`)
			if at != nil {
				asked[*at] = true
			}
			select {
			case <-settled:
				t.Fatal("it did not wait")
			default:
			}
			return len(asked) >= times
		})
	}
	asks(1)
	later := lease()
	defer later.Rollback(t.Context())
	asks(3)
	before.Rollback(t.Context())
	<-settled
	if err := later.Commit(t.Context()); err != nil { // it is open yet
		t.Error(err)
	}
}

// Endpoints that never answer take half of the slots at most, once they are known.
func TestSlowEndpointsLeaveSlotsToOthers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	hang := make(chan struct{})
	b.answerWith(func(_ http.ResponseWriter, r receiver.Receipt) {
		if r.Path != "/well" {
			<-hang
		}
	})
	defer close(hang)
	for range 10 {
		b.subscribe(t, "/hangs", "email.opened", "timeout = '60 s'")
	}
	b.subscribe(t, "/well", "email.clicked")
	c := b.config()
	c.MaxInFlight = 40
	c.Grace = 0
	w, _ := b.run(t, c)
	b.Exec(t, "SELECT mailhook.emit('email.opened')")
	dbtest.Eventually(t, "ten are known as slow", func() bool { return len(w.leases.load(40, true).limits) > 10*40 })
	b.Exec(t, "SELECT mailhook.emit('email.opened') FROM generate_series(1, 100)")
	dbtest.Eventually(t, "they have their half", func() bool { return w.leases.held() == 20 })
	b.Exec(t, "SELECT mailhook.emit('email.clicked') FROM generate_series(1, 100)")
	dbtest.Eventually(t, "the others go on", func() bool {
		return b.count(t, "SELECT count(*) FROM mailhook.attempts WHERE event_type = 'email.clicked' AND ended_as = 'delivered'") == 100
	})
}

// A rate below one a second releases, too: one at a time.
func TestAReleaseAtASlowRate(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.subscribe(t, "/", "email", "status = 'paused'", "rate_limit_per_second = 1")
	b.waiting(t, id, 3, 1)
	b.Exec(t, "UPDATE mailhook.subscriptions SET status = 'active'")
	b.Exec(t, "INSERT INTO mailhook.subscription_health (subscription_id, release_before, released_at) VALUES ($1, now(), now())", id)
	b.run(t, b.config())
	b.settled(t)
}

// A release has no more of a rate limit under way than half of it: the other half is for what is new.
func TestAReleaseLeavesHalfOfARateLimit(t *testing.T) {
	t.Parallel()
	for inFlight, want := range map[int]int{0: 10, 6: 4, 15: 1} {
		b := setup(t)
		w := b.idleWorker(t, b.config())
		id := b.subscribe(t, "/", "email.sent", "max_in_flight = 100", "rate_limit_per_second = 20")
		b.waiting(t, id, 50, 1)
		b.Exec(t, "INSERT INTO mailhook.subscription_health (subscription_id, release_before, released_at) VALUES ($1, now(), now() - interval '1 minute')", id)
		_, err := w.genericQ.Claim(t.Context(), db.ClaimParams{
			WorkerID: w.identity.get(), LeaseID: uuid.New(), MaxSteps: claimSteps, MaxOfEach: claimOfEach, FreeSlots: 500, MaxBytes: batchBytes,
			InFlight: fmt.Appendf(nil, `{"%s": %d}`, id, inFlight), UrgentInFlight: []byte(`{}`), Limits: []byte(`{}`),
		})
		if err != nil {
			t.Fatal(err)
		}
		if n := b.count(t, "SELECT count(*) FROM mailhook.deliveries WHERE lease_id IS NOT NULL"); n != int64(want) {
			t.Errorf("%d are released beside %d, not %d", n, inFlight, want)
		}
	}
}
