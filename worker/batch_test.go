package worker

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"mailhook/cmd/receiver"
	"mailhook/db"
	"mailhook/db/dbtest"
	"mailhook/db/format"
)

// emit commits n events in one statement, numbered from 1 in their data.
func (b *bundle) emit(t *testing.T, n int) {
	t.Helper()
	b.Exec(t, "INSERT INTO mailhook.outbox (event_type, data) SELECT 'email.sent', json_build_object('n', n) FROM generate_series(1, $1::int) AS n", n)
}

// waitForEvents waits until at least n events have been answered with a success, and answers the receipts.
func (b *bundle) waitForEvents(t *testing.T, n int64) []receiver.Receipt {
	t.Helper()
	dbtest.Eventually(t, fmt.Sprintf("%d events are delivered", n), func() bool {
		return dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.attempts WHERE ended_as = 'delivered'") >= n
	})
	return b.waitFor(t, 1)
}

// sizes are the numbers of events of requests, and checks each of them.
func sizes(t *testing.T, receipts []receiver.Receipt) (sizes []int) {
	t.Helper()
	for _, r := range receipts {
		if r.Problem != nil {
			t.Error(r.Problem)
		}
		if !slices.IsSorted(r.Events) || !strings.HasPrefix(r.ID, "bat_") || len(r.ID) != 36 || r.ID[16] != '7' || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s, %s: %v", r.ID, r.Header.Get("Content-Type"), r.Events)
		}
		sizes = append(sizes, len(r.Events))
	}
	return sizes
}

// eachOnce says whether every one of n events came in exactly one of the requests that succeeded.
func eachOnce(t *testing.T, receipts []receiver.Receipt, succeeded func(receiver.Receipt) []string, n int) {
	t.Helper()
	came := map[string]int{}
	for _, r := range receipts {
		for _, id := range succeeded(r) {
			came[id]++
		}
	}
	for id, times := range came {
		if times != 1 {
			t.Errorf("%s was delivered %d times", id, times)
		}
	}
	if len(came) != n {
		t.Errorf("%d of %d events were delivered", len(came), n)
	}
}

const longWait = "batch_max_wait = '60s'"

// A batch goes when it is full; what is left goes when its time has come, or the worker stops.
func TestBatchesBySize(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "/", "email", "batch_max_events = 10, "+longWait)
	_, stop := b.run(t, b.config())
	b.emit(t, 25)
	receipts := b.waitForEvents(t, 20)
	if got := sizes(t, receipts); !slices.Equal(got, []int{10, 10}) {
		t.Fatalf("batches of %v", got)
	}
	// The five wait: nothing else has come, and they are leased.
	if n := dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.deliveries WHERE lease_id IS NOT NULL"); n != 5 {
		t.Errorf("%d wait", n)
	}
	stop()
	receipts = b.waitFor(t, 3)
	if got := sizes(t, receipts); !slices.Equal(got, []int{10, 10, 5}) {
		t.Errorf("batches of %v", got)
	}
	eachOnce(t, receipts, func(r receiver.Receipt) []string { return r.Events }, 25)
	b.settled(t)
}

// Events that come one by one within the wait go together; without a wait each goes at once, also as an array.
func TestBatchesByTime(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "/waits", "email", "batch_max_events = 1000, batch_max_wait = '20s'")
	b.subscribe(t, "/at-once", "email", "batch_max_events = 1000, batch_max_wait = '0s'")
	b.run(t, b.config())
	for n := range 3 {
		b.emit(t, 1)
		dbtest.Eventually(t, "it came at once", func() bool {
			came := 0
			for _, r := range b.waitFor(t, 1) {
				if r.Path == "/at-once" {
					came++
				}
			}
			return came == n+1
		})
	}
	b.settled(t)
	bySize := map[string][]int{}
	for _, r := range b.waitFor(t, 4) {
		bySize[r.Path] = append(bySize[r.Path], sizes(t, []receiver.Receipt{r})...)
	}
	if !slices.Equal(bySize["/at-once"], []int{1, 1, 1}) {
		t.Errorf("at once: %v", bySize["/at-once"])
	}
	if !slices.Equal(bySize["/waits"], []int{3}) {
		t.Errorf("after a wait: %v", bySize["/waits"])
	}
}

