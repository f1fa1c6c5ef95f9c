package worker

import (
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"mailhook/cmd/receiver"
	"mailhook/db/dbtest"
)

func isUrgent(eventType string) bool {
	return eventType == "email.complained" || eventType == "email.unsubscribed" || strings.HasPrefix(eventType, "email.bounced")
}

// block lets requests of the ordinary lane wait for step, one for each value, until step is closed; urgent ones are answered at once.
func (b *bundle) block() (step chan struct{}) {
	step = make(chan struct{})
	b.answerWith(func(_ http.ResponseWriter, r receiver.Receipt) {
		if !isUrgent(r.Type) {
			<-step
		}
	})
	return step
}

// The slots are full of opens that nobody answers, and more wait in the outbox: what is urgent comes all the same, and is answered
// first.
func TestUrgentEventsPassTheOutbox(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "/", "email", "max_in_flight = 1000", "timeout = '60 s'")
	step := b.block()
	b.Exec(t, "INSERT INTO mailhook.outbox (event_type) SELECT 'email.opened' FROM generate_series(1, 2000)")
	c := b.config()
	c.MaxInFlight = 40
	w, _ := b.run(t, c)
	dbtest.Eventually(t, "opens have the slots that a dispatch may take", func() bool { return w.leases.held() >= 30 })
	b.Exec(t, `INSERT INTO mailhook.outbox (event_type, data) VALUES ('email.complained', NULL), ('email.unsubscribed', NULL), ('email.bounced.hard', NULL),
		('email.bounced', '{"bounce_type":"hard"}')`)
	for _, r := range b.waitFor(t, 4) { // nothing else is answered
		if !isUrgent(r.Type) {
			t.Errorf("%s came", r.Type)
		}
	}
	if n := b.count(t, "SELECT count(*) FROM mailhook.outbox"); n < 1000 {
		t.Errorf("%d events wait in the outbox: it has not passed them", n)
	}
	close(step)
	b.settled(t)
}

// A row that cannot be dispatched does not hold up the urgent ones beside it, and is quarantined.
func TestUrgentPoison(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "/", "email.complained")
	b.Exec(t, "CREATE FUNCTION public.choke() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN IF NEW.message_id = 'poison' THEN RAISE data_exception; END IF; RETURN NEW; END$$")
	b.Exec(t, "CREATE TRIGGER choke BEFORE INSERT ON mailhook.events FOR EACH ROW EXECUTE FUNCTION public.choke()")
	b.Exec(t, "INSERT INTO mailhook.outbox (event_type, message_id) SELECT 'email.complained', CASE n WHEN 3 THEN 'poison' END FROM generate_series(1, 5) AS n")
	w := b.idleWorker(t, b.config())
	l := newUrgentLane(w, t.Context())
	w.state.set(func(s *pulseState) {
		s.enabled, s.recording, s.beatAt, s.pulsedAt = true, true, time.Now(), time.Now()
	})
	for more := true; more; {
		var err error
		if more, err = l.look(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if dispatched, quarantined := b.count(t, "SELECT count(*) FROM mailhook.events"), b.count(t, "SELECT count(*) FROM mailhook.quarantine"); dispatched != 4 || quarantined != 1 {
		t.Errorf("%d dispatched, %d quarantined", dispatched, quarantined)
	}
}

// Of a subscription that takes one request at a time, opens wait before the complaint: for room, for their retries, for their
// release. The complaint is the newest, and comes before them.
func TestUrgentDeliveriesPassThoseThatWait(t *testing.T) {
	t.Parallel()
	const opens = 30
	for name, state := range map[string]string{
		"for room":      "UPDATE mailhook.deliveries SET attempt = 0",
		"for retries":   "UPDATE mailhook.deliveries SET attempt = 1, last_outcome = 'http_5xx'",
		"for a release": "INSERT INTO mailhook.subscription_health (subscription_id, release_before, released_at) SELECT id, now(), now() FROM mailhook.subscriptions",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			id := b.subscribe(t, "/", "email", "max_in_flight = 1", "retry_schedule = '{10ms,10ms}'")
			b.waiting(t, id, opens+1, 1)
			// The last of them, by id and by time.
			b.Exec(t, "UPDATE mailhook.events SET event_type = 'email.complained' WHERE id = $1", opens+1)
			b.Exec(t, "UPDATE mailhook.deliveries SET event_type = 'email.complained', next_attempt_at = now() - interval '1 second' WHERE event_id = $1", opens+1)
			b.Exec(t, state)
			b.run(t, b.config())
			receipts := b.waitFor(t, opens+1)
			// A claim in four goes by time, and a slot that one of them has taken is not free.
			if at := slices.IndexFunc(receipts, func(r receiver.Receipt) bool { return r.Type == "email.complained" }); at > 4 {
				t.Errorf("the complaint came as number %d of %d", at+1, len(receipts))
			}
		})
	}
}