// The body is bounded, whatever the number of events allows.
func TestBatchesByBytes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "/", "email", "batch_max_events = 1000, batch_max_wait = '0s'")
	b.run(t, b.config())
	b.Exec(t, "INSERT INTO mailhook.outbox (event_type, data) SELECT 'email.sent', json_build_object('x', repeat('x', 100000)) FROM generate_series(1, 30)")
	b.Exec(t, "INSERT INTO mailhook.outbox (event_type, data) SELECT 'email.sent', json_build_object('x', repeat('x', 262000)) FROM generate_series(1, 4)")
	b.settled(t)
	receipts := b.waitFor(t, 1)
	sizes(t, receipts)
	most := 0
	for _, r := range receipts {
		most = max(most, len(r.Body))
	}
	if most > 768<<10 || most < 600_000 {
		t.Errorf("the largest body has %d bytes", most)
	}
	eachOnce(t, receipts, func(r receiver.Receipt) []string { return r.Events }, 34)
}

// retrying is a schedule of short delays, with jitter.
const retrying = "retry_schedule = array_fill('1s'::interval, '{20}'), retry_jitter = 0.5"

// A batch that failed comes again as it was, under the same id, also from another worker.
func TestAFailedBatchComesAgainAsItWas(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.answerWith(func(w http.ResponseWriter, r receiver.Receipt) { w.WriteHeader(http.StatusInternalServerError) })
	id := b.subscribe(t, "/", "email", "batch_max_events = 300, "+longWait, "retry_schedule = '{1h}', retry_jitter = 0.5")
	_, stop := b.run(t, b.config())
	b.emit(t, 600)
	dbtest.Eventually(t, "both are put off", func() bool {
		return dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.deliveries WHERE lease_id IS NULL AND attempt = 1") == 600
	})
	stop()
	if n := dbtest.QueryOne[int64](t, b.DB, "SELECT count(DISTINCT batch_id) FROM mailhook.deliveries"); n != 2 {
		t.Errorf("%d compositions", n)
	}
	// Two workers race for them, beside what is new.
	b.answerWith(nil)
	b.Exec(t, "UPDATE mailhook.subscriptions SET batch_max_wait = '0s' WHERE id = $1", id)
	b.Exec(t, "UPDATE mailhook.deliveries SET next_attempt_at = next_attempt_at - interval '2 hours'")
	first := b.waitFor(t, 2)
	b.run(t, b.config())
	b.run(t, b.config())
	b.emit(t, 10)
	b.settled(t)
	again := b.waitFor(t, 4)
	sizes(t, again)
	for _, r := range first[:2] {
		same := slices.IndexFunc(again[2:], func(o receiver.Receipt) bool { return o.ID == r.ID && string(o.Body) == string(r.Body) })
		if same < 0 {
			t.Errorf("the batch %s of %d did not come again", r.ID, len(r.Events))
		}
	}
	eachOnce(t, again[2:], func(r receiver.Receipt) []string { return r.Events }, 610)
}

// The circuit counts requests, not what was in them.
func TestAFailedBatchIsOneFailure(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.answerWith(func(w http.ResponseWriter, _ receiver.Receipt) { w.WriteHeader(http.StatusInternalServerError) })
	b.subscribe(t, "/", "email", "batch_max_events = 1000, "+longWait, "retry_schedule = '{1h}'")
	b.run(t, b.config())
	b.emit(t, 2000)
	dbtest.Eventually(t, "both are put off", func() bool {
		return dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.deliveries WHERE lease_id IS NULL AND attempt = 1") == 2000
	})
	if n := dbtest.QueryOne[int](t, b.DB, "SELECT consecutive_failures FROM mailhook.subscription_health"); n != len(b.waitFor(t, 2)) {
		t.Errorf("%d failures of 2 requests", n)
	}
}

// Paused while deliveries wait for others: nothing is sent, they are held, and nothing is lost.
func TestAPauseWhileABatchWaits(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.subscribe(t, "/", "email", "batch_max_events = 10, "+longWait)
	w, _ := b.run(t, b.config())
	b.emit(t, 9)
	dbtest.Eventually(t, "they wait", func() bool { return w.leases.held() == 9 })
	b.Exec(t, "UPDATE mailhook.subscriptions SET status = 'paused' WHERE id = $1", id)
	dbtest.Eventually(t, "the worker knows", func() bool { s := w.cache.get(id); return s != nil && !s.mayStart })
	w.batches.hurry()
	dbtest.Eventually(t, "they are given back", func() bool {
		return dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.deliveries WHERE lease_id IS NULL AND attempt = 0") == 9
	})
	b.Exec(t, "UPDATE mailhook.subscriptions SET status = 'active' WHERE id = $1", id)
	b.settled(t)
	if got := sizes(t, b.waitFor(t, 1)); !slices.Equal(got, []int{9}) {
		t.Errorf("batches of %v", got)
	}
}

// A worker that died had a batch to send again: who rescues it sends the same.
func TestTheBatchOfADeadWorker(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.answerWith(func(w http.ResponseWriter, _ receiver.Receipt) { w.WriteHeader(http.StatusInternalServerError) })
	id := b.subscribe(t, "/", "email", "batch_max_events = 50, "+longWait, "retry_schedule = '{1h}'")
	_, stop := b.run(t, b.config())
	b.emit(t, 50)
	dbtest.Eventually(t, "put off", func() bool {
		return dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.deliveries WHERE attempt = 1 AND lease_id IS NULL") == 50
	})
	stop()
	b.answerWith(nil)
	b.Exec(t, "UPDATE mailhook.subscriptions SET batch_max_wait = '0s' WHERE id = $1", id)
	b.Exec(t, "UPDATE mailhook.deliveries SET next_attempt_at = now()")
	dead := uuid.New()
	b.Exec(t, "INSERT INTO mailhook.workers (id, hostname, pid, version) VALUES ($1, 'gone', 1, 'test')", dead)
	b.leaseTo(t, dead, uuid.New())
	if row, err := db.New(b.Pool).RescueWorker(t.Context(), db.RescueWorkerParams{ID: dead}); err != nil || row.Freed != 50 {
		t.Fatal(row, err)
	}
	b.run(t, b.config())
	b.settled(t)
	receipts := b.waitFor(t, 2)
	if got := sizes(t, receipts); !slices.Equal(got, []int{50, 50}) || receipts[0].ID != receipts[1].ID {
		t.Errorf("batches of %v, %s and %s", got, receipts[0].ID, receipts[1].ID)
	}
}

// max_in_flight bounds requests also where each carries little; deliveries that wait for a slot come together.
func TestRequestsWithBatchesAreBounded(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "/", "email", "max_in_flight = 2, batch_max_events = 100, batch_max_wait = '0s', timeout = '60s'")
	under, most, release := 0, 0, make(chan struct{})
	b.answerWith(func(http.ResponseWriter, receiver.Receipt) {
		b.mu.Lock()
		under++
		most = max(most, under)
		b.mu.Unlock()
		<-release
		b.mu.Lock()
		under--
		b.mu.Unlock()
	})
	w, _ := b.run(t, b.config())
	for n := range 20 {
		b.emit(t, 1)
		dbtest.Eventually(t, "it is here", func() bool { return w.leases.held() == n+1 })
	}
	dbtest.Eventually(t, "two have come", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return under == 2
	})
	close(release)
	b.settled(t)
	receipts := b.waitFor(t, 3)
	if most != 2 || len(receipts) > 4 {
		t.Errorf("%d requests at one time, %v", most, sizes(t, receipts))
	}
	eachOnce(t, receipts, func(r receiver.Receipt) []string { return r.Events }, 20)
}