// While a complaint waits for the one request that its subscription may have, no dispatch takes the room for an open, however many
// there are.
func TestOpensGiveWayWhereUrgentDeliveriesWait(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "/", "email", "max_in_flight = 1", "timeout = '60 s'")
	step := b.block()
	defer close(step)
	w, _ := b.run(t, b.config())
	b.Exec(t, "SELECT mailhook.emit('email.opened')")
	dbtest.Eventually(t, "an open is under way", func() bool {
		return b.count(t, "SELECT count(*) FROM mailhook.deliveries WHERE lease_id IS NOT NULL") == 1
	})
	b.Exec(t, "INSERT INTO mailhook.outbox (event_type) SELECT 'email.opened' FROM generate_series(1, 50)")
	b.Exec(t, "SELECT mailhook.emit('email.complained')")
	dbtest.Eventually(t, "all wait", func() bool {
		return b.count(t, "SELECT count(*) FROM mailhook.outbox") == 0 && b.count(t, "SELECT count(*) FROM mailhook.deliveries WHERE lease_id IS NULL") == 51
	})
	crowded := func() int {
		w.leases.mu.Lock()
		defer w.leases.mu.Unlock()
		return len(w.leases.crowded)
	}
	dbtest.Eventually(t, "a claim has seen that the complaint waits", func() bool { return crowded() == 1 })
	came := func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return slices.ContainsFunc(b.receipts, func(r receiver.Receipt) bool { return r.Type == "email.complained" })
	}
	answered := 0
	dbtest.Eventually(t, "the complaint comes", func() bool {
		if came() {
			return true
		}
		select {
		case step <- struct{}{}:
			answered++
		default:
		}
		b.Exec(t, "INSERT INTO mailhook.outbox (event_type) SELECT 'email.opened' FROM generate_series(1, 20)")
		return false
	})
	if answered > 4 {
		t.Errorf("%d opens were answered before it", answered)
	}
}

// A flood of complaints leaves room to the open that has been due for longer.
func TestUrgentDeliveriesStarveNobody(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.subscribe(t, "/", "email", "max_in_flight = 1")
	b.waiting(t, id, 61, 1)
	b.Exec(t, "UPDATE mailhook.events SET event_type = 'email.complained' WHERE id > 1")
	b.Exec(t, "UPDATE mailhook.deliveries SET event_type = 'email.complained' WHERE event_id > 1")
	b.Exec(t, "UPDATE mailhook.deliveries SET next_attempt_at = now() - interval '1 hour' WHERE event_id = 1")
	b.run(t, b.config())
	receipts := b.waitFor(t, 61)
	if at := slices.IndexFunc(receipts, func(r receiver.Receipt) bool { return !isUrgent(r.Type) }); at < 0 || at > 40 {
		t.Errorf("the open came as number %d of %d", at+1, len(receipts))
	}
}

// Both lanes together keep to max_in_flight, and the ordinary one leaves the other its part.
func TestTheLanesShareTheCap(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "/8", "email", "max_in_flight = 8")
	b.subscribe(t, "/1", "email", "max_in_flight = 1")
	var eight, one, most8, most1 atomic.Int32
	b.answerWith(func(_ http.ResponseWriter, r receiver.Receipt) {
		now, most := &eight, &most8
		if r.Path == "/1" {
			now, most = &one, &most1
		}
		n := now.Add(1)
		defer now.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		// Some stay for a while, so that room is scarce.
		<-time.After(5 * time.Millisecond)
	})
	w, _ := b.run(t, b.config())
	for range 20 {
		b.Exec(t, "INSERT INTO mailhook.outbox (event_type) SELECT 'email.opened' FROM generate_series(1, 10)")
		b.Exec(t, "INSERT INTO mailhook.outbox (event_type) SELECT 'email.complained' FROM generate_series(1, 5)")
	}
	b.settled(t)
	if most8.Load() > 8 || most1.Load() > 1 {
		t.Errorf("%d requests at one time of 8, %d of 1", most8.Load(), most1.Load())
	}
	dbtest.Eventually(t, "all room is given back", func() bool { return w.leases.held() == 0 })
	dbtest.Eventually(t, "nothing is crowded", func() bool {
		w.leases.mu.Lock()
		defer w.leases.mu.Unlock()
		return len(w.leases.crowded) == 0
	})
	if r := w.leases.room(1000, 1<<20); r.urgent != 125 || r.dispatch != 750 || r.urgentClaim != 1000 || r.urgentBytes != 1<<20 {
		t.Errorf("%+v", r)
	}
}