// A worker that has just joined begins no request with a batch that the cap has no room for, beside what was begun before it came.
func TestBatchesOfANewWorkerKeepTheCap(t *testing.T) {
	t.Parallel()
	for elsewhere := range 8 {
		t.Run(fmt.Sprintf("%d elsewhere", elsewhere), func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			id := b.subscribe(t, "/", "email", "max_in_flight = 5, batch_max_events = 4, batch_max_wait = '0s'")
			other, w := b.idleWorker(t, b.config()), b.idleWorker(t, b.config())
			b.waiting(t, id, elsewhere, 1)
			b.Exec(t, "UPDATE mailhook.deliveries SET leased_by = $1, lease_id = gen_random_uuid()", other.identity.get())
			b.waiting(t, id, 40, 1)
			b.emit(t, 40)
			most := max(0, min(3, 5-elsewhere)) // its share of the cap is 2 or 3
			check := func(by string, deliveries, requests int) {
				t.Helper()
				if deliveries > 4*most || deliveries > 0 && requests > most || deliveries == 0 && most > 0 {
					t.Errorf("%s: %d deliveries in %d requests, at most %d", by, deliveries, requests, most)
				}
			}
			claimed := b.claimAsNew(t, w)
			requests, n := 0, 0
			for _, row := range claimed {
				if row.DeliveryID != nil {
					requests, n = int(row.Requests), n+1
				}
			}
			check("claim", n, requests)
			b.Exec(t, "UPDATE mailhook.deliveries SET leased_by = NULL, lease_id = NULL WHERE leased_by = $1", w.identity.get())
			listed := listedOf(b.dispatchAsNew(t, w))
			check("dispatch", len(listed.DeliveryIDs), int(listed.BatchingRequests[0]))
		})
	}
}

// A subscription that turns from single requests to batches and back, while events come: each comes once.
func TestBatchesThatComeAndGo(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.subscribe(t, "/", "email")
	b.run(t, b.config())
	const rounds, each = 20, 50
	for n := range rounds {
		set := "batch_max_events = 10, batch_max_wait = '0s'"
		if n%2 == 1 {
			set = "batch_max_events = NULL, batch_max_wait = NULL"
		}
		b.Exec(t, "UPDATE mailhook.subscriptions SET "+set+" WHERE id = $1", id)
		b.emit(t, each)
	}
	b.settled(t)
	eachOnce(t, b.waitFor(t, 1), func(r receiver.Receipt) []string { return r.Events }, rounds*each)
}

// requestsOf counts the requests that have a slot.
func requestsOf(w *Worker) int {
	w.leases.mu.Lock()
	defer w.leases.mu.Unlock()
	return w.leases.deliveries + w.leases.requests
}

// What is under way when batches begin or end counts: the cap holds over it.
func TestTheCapHoldsWhileBatchesComeAndGo(t *testing.T) {
	t.Parallel()
	const batches, none = "batch_max_events = 2, batch_max_wait = '0s'", "batch_max_events = NULL, batch_max_wait = NULL"
	for name, set := range map[string][2]string{"come": {none, batches}, "go": {batches, none}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			id := b.subscribe(t, "/", "email.sent", "max_in_flight = 5", set[0])
			gate := make(chan struct{})
			var under gauge
			b.answerWith(func(http.ResponseWriter, receiver.Receipt) {
				under.enter()
				defer under.leave()
				<-gate
			})
			w, _ := b.run(t, b.config())
			b.emit(t, 10)
			dbtest.Eventually(t, "the cap is reached", func() bool { return under.peak() == 5 })
			b.Exec(t, "UPDATE mailhook.subscriptions SET "+set[1]+" WHERE id = $1", id)
			dbtest.Eventually(t, "it is seen", func() bool { return (w.cache.get(id).batch != nil) == (name == "come") })
			b.emit(t, 10)
			dbtest.Eventually(t, "they are dispatched", func() bool { return b.count(t, "SELECT count(*) FROM mailhook.outbox") == 0 })
			if name == "come" {
				dbtest.Eventually(t, "a batch has asked for a slot", func() bool {
					w.batches.mu.Lock()
					defer w.batches.mu.Unlock()
					return len(w.batches.behind) > 0 || requestsOf(w) > 5
				})
			}
			if n := requestsOf(w); n != 5 {
				t.Errorf("%d requests have slots", n)
			}
			close(gate)
			b.settled(t)
			if under.peak() != 5 {
				t.Errorf("%d requests at one time, the cap is 5", under.peak())
			}
		})
	}
}

// What was leased for a batch, of a subscription that takes none any more, goes back and gets a slot the next time.
func TestALeaseForBatchesThatAreOver(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := b.idleWorker(t, b.config())
	d := &delivery{id: uuid.New(), subscriptionID: b.subscribe(t, "/", "email"), requests: 1, event: &event{}}
	w.start(t.Context(), []*delivery{d})
	select {
	case r := <-w.returns:
		if r.delivery != d || r.delay != time.Second {
			t.Errorf("%v is given back for %v", r.delivery, r.delay)
		}
	default:
		t.Error("it is not given back")
	}
}

// A complaint goes in the next request, by itself, before what waits for a slot of its subscription.
func TestAnUrgentEventOvertakesBatches(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "/", "email", "max_in_flight = 1, batch_max_events = 10, batch_max_wait = '0s'")
	release := make(chan struct{})
	b.answerWith(func(http.ResponseWriter, receiver.Receipt) { <-release })
	w, _ := b.run(t, b.config())
	for n := range 9 { // a place of the ten is kept for the urgent
		b.emit(t, 1)
		dbtest.Eventually(t, "it is here", func() bool { return w.leases.held() == n+1 })
	}
	b.Exec(t, "SELECT mailhook.emit('email.complained')")
	dbtest.Eventually(t, "the complaint is here", func() bool {
		w.batches.mu.Lock()
		defer w.batches.mu.Unlock()
		for _, l := range w.batches.lines {
			return len(l.ripe) > 0 && l.ripe[0].key.isUrgent
		}
		return false
	})
	close(release)
	b.settled(t)
	receipts := b.waitFor(t, 3)
	if got := sizes(t, receipts); !slices.Equal(got[:2], []int{1, 1}) || !strings.Contains(string(receipts[1].Body), "email.complained") {
		t.Errorf("batches of %v, the second %s", got, receipts[1].Body)
	}
	eachOnce(t, receipts, func(r receiver.Receipt) []string { return r.Events }, 10)
}

// Dead endpoints with batches leave slots to those without, and to other batches.
func TestDeadEndpointsWithBatches(t *testing.T) {
	t.Parallel()
	b := setup(t)
	release := make(chan struct{})
	t.Cleanup(func() { close(release) })
	for range 10 {
		b.subscribe(t, "/dead", "email.sent", "max_in_flight = 100, batch_max_events = 5, batch_max_wait = '0s', timeout = '1s'")
	}
	b.subscribe(t, "/well", "email.opened", "batch_max_events = 10, batch_max_wait = '0s'")
	b.subscribe(t, "/single", "email.opened")
	b.answerWith(func(_ http.ResponseWriter, r receiver.Receipt) {
		if r.Path == "/dead" {
			<-release
		}
	})
	c := b.config()
	c.MaxInFlight = 20
	w, _ := b.run(t, c)
	b.emit(t, 200)
	dbtest.Eventually(t, "the dead are known as slow", func() bool { return len(w.leases.load(c.MaxInFlight, false).limits) > 40*8 })
	b.emit(t, 200)
	b.Exec(t, "INSERT INTO mailhook.outbox (event_type) SELECT 'email.opened' FROM generate_series(1, 100)")
	dbtest.Eventually(t, "the others have theirs", func() bool {
		return dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.attempts WHERE event_type = 'email.opened' AND ended_as = 'delivered'") == 200
	})
	w.leases.mu.Lock()
	defer w.leases.mu.Unlock()
	if n, requests := w.leases.slowWithRequests(time.Now()); requests > c.MaxInFlight/4 {
		t.Errorf("%d endpoints that are dead have %d requests under way, with %d slots", n, requests, c.MaxInFlight)
	}
}