func TestATurnGoesToTheUrgentFirst(t *testing.T) {
	t.Parallel()
	p := &pace{limiter: rate.NewLimiter(rate.Every(time.Hour), 1)}
	var waiters []chan struct{}
	for range 4 {
		waiters = append(waiters, make(chan struct{}))
	}
	p.ordinary, p.urgent = slices.Clone(waiters[:3]), slices.Clone(waiters[3:])
	for turn, first := range []int{3, 0, 1, 2} {
		p.give()
		for i, c := range waiters {
			select {
			case <-c:
				if i != first {
					t.Errorf("turn %d went to %d", turn, i)
				}
				waiters[i] = nil // a nil channel is never ready
			default:
				if i == first {
					t.Errorf("turn %d did not go to %d", turn, i)
				}
			}
		}
	}
	p.give() // nobody waits: lost
}

// Behind a rate limit whose room is full of opens that wait for their turns, a complaint takes the next one.
func TestUrgentDeliveriesPassARateLimit(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "/", "email", "rate_limit_per_second = 20")
	var once sync.Once
	b.answerWith(func(http.ResponseWriter, receiver.Receipt) {
		once.Do(func() { b.Exec(t, "SELECT mailhook.emit('email.complained')") })
	})
	b.Exec(t, "INSERT INTO mailhook.outbox (event_type) SELECT 'email.opened' FROM generate_series(1, 80)")
	b.run(t, b.config())
	receipts := b.waitFor(t, 81)
	at := slices.IndexFunc(receipts, func(r receiver.Receipt) bool { return isUrgent(r.Type) })
	if at > 40 {
		t.Errorf("the complaint came as number %d of 81", at+1)
	}
}

// The list is in one place; what is made of it is that list with the nodes above.
func TestTheReserveKnowsTheUrgentTypes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	wrong := dbtest.QueryOne[[]string](t, b.DB, `SELECT coalesce(array_agg(t.name::text), '{}') FROM (
			SELECT name FROM mailhook.event_types UNION SELECT node FROM mailhook.event_types, unnest(mailhook.event_type_ancestors(name)) AS node) AS t
		WHERE (mailhook.urgent_reserve(8, ARRAY[t.name]) = 1) IS DISTINCT FROM EXISTS (
			SELECT FROM mailhook.event_types AS e WHERE mailhook.is_urgent(e.name) AND t.name = ANY (mailhook.event_type_ancestors(e.name)))`)
	if len(wrong) > 0 {
		t.Errorf("wrong about %v", wrong)
	}
	urgent := dbtest.QueryOne[[]string](t, b.DB, "SELECT array_agg(name::text ORDER BY name) FROM mailhook.event_types WHERE mailhook.is_urgent(name)")
	if !slices.Equal(urgent, []string{"email.bounced", "email.bounced.hard", "email.complained", "email.unsubscribed"}) {
		t.Errorf("urgent are %v", urgent)
	}
	for width, reserve := range map[int]int{1: 0, 2: 1, 15: 1, 16: 2, 32: 4} {
		if n := dbtest.QueryOne[int](t, b.DB, "SELECT mailhook.urgent_reserve($1, '{*}')", width); n != reserve {
			t.Errorf("of %d, %d are kept", width, n)
		}
	}
}

// A host inserts, and its role may call what the index asks.
func TestAHostInsertsUrgentEvents(t *testing.T) {
	t.Parallel()
	b := setup(t)
	if !dbtest.QueryOne[bool](t, b.DB, "SELECT has_function_privilege('public', 'mailhook.is_urgent(text)', 'EXECUTE')") {
		t.Error("hosts cannot insert: the index on outbox calls mailhook.is_urgent")
	}
}

// However long the outbox is, and however long the plan has been kept, a look reads what is urgent and nothing else.
func TestALookForUrgentEventsReadsNoOthers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := b.idleWorker(t, b.config())
	l := newUrgentLane(w, t.Context())
	look := func(want int) {
		t.Helper()
		if ids, err := l.await(t.Context(), 100); err != nil || len(ids) != want {
			t.Fatalf("%d found, not %d: %v", len(ids), want, err)
		}
	}
	look(0) // the plan of an empty table is kept
	b.Exec(t, "INSERT INTO mailhook.outbox (event_type) SELECT 'email.opened' FROM generate_series(1, 30000)")
	b.Exec(t, "INSERT INTO mailhook.outbox (event_type) SELECT 'email.complained' FROM generate_series(1, 3)")
	for range 20 {
		look(3)
	}
	n := b.read(t, w, "SELECT (SELECT sum(idx_tup_read) FROM pg_stat_all_indexes WHERE relid = t.relid)::bigint + t.seq_tup_read FROM pg_stat_all_tables AS t WHERE t.relid = 'mailhook.outbox'::regclass")
	if n > 1000 {
		t.Errorf("20 looks read %d rows", n)
	}
}