// Slow subscriptions with batches that use all that slow ones may have: one that joins them has its part, and does not wait until the others
// have nothing more.
func TestASlowSubscriptionWithBatchesHasItsTurn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const backlog = 20
	first := b.subscribe(t, "/first", "email.sent", "batch_max_events = 1, batch_max_wait = '0s'")
	second := b.subscribe(t, "/second", "email.opened", "batch_max_events = 1, batch_max_wait = '0s'")
	b.answerWith(func(http.ResponseWriter, receiver.Receipt) { <-time.After(slowAfter + 100*time.Millisecond) }) // that is how slow they are
	c := b.config()
	c.MaxInFlight = 8 // two for slow ones
	b.run(t, c)
	b.Exec(t, "INSERT INTO mailhook.outbox (event_type) VALUES ('email.sent'), ('email.opened')")
	delivered := func(id uuid.UUID) int64 {
		return b.count(t, "SELECT count(*) FROM mailhook.attempts WHERE subscription_id = $1", id)
	}
	dbtest.Eventually(t, "both are known as slow", func() bool { return delivered(first) == 1 && delivered(second) == 1 })
	b.Exec(t, "INSERT INTO mailhook.outbox (event_type) SELECT 'email.sent' FROM generate_series(1, $1::int)", backlog)
	dbtest.Eventually(t, "the first is at it", func() bool { return delivered(first) > 3 })
	b.Exec(t, "INSERT INTO mailhook.outbox (event_type) VALUES ('email.opened')")
	dbtest.Eventually(t, "the second has its turn", func() bool { return delivered(second) == 2 })
	if n := delivered(first); n > backlog {
		t.Error("only when the first had nothing more")
	}
}

// A test send of a subscription with batches is an array of one.
func TestATestSendWithBatches(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.subscribe(t, "/", "email", "batch_max_events = 10, "+longWait)
	b.Exec(t, "INSERT INTO mailhook.test_deliveries (subscription_id, account_id, event_type) VALUES ($1, 'default', 'email.sent')", id)
	b.run(t, b.config())
	if r := b.waitFor(t, 1)[0]; r.Problem != nil || !r.Test || len(r.Events) != 1 || r.Body[0] != '[' {
		t.Errorf("%v: %s", r.Problem, r.Body)
	}
}

// What a batch is called: by its events and its subscription, at the time of the oldest.
func TestBatchID(t *testing.T) {
	t.Parallel()
	d, other := testDelivery(), testDelivery()
	other.event.id.ID = 2
	other.event.id.InsertedAt = time.UnixMilli(1 << 40)
	both := []*delivery{d, other}
	id := batchID(both)
	if id != batchID(both) || id == batchID(both[:1]) || id.Version() != 7 || id.Variant() != 1 || time.Unix(id.Time().UnixTime()).UnixMilli() != 0 {
		t.Errorf("%v", id)
	}
	other.subscriptionID[0] = 1
	d.subscriptionID[0] = 1
	if id == batchID(both) {
		t.Error("another subscription has the same")
	}
}

// Every format that has arrays, as its receivers verify and read it.
func TestBatchesOfEveryFormat(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var mu sync.Mutex
	came := map[string][]receiver.Receipt{}
	withArrays := 0
	for _, name := range format.Names("web") {
		f, _ := format.Find(name)
		if f.Arrays == format.NoArrays {
			continue
		}
		withArrays++
		server := httptest.NewServer(&receiver.Receiver{Format: name, Secret: func(string) string { return b.secret }, Answer: func(_ http.ResponseWriter, r receiver.Receipt) {
			mu.Lock()
			defer mu.Unlock()
			came[name] = append(came[name], r)
		}})
		t.Cleanup(server.Close)
		b.subscribe(t, "/", "email", "batch_max_events = 3, "+longWait, "format = '"+name+"'", "url = '"+server.URL+"'")
	}
	b.run(t, b.config())
	// Of mixed types.
	b.Exec(t, "INSERT INTO mailhook.outbox (event_type, recipient) SELECT x, 'r@example.com' FROM unnest(ARRAY['email.sent', 'email.opened', 'email.clicked']) AS x")
	b.settled(t)
	for name, receipts := range came {
		for _, r := range receipts {
			if r.Problem != nil || len(r.Events) != 3 || !strings.HasPrefix(r.ID, db.BatchPrefix) {
				t.Errorf("%s: %s, %d events, %v", name, r.ID, len(r.Events), r.Problem)
			}
		}
	}
	if len(came) != withArrays || withArrays < 3 {
		t.Errorf("%d of %d formats came", len(came), withArrays)
	}
}