func TestTheFloorKnowsWhatPassed(t *testing.T) {
	t.Parallel()
	now := time.Now()
	var f floor
	f.saw([]int64{1, 2, 5}, now)
	f.passed([]int64{9, 4, 7})
	if got := f.probes(now, false); !slices.Equal(got, []int64{3}) {
		t.Errorf("probes %v", got)
	}
	f.saw([]int64{6, 10}, now)
	if got := f.probes(now, false); !slices.Equal(got, []int64{3, 8}) || len(f.ahead) > 0 {
		t.Errorf("probes %v, ahead %v", got, f.ahead)
	}
}

// While urgent events come, an ordinary dispatch hands over little at a time, and nothing before the senders have begun with the last.
func TestTheOrdinaryLaneIsCalmWhileUrgentEventsCome(t *testing.T) {
	t.Parallel()
	var c calm
	if n := c.rows(1000); n != 1000 {
		t.Errorf("%d rows without urgent events", n)
	}
	c.urgentAt.Store(time.Now().Add(time.Hour).UnixNano())
	if n := c.rows(1000); n != calmBatch {
		t.Errorf("%d rows with urgent events", n)
	}
	if n := c.rows(1); n != 1 {
		t.Errorf("%d rows of one", n)
	}
	c.unstarted.Store(calmUnstarted + 1)
	if n := c.rows(1000); n != 0 {
		t.Errorf("%d rows while the senders are behind", n)
	}
}

// The ordinary lane slows down for what this worker took, not for what another one has just taken.
func TestUrgentEventsOfOthersMakeNoCalm(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := b.idleWorker(t, b.config())
	l := newUrgentLane(w, t.Context())
	b.Exec(t, "SELECT mailhook.emit('email.complained')")
	id := dbtest.QueryOne[int64](t, b.DB, "SELECT id FROM mailhook.outbox")
	room := w.leases.room(w.cfg.MaxInFlight, w.cfg.MaxBodyBytes)
	for _, c := range []struct {
		id     int64
		isCalm bool
	}{{id + 1, false}, {id, true}} {
		if err := l.take(t.Context(), []int64{c.id}, room); err != nil {
			t.Fatal(err)
		}
		if got := w.calm.isCalm(); got != c.isCalm {
			t.Errorf("after id %d of %d it is calm: %v", c.id, id, got)
		}
	}
}

// While the ordinary dispatch waits for a claim, or for room, the lane goes on looking, also when nothing urgent has come for a while.
func TestTheLaneLooksWhileDispatchWaits(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "/", "email")
	w, _ := b.run(t, b.config())
	dbtest.Eventually(t, "it is armed", func() bool { return b.count(t, "SELECT last_value FROM mailhook.wakeup") > 0 })
	w.leasing.Lock() // as a claim does
	unlock := sync.OnceFunc(w.leasing.Unlock)
	defer unlock()
	b.Exec(t, "INSERT INTO mailhook.outbox (event_type) VALUES ('email.opened')")
	dbtest.Eventually(t, "dispatch waits", w.dispatching.Load)
	<-time.After(10 * urgentPatience) // for longer than the lane looks for itself
	b.Exec(t, "INSERT INTO mailhook.outbox (event_type) VALUES ('email.complained')")
	if r := b.waitFor(t, 1)[0]; !strings.Contains(string(r.Body), "email.complained") {
		t.Errorf("first came %s", r.Body)
	}
	unlock()
	b.waitFor(t, 2)
	dbtest.Eventually(t, "dispatch has nothing more", func() bool { return !w.dispatching.Load() })
}

// While urgent events come, a claim of others takes few, as an ordinary dispatch does: what it hands over at once is before them.
func TestClaimsAreSmallBesideUrgentEvents(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.subscribe(t, "/", "email", "max_in_flight = 1000")
	b.waiting(t, id, 200, 1)
	w := b.idleWorker(t, b.config())
	w.calm.urgentAt.Store(time.Now().Add(time.Hour).UnixNano())
	c := newClaimLanes(w, t.Context()).ordinary
	go func() { // as senders do
		for {
			select {
			case <-w.started:
				w.calm.unstarted.Add(-1)
			case <-t.Context().Done():
				return
			}
		}
	}()
	if result, err := c.once(t.Context()); err != nil || result.deliveries != calmBatch {
		t.Errorf("%d claimed: %v", result.deliveries, err)
	}
	w.calm.urgentAt.Store(0)
	c = newClaimLanes(w, t.Context()).ordinary
	if result, err := c.once(t.Context()); err != nil || result.deliveries <= calmBatch {
		t.Errorf("%d claimed when all is calm: %v", result.deliveries, err)
	}
}
