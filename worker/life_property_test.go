package worker

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"mailhook/db"
)

// Random sequences of everything that can happen to deliveries, with two workers, and after each step the database
// must hold what the model holds.
func TestTheLifeOfDeliveries(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.Exec(t, `UPDATE mailhook.installation SET circuit_failures = $1, circuit_after = $2, probe_pause = $3, longest_probe_pause = $4, suspend_after = $5, release_rate = $6`,
		circuitFailures, circuitAfter, probePause, longestProbePause, suspendAfter, releaseRate)
	m := &matcher{bundle: b}
	steps := map[string]int{}
	rapid.Check(t, func(rt *rapid.T) {
		m.clear(rt, t)
		l := &life{matcher: m, t: t, rt: rt, q: db.New(b.Pool), deliveries: map[uuid.UUID]*lifeDelivery{}, ended: map[uuid.UUID]*lifeEnd{}, attempts: map[uuid.UUID][]string{}, steps: steps}
		l.random = rand.NewChaCha8([32]byte{0: rapid.Byte().Draw(rt, "ids")})
		l.start()
		rt.Repeat(l.actions())
	})
	t.Logf("%v", steps)
}

// A life is one check: the model, and the database beside it.
type life struct {
	*matcher
	t  *testing.T
	rt *rapid.T // of the action under way
	q  *db.Queries

	workers       [2]*lifeWorker
	subscriptions []*lifeSubscription
	isSuspended   bool // the account
	outbox        []lifeEvent
	deliveries    map[uuid.UUID]*lifeDelivery
	ended         map[uuid.UUID]*lifeEnd
	attempts      map[uuid.UUID][]string // "number outcome ended_as reason" of each row
	made          int                    // deliveries, ever
	steps         map[string]int
	random        *rand.ChaCha8 // of the ids of workers, which decide their shares
}

// A lifeWorker remembers the leases that it was given, those it has lost too.
type lifeWorker struct {
	id     uuid.UUID
	isNew  bool
	leases [][2]uuid.UUID // delivery, lease
}

func (l *life) actions() map[string]func(*rapid.T) {
	// The work comes more often than what disturbs it.
	actions := map[string]func(){
		"emit": l.emit, "dispatch": l.dispatch, "dispatch again": l.dispatch, "claim": l.claim, "claim again": l.claim, "claim once more": l.claim, "record": l.record, "record again": l.record,
		"record once more": l.record, "record and record": l.record, "pass": l.pass, "pass again": l.pass, "disturb": l.disturb, "disturb again": l.disturb, "disturb once more": l.disturb,
	}
	wrapped := map[string]func(*rapid.T){"": func(rt *rapid.T) { l.rt = rt; l.compare() }}
	for name, f := range actions {
		wrapped[name] = func(rt *rapid.T) { l.rt = rt; l.steps[name]++; f() }
	}
	return wrapped
}

func (l *life) disturb() {
	disturbances := []func(){
		l.resume, l.settle, l.retry, l.replayExhausted, l.giveBack, l.cancel, l.expire, l.setStatus, l.endReleases, l.replayEvents, l.rescue, l.giveBackLeases, l.suspendAccount, l.delete,
	}
	disturbances[rapid.IntRange(0, 1<<16).Draw(l.rt, "disturbance")%len(disturbances)]()
}

func (l *life) do(sql string, args ...any) { l.exec(l.rt, l.t, sql, args...) }

// ok fails the check on an error.
func (l *life) ok(err error) {
	if err != nil {
		l.rt.Fatal(err)
	}
}

func (l *life) start() {
	l.do("DELETE FROM mailhook.workers")
	l.do("DELETE FROM mailhook.attempts")
	l.do("DELETE FROM mailhook.subscription_health")
	for i := range l.workers {
		l.workers[i] = &lifeWorker{}
		l.register(l.workers[i])
		l.workers[i].isNew = false
	}
	for range rapid.IntRange(1, 3).Draw(l.rt, "subscriptions") {
		l.subscribe()
	}
}

func (l *life) newID() uuid.UUID {
	return uuid.Must(uuid.NewRandomFromReader(l.random))
}

func (l *life) register(w *lifeWorker) {
	w.id, w.isNew = l.newID(), true
	registered, err := l.q.RegisterWorker(l.t.Context(), db.RegisterWorkerParams{ID: w.id, Hostname: "test", Pid: 1, Version: "test", KeyIDs: []string{}})
	l.ok(err)
	if registered != 1 {
		l.rt.Fatal("the worker is not registered")
	}
}

func (l *life) subscribe() {
	s := &lifeSubscription{
		id: l.newID(), status: "active", cap: rapid.IntRange(1, 5).Draw(l.rt, "max_in_flight"), suspendsEnd: chance(l.rt, "suspend_when_exhausted", 4),
		takesOurs: rapid.Bool().Draw(l.rt, "takes subscription.*"), jitter: rapid.SampledFrom([]float64{0, 0, 0.05}).Draw(l.rt, "jitter"),
		maxEvents: rapid.SampledFrom([]int{0, 0, 1, 3}).Draw(l.rt, "batch"),
	}
	for range rapid.IntRange(1, 3).Draw(l.rt, "delays") {
		s.schedule = append(s.schedule, step*time.Duration(rapid.SampledFrom([]int{1, 2, 4}).Draw(l.rt, "delay")))
	}
	types := []string{"email"}
	if s.takesOurs {
		types = append(types, "subscription")
	}
	l.do(`INSERT INTO mailhook.subscriptions (id, account_id, url, event_types, max_in_flight, retry_schedule, retry_jitter, suspend_when_exhausted, timeout, batch_max_events, batch_max_wait)
		VALUES ($1, 'default', 'https://example.com/', $2, $3, $4, $5, $6, $7, nullif($8::int, 0), CASE WHEN $8::int > 0 THEN interval '1 second' END)`,
		s.id, types, s.cap, s.schedule, s.jitter, s.suspendsEnd, step-5*time.Second, s.maxEvents)
	l.subscriptions = append(l.subscriptions, s)
}

func (l *life) worker() *lifeWorker {
	return l.workers[rapid.IntRange(0, 1).Draw(l.rt, "worker")]
}

func (l *life) subscription() *lifeSubscription {
	return l.subscriptions[rapid.IntRange(0, len(l.subscriptions)-1).Draw(l.rt, "subscription")]
}

// now is before every later statement.
func (l *life) now() time.Time { return time.Now() }

func (l *life) waiting(s *lifeSubscription) (ds []*lifeDelivery) {
	for _, d := range l.deliveries {
		if d.subscription == s && d.lease == uuid.Nil {
			ds = append(ds, d)
		}
	}
	slices.SortFunc(ds, func(a, b *lifeDelivery) int { return a.dueAt.Compare(b.dueAt) })
	return ds
}

func (l *life) leasedBy(w uuid.UUID, s *lifeSubscription) (n int) {
	for _, d := range l.deliveries {
		if d.lease != uuid.Nil && d.worker == w && d.subscription == s {
			n++
		}
	}
	return n
}

// inFlight is what a worker holds, as it tells dispatch and claim.
func (l *life) inFlight(w *lifeWorker) []byte {
	text := "{"
	for _, s := range l.subscriptions {
		if n := l.leasedBy(w.id, s); n > 0 {
			text += fmt.Sprintf("%q: %d,", s.id, n)
		}
	}
	return []byte(text[:max(1, len(text)-1)] + "}")
}

// mayStart: nothing holds what this subscription gets, but for a circuit.
func (l *life) mayStart(s *lifeSubscription, now time.Time) bool {
	return s.status == "active" && !s.deleted && !l.isSuspended && !s.waitUntil.After(now)
}

// room is the least and the most that a worker may take of a subscription.
func (l *life) room(w *lifeWorker, s *lifeSubscription, began time.Time) (least, most int) {
	low, high := s.slowedCap(began), s.slowedCap(l.now())
	others := 0
	if w.isNew {
		others = l.leasedBy(l.other(w).id, s)
	}
	mine, n := l.leasedBy(w.id, s), s.ofEach()
	return max(0, ordinaryPart(min(low/2*n, (low-others)*n))-mine), max(0, ordinaryPart(min((high+1)/2*n, (high-others)*n))-mine)
}

// ordinaryPart is what the ordinary lane may have of a share that is less than 16: one of it is kept for the urgent lane.
func ordinaryPart(share int) int {
	if share > 1 {
		return share - 1
	}
	return share
}

func (l *life) other(w *lifeWorker) *lifeWorker {
	if w == l.workers[0] {
		return l.workers[1]
	}
	return l.workers[0]
}

func (l *life) emit() {
	n := rapid.IntRange(1, 8).Draw(l.rt, "events")
	l.do("INSERT INTO mailhook.outbox (event_type) SELECT 'email.sent' FROM generate_series(1, $1::int)", n)
	l.expectInOutbox(slices.Repeat([]lifeEvent{{eventType: "email.sent"}}, n)...)
}

// expectInOutbox takes over the rows that are new in the outbox: these events, in any order.
func (l *life) expectInOutbox(want ...lifeEvent) {
	rows := rowsOf(l.rt, l.t, l.bundle, func(row pgx.CollectableRow) (e lifeEvent, err error) {
		var about *string
		err = row.Scan(&e.id, &e.insertedAt, &e.eventType, &about)
		if about != nil {
			e.about = uuid.MustParse((*about)[len("sub_"):])
		}
		return e, err
	}, "SELECT id, inserted_at, event_type, data ->> 'subscription_id' FROM mailhook.outbox ORDER BY id")
	var last int64
	if n := len(l.outbox); n > 0 {
		last = l.outbox[n-1].id
	}
	var got []string
	for _, e := range rows {
		if e.id > last {
			got = append(got, fmt.Sprint(e.eventType, e.about))
			l.outbox = append(l.outbox, e)
		}
	}
	wanted := make([]string, 0, len(want))
	for _, e := range want {
		wanted = append(wanted, fmt.Sprint(e.eventType, e.about))
	}
	slices.Sort(got)
	slices.Sort(wanted)
	if !slices.Equal(got, wanted) || len(rows) != len(l.outbox) {
		l.rt.Fatalf("new in the outbox: %v, want %v; %d rows, want %d", got, wanted, len(rows), len(l.outbox))
	}
}

func (l *life) dispatch() {
	w, lease, began := l.worker(), uuid.New(), l.now()
	free, rows := rapid.IntRange(0, 12).Draw(l.rt, "free slots"), rapid.IntRange(1, 12).Draw(l.rt, "rows")
	freeBatched := rapid.IntRange(0, 12).Draw(l.rt, "free slots for batches")
	inFlight := l.inFlight(w)
	taken, err := l.q.Dispatch(l.t.Context(), db.DispatchParams{
		Holes: []int64{}, MaxRows: int32(rows), MaxBytes: batchBytes, WorkerID: w.id, LeaseID: lease, FreeSlots: int32(free), FreeBatched: int32(freeBatched), IsNew: w.isNew, InFlight: inFlight, UrgentInFlight: []byte("{}"), Limits: []byte("{}"), IDPrefix: idPrefix(),
	})
	l.ok(err)
	if want := min(rows, len(l.outbox)); len(taken) != want {
		l.rt.Fatalf("dispatch took %d rows, want %d", len(taken), want)
	}
	events := l.outbox[:len(taken)]
	l.outbox = l.outbox[len(taken):]
	rooms := map[*lifeSubscription][2]int{}
	for _, s := range l.subscriptions {
		if l.mayStart(s, began) && !s.isOpen() {
			least, most := l.room(w, s, began)
			rooms[s] = [2]int{least, most}
		}
	}
	made := l.adopt(func(d *lifeDelivery) bool { return slices.Contains(events, d.event) })
	for _, s := range l.subscriptions {
		want, got, leased := []int64{}, []int64{}, 0
		for _, e := range events {
			if s.wants(e) {
				want = append(want, e.id)
			}
		}
		for _, d := range made {
			if d.subscription == s {
				got = append(got, d.event.id)
				if d.lease != uuid.Nil {
					leased++
					if d.lease != lease || d.worker != w.id {
						l.rt.Fatalf("leased to %v, %v", d.worker, d.lease)
					}
				}
			}
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			l.rt.Fatalf("dispatched to %v: events %v, want %v", s.id, got, want)
		}
		least, most := rooms[s][0], rooms[s][1]
		left := free - countLeased(made, false)
		if s.maxEvents > 0 {
			left = freeBatched - countLeased(made, true)
		}
		if leased > most || leased < min(least, len(want), max(0, left)) {
			l.rt.Fatalf("dispatch leased %d of %d to %+v with room for %d to %d", leased, len(want), s, least, most)
		}
	}
	if n, batched := countLeased(made, false), countLeased(made, true); n > free || batched > freeBatched {
		l.rt.Fatalf("dispatch leased %d and %d with %d and %d free slots", n, batched, free, freeBatched)
	}
	for _, d := range made {
		w.remember(d)
	}
}

// countLeased counts the leased ones for batches, or the others.
func countLeased(ds []*lifeDelivery, forBatches bool) (n int) {
	for _, d := range ds {
		if d.lease != uuid.Nil && (d.subscription.maxEvents > 0) == forBatches {
			n++
		}
	}
	return n
}

func (w *lifeWorker) remember(d *lifeDelivery) {
	if d.lease != uuid.Nil {
		w.leases = append(w.leases, [2]uuid.UUID{d.id, d.lease})
	}
}

type deliveryRow struct {
	ID, SubscriptionID uuid.UUID
	EventInsertedAt    time.Time
	EventID            int64
	EventType          string
	Attempt            int
	NextAttemptAt      time.Time
	LeasedBy, LeaseID  *uuid.UUID
	BatchID            uuid.UUID
}

func (l *life) stored() []deliveryRow {
	return rowsOf(l.rt, l.t, l.bundle, pgx.RowToStructByPos[deliveryRow],
		`SELECT id, subscription_id, event_inserted_at, event_id, event_type, attempt, next_attempt_at, leased_by, lease_id,
		coalesce(batch_id, '00000000-0000-0000-0000-000000000000') FROM mailhook.deliveries ORDER BY id`)
}

// adopt takes the deliveries into the model that are new in the database, each of which must be expected.
func (l *life) adopt(expected func(*lifeDelivery) bool) (made []*lifeDelivery) {
	for _, row := range l.stored() {
		if l.deliveries[row.ID] != nil {
			continue
		}
		i := slices.IndexFunc(l.subscriptions, func(s *lifeSubscription) bool { return s.id == row.SubscriptionID })
		if i < 0 || l.ended[row.ID] != nil || row.Attempt != 0 {
			l.rt.Fatalf("a delivery came from nowhere, or came back: %+v", row)
		}
		d := &lifeDelivery{id: row.ID, subscription: l.subscriptions[i], event: lifeEvent{id: row.EventID, insertedAt: row.EventInsertedAt, eventType: row.EventType}, dueAt: row.NextAttemptAt}
		d.event = l.eventOf(d.event)
		if row.LeaseID != nil {
			d.lease, d.worker = *row.LeaseID, *row.LeasedBy
		}
		if early := time.Since(row.NextAttemptAt); early < 0 || early > patience || !expected(d) {
			l.rt.Fatalf("a delivery that nobody expects: %+v", row)
		}
		l.deliveries[row.ID] = d
		l.made++
		made = append(made, d)
	}
	return made
}

// eventOf finds what an event is about.
func (l *life) eventOf(e lifeEvent) lifeEvent {
	about := rowsOf(l.rt, l.t, l.bundle, pgx.RowTo[*string], "SELECT data ->> 'subscription_id' FROM mailhook.events WHERE inserted_at = $1 AND id = $2", e.insertedAt, e.id)
	if len(about) == 1 && about[0] != nil {
		e.about = uuid.MustParse((*about[0])[len("sub_"):])
	}
	return e
}

func (l *life) claim() {
	w, lease, began := l.worker(), uuid.New(), l.now()
	free, each := rapid.IntRange(0, 12).Draw(l.rt, "free slots"), rapid.IntRange(1, 6).Draw(l.rt, "of each")
	freeBatched := rapid.IntRange(0, 12).Draw(l.rt, "free slots for batches")
	rows, err := l.q.Claim(l.t.Context(), db.ClaimParams{
		FreeSlots: int32(free), FreeBatched: int32(freeBatched), MaxSteps: claimSteps, AfterSubscriptionID: uuid.Nil, WorkerID: w.id, IsNew: w.isNew, MaxOfEach: int32(each), Limits: []byte("{}"), InFlight: l.inFlight(w), UrgentInFlight: []byte("{}"), LeaseID: lease, MaxBytes: batchBytes,
	})
	l.ok(err)
	claimed := map[*lifeSubscription][]*lifeDelivery{}
	total, batched := 0, 0
	for _, row := range rows {
		if row.DeliveryID == nil {
			continue
		}
		d := l.deliveries[*row.DeliveryID]
		if d == nil || d.lease != uuid.Nil || d.dueAt.After(l.now()) && d.batch == uuid.Nil || int(row.Attempt) != d.attempt || !row.EventFound ||
			(row.Requests > 0) != (d.subscription.maxEvents > 0) || row.BatchID != nil && *row.BatchID != d.batch {
			l.rt.Fatalf("claimed %+v, which is %+v", row, d)
		}
		claimed[d.subscription] = append(claimed[d.subscription], d)
		if d.subscription.maxEvents > 0 {
			batched++
		} else {
			total++
		}
	}
	beyond := 0
	for _, s := range l.subscriptions {
		beyond = max(beyond, l.checkBatches(s, claimed[s]))
	}
	if total > free || batched > freeBatched+beyond {
		l.rt.Fatalf("claimed %d and %d with %d and %d free slots", total, batched, free, freeBatched)
	}
	for _, s := range l.subscriptions {
		left := free - total
		if s.maxEvents > 0 {
			left = freeBatched - batched
		}
		l.checkClaimed(w, s, claimed[s], began, each, left)
	}
	for s, ds := range claimed {
		for _, d := range ds {
			d.lease, d.worker = lease, w.id
			w.remember(d)
		}
		if s.isOpen() {
			s.probe, s.openUntil = lease, l.now().Add(step)
		}
	}
}

// checkBatches: of a batch that failed all that wait are taken, or none; one of them has been due. It answers how many may
// so have been taken beyond what there was room for.
func (l *life) checkBatches(s *lifeSubscription, ds []*lifeDelivery) (beyond int) {
	if s.maxEvents == 0 {
		return 0
	}
	taken, due := map[uuid.UUID]int{}, map[uuid.UUID]bool{}
	for _, d := range ds {
		taken[d.batch]++
		due[d.batch] = due[d.batch] || !d.dueAt.After(l.now())
	}
	delete(taken, uuid.Nil)
	for _, d := range l.waiting(s) {
		if taken[d.batch] > 0 && !slices.Contains(ds, d) {
			l.rt.Fatalf("a part of the batch %v was claimed", d.batch)
		}
	}
	for batch, n := range taken {
		if !due[batch] {
			l.rt.Fatalf("the batch %v was claimed before it was due", batch)
		}
		l.steps["batch claimed"]++
		beyond += n - 1
	}
	return beyond
}

// checkClaimed: what was taken of one subscription is what may be taken, oldest first; and it is enough.
func (l *life) checkClaimed(w *lifeWorker, s *lifeSubscription, ds []*lifeDelivery, began time.Time, each, free int) {
	least, most := l.room(w, s, began)
	// Room of a claim: at most each, less what is in flight only where the share says so.
	each = max(each, s.maxEvents)
	least, most = min(least, each), min(most, each)
	due := []*lifeDelivery{}
	for _, d := range l.waiting(s) {
		if !d.dueAt.After(began) {
			due = append(due, d)
		}
	}
	switch {
	case l.mayStart(s, began) && s.isOpen() && s.openUntil.After(began) && s.openUntil.Before(began.Add(time.Second)):
		// A tenth of the time that it has been open is no multiple of step: the statement may begin after that.
		least, most = 0, min(1, most)
	case !l.mayStart(s, began), s.isOpen() && s.openUntil.After(began):
		least, most = 0, 0
	case s.isOpen():
		least, most = min(1, least), min(1, most)
	}
	if !s.release.IsZero() && !s.isOpen() {
		released := 0
		for _, d := range ds {
			if !d.dueAt.After(s.release) {
				released++
			}
		}
		if released > releaseRate+l.checkBatches(s, ds) {
			l.rt.Fatalf("%d released at once, at %d a second", released, releaseRate)
		}
		least = 0
	}
	beyond := 0
	if most > 0 {
		beyond = l.checkBatches(s, ds)
	}
	if len(ds) > most+beyond || len(ds) < min(least, len(due), free) {
		l.rt.Fatalf("claimed %d of %d due of %+v with room for %d to %d", len(ds), len(due), s, least, most)
	}
	if !s.release.IsZero() || beyond > 0 {
		return
	}
	for i, d := range due {
		if !slices.Contains(ds, d) && slices.ContainsFunc(due[i+1:], func(later *lifeDelivery) bool { return slices.Contains(ds, later) && later.dueAt.After(d.dueAt) }) {
			l.rt.Fatalf("claimed a later one before one due at %v", d.dueAt)
		}
	}
}

// Skip, here and below, is rapid's: an action that does not fit is drawn again, and no test is skipped.

// remembered draws some of what a worker remembers, each delivery once, current or not.
func (l *life) remembered(w *lifeWorker) (picked [][2]uuid.UUID) {
	if len(w.leases) == 0 {
		l.rt.Skip("nothing was leased")
	}
	// What is current comes first, then some of what is not, the newest first.
	var known, stale [][2]uuid.UUID
	for _, x := range slices.Backward(w.leases) {
		if l.current(x) != nil {
			known = append(known, x)
		} else if len(stale) < 3 {
			stale = append(stale, x)
		}
	}
	known = append(known, stale...)
	seen := map[uuid.UUID]bool{}
	for range rapid.IntRange(1, 6).Draw(l.rt, "leases") {
		x := known[rapid.IntRange(0, len(known)-1).Draw(l.rt, "lease")]
		if !seen[x[0]] {
			seen[x[0]] = true
			picked = append(picked, x)
		}
	}
	return picked
}

// current is the delivery if it is still under this lease.
func (l *life) current(x [2]uuid.UUID) *lifeDelivery {
	if d := l.deliveries[x[0]]; d != nil && d.lease == x[1] {
		return d
	}
	return nil
}

func (l *life) record() {
	var batch []outcome
	mood := rapid.SampledFrom([][]reply{replies[1:5], replies, replies, replies[:1]}).Draw(l.rt, "mood")
	hearings := map[*lifeSubscription]*hearing{}
	batches := map[*lifeSubscription]outcome{}
	due := map[*lifeDelivery][2]time.Duration{}
	counts := map[string]int64{}
	for _, x := range l.remembered(l.worker()) {
		a := rapid.SampledFrom(mood).Draw(l.rt, "answer")
		o := outcome{delivery: &delivery{id: x[0], leaseID: x[1]}, word: a.word, statusCode: a.status, retryAfter: a.retryAfter, startedAt: time.Now()}
		d := l.current(x)
		if d != nil && d.subscription.maxEvents > 0 && !o.delivered() {
			first, ok := batches[d.subscription]
			if !ok {
				first = outcome{batchID: uuid.New(), jitter: jitter()}
				batches[d.subscription] = first
			}
			o.batchID, o.jitter, o.uncounted = first.batchID, first.jitter, ok
			d.batch = o.batchID
		}
		batch = append(batch, o)
		if d == nil {
			l.steps["stale outcome"]++
			continue // too late
		}
		h := hearings[d.subscription]
		if h == nil {
			h = &hearing{}
		}
		as := l.conclude(d, a, h, due)
		if o.uncounted && as != "cancelled" {
			h.attempts--
		}
		counts[as]++
		if as != "cancelled" {
			hearings[d.subscription] = h
		}
	}
	p := recordParams(batch)
	p.AgesMS = make([]int32, len(batch))
	rows, err := l.q.Record(l.t.Context(), p)
	l.ok(err)
	for _, row := range rows {
		counts[row.EndedAs] -= row.Deliveries
	}
	for as, n := range counts {
		if n != 0 {
			l.rt.Fatalf("the answer of record is %+v: %d missing of %q", rows, n, as)
		}
	}
	l.checkDelays(due)
	now := l.now()
	var told []lifeEvent
	for s, h := range hearings {
		if h.slows {
			l.slow(s, h, now)
		}
		for _, eventType := range s.heard(*h, now) {
			l.steps[eventType]++
			told = append(told, lifeEvent{eventType: eventType, about: s.id})
		}
	}
	l.expectInOutbox(told...)
}

// conclude makes of one delivery what an answer makes of it: how it ends, or when it goes on.
func (l *life) conclude(d *lifeDelivery, a reply, h *hearing, due map[*lifeDelivery][2]time.Duration) (as string) {
	s, lease := d.subscription, d.lease
	d.attempt++
	reason := ""
	switch {
	case a.word == outcomeOK:
		as = "delivered"
	case s.deleted:
		as, reason = "cancelled", "deleted"
	case s.status == "inactive":
		as, reason = "cancelled", "deactivated"
	case d.attempt > len(s.schedule):
		as = "exhausted"
	}
	l.attempts[d.id] = append(l.attempts[d.id], fmt.Sprintf("%d %s %s %s", d.attempt, a.word, as, reason))
	if as == "" {
		delay := s.schedule[d.attempt-1]
		least, most := time.Duration(float64(delay)*(1-s.jitter)), time.Duration(float64(delay)*(1+s.jitter))
		due[d] = [2]time.Duration{max(least, min(a.retryAfter, least+time.Hour)), max(most, min(a.retryAfter, most+time.Hour))}
		d.lease = uuid.Nil
	} else {
		l.end(d, as)
	}
	if as == "cancelled" {
		return as
	}
	h.attempts++
	h.succeeded = h.succeeded || as == "delivered"
	h.exhausted = h.exhausted || as == "exhausted"
	if as != "delivered" {
		h.gone = h.gone || a.status == 410
		h.probed = h.probed || s.isOpen() && lease == s.probe
		if a.slowing() {
			h.slows, h.pause = true, max(h.pause, min(a.retryAfter, time.Hour))
		}
	}
	return as
}

// checkDelays: the next attempt of each is no earlier than its schedule says, and no later.
func (l *life) checkDelays(due map[*lifeDelivery][2]time.Duration) {
	stored := map[uuid.UUID]time.Time{}
	for _, row := range l.stored() {
		stored[row.ID] = row.NextAttemptAt
	}
	for d, delay := range due {
		now := l.now()
		d.dueAt = stored[d.id]
		if d.dueAt.Before(now.Add(delay[0]-patience)) || d.dueAt.After(now.Add(delay[1])) {
			l.rt.Fatalf("attempt %d failed, the next is due in %v, want %v", d.attempt, d.dueAt.Sub(now), delay)
		}
	}
}

// slow halves what the endpoint takes, unless that was done within the last second: near its end either is right.
func (l *life) slow(s *lifeSubscription, h *hearing, now time.Time) {
	type slowed struct {
		InFlightLimit *int
		SlowedAt      *time.Time
	}
	rows := rowsOf(l.rt, l.t, l.bundle, pgx.RowToStructByPos[slowed], "SELECT in_flight_limit, slowed_at FROM mailhook.subscription_health WHERE subscription_id = $1", s.id)
	if len(rows) != 1 || rows[0].InFlightLimit == nil {
		l.rt.Fatalf("asked to slow down, and %+v is not slowed", s)
	}
	got, since := rows[0], now.Sub(s.slowedAt)
	halved := *got.InFlightLimit >= max(1, s.slowedCap(now.Add(-patience/10))/2) && *got.InFlightLimit <= max(1, s.slowedCap(now)/2)
	until := now.Add(h.pause)
	if s.waitUntil.After(until) {
		until = s.waitUntil
	}
	later := near(*got.SlowedAt, until)
	changed := halved && later
	stays := s.limit == *got.InFlightLimit && got.SlowedAt.Equal(s.slowedAt)
	if since > 2*time.Second && !changed || since < time.Second/2 && !stays || !changed && !stays {
		l.rt.Fatalf("slowed to %d at %v, after %d at %v (now %v)", *got.InFlightLimit, got.SlowedAt, s.limit, s.slowedAt, now)
	}
	s.limit, s.slowedAt = *got.InFlightLimit, *got.SlowedAt
}

func near(a, b time.Time) bool { return a.Sub(b).Abs() < patience }

func (l *life) end(d *lifeDelivery, as string) {
	delete(l.deliveries, d.id)
	l.ended[d.id] = &lifeEnd{subscription: d.subscription, event: d.event, as: as, isDead: as == "exhausted"}
	l.steps[as]++
}

// endWithoutRequest ends a delivery by a row that is no request.
func (l *life) endWithoutRequest(d *lifeDelivery, as, reason string) {
	l.attempts[d.id] = append(l.attempts[d.id], fmt.Sprintf("%d  %s %s", d.attempt, as, reason))
	l.end(d, as)
}

func (l *life) giveBack() {
	var p db.ReturnDeliveriesParams
	given := map[*lifeDelivery]time.Duration{}
	for _, x := range l.remembered(l.worker()) {
		delay := step * time.Duration(rapid.IntRange(0, 2).Draw(l.rt, "delay"))
		p.DeliveryIDs, p.LeaseIDs, p.DelaysMS = append(p.DeliveryIDs, x[0]), append(p.LeaseIDs, x[1]), append(p.DelaysMS, delay.Milliseconds())
		if d := l.current(x); d != nil {
			given[d] = delay
		}
	}
	n, err := l.q.ReturnDeliveries(l.t.Context(), p)
	l.ok(err)
	if int(n) != len(given) {
		l.rt.Fatalf("gave back %d, want %d", n, len(given))
	}
	for d, delay := range given {
		d.lease = uuid.Nil
		if at := l.now().Add(delay); at.After(d.dueAt) {
			d.dueAt = at
		}
	}
}

func (l *life) giveBackLeases() {
	w := l.worker()
	var leases []uuid.UUID
	for _, x := range l.remembered(w) {
		leases = append(leases, x[1])
	}
	_, err := l.q.ReturnLeases(l.t.Context(), db.ReturnLeasesParams{WorkerID: w.id, LeaseIDs: leases})
	l.ok(err)
	for _, d := range l.deliveries {
		if d.worker == w.id && slices.Contains(leases, d.lease) {
			d.lease = uuid.Nil
		}
	}
}

// rescue takes a worker for dead; it lives, and goes on under a new identity with its old memory.
func (l *life) rescue() {
	w := l.worker()
	beats := rapid.IntRange(0, 1).Draw(l.rt, "heartbeat since")
	for range beats {
		_, err := l.q.Beat(l.t.Context(), w.id)
		l.ok(err)
	}
	beat := rowsOf(l.rt, l.t, l.bundle, pgx.RowTo[int64], "SELECT heartbeat FROM mailhook.workers WHERE id = $1", w.id)[0]
	row, err := l.q.RescueWorker(l.t.Context(), db.RescueWorkerParams{ID: w.id, Heartbeat: beat - int64(beats)})
	l.ok(err)
	if row.Removed != int64(1-beats) {
		l.rt.Fatalf("%d workers rescued; it has beaten %d times since", row.Removed, beats)
	}
	if beats > 0 {
		return
	}
	for _, d := range l.deliveries {
		if d.worker == w.id {
			d.lease = uuid.Nil
		}
	}
	l.register(w)
}

// settle: a worker is no longer new when the other has come down to its share.
func (l *life) settle() {
	w := l.worker()
	for _, s := range l.subscriptions {
		if l.leasedBy(l.other(w).id, s) > s.cap/2 {
			return
		}
	}
	w.isNew = false
}

// setStatus is what the API does for pause and deactivate.
func (l *life) setStatus() {
	s, status := l.subscription(), rapid.SampledFrom([]string{"paused", "paused", "inactive"}).Draw(l.rt, "status")
	if s.deleted || s.status == status {
		l.rt.Skip("nothing to change")
	}
	_, err := l.q.SetSubscriptionStatus(l.t.Context(), db.SetSubscriptionStatusParams{ID: s.id, Status: status, StatusReason: text("user")})
	l.ok(err)
	s.status, s.reason = status, "user"
}

// resume is what the API does: health is forgotten, and what waits goes out at the bounded rate.
func (l *life) resume() {
	s := l.subscription()
	if s.deleted {
		l.rt.Skip("deleted")
	}
	l.ok(l.q.ResetHealth(l.t.Context(), s.id))
	s.forget()
	l.ok(l.q.ReleaseHeld(l.t.Context(), s.id))
	l.released(s)
	if s.status != "active" {
		_, err := l.q.SetSubscriptionStatus(l.t.Context(), db.SetSubscriptionStatusParams{ID: s.id, Status: "active"})
		l.ok(err)
		s.status, s.reason = "active", ""
	}
}

func (l *life) released(s *lifeSubscription) {
	if len(l.waiting(s)) > 0 {
		s.release, s.releasedAt = l.now(), l.now()
	}
}

func (l *life) delete() {
	s := l.subscription()
	if !chance(l.rt, "really", 3) {
		l.rt.Skip("kept")
	}
	n, err := l.q.DeleteSubscription(l.t.Context(), db.DeleteSubscriptionParams{ID: s.id})
	l.ok(err)
	if (n == 1) == s.deleted {
		l.rt.Fatalf("deleted %d, deleted before: %v", n, s.deleted)
	}
	if !s.deleted {
		s.deleted = true
	}
	s.forget()
}

func (l *life) suspendAccount() {
	if !l.isSuspended && !chance(l.rt, "really", 3) {
		l.rt.Skip("left active")
	}
	l.isSuspended = !l.isSuspended
	status := map[bool]string{true: "suspended", false: "active"}[l.isSuspended]
	l.ok(l.q.PutAccount(l.t.Context(), db.PutAccountParams{ID: "default", Status: status}))
	if l.isSuspended {
		return
	}
	l.ok(l.q.ReleaseHeldOfAccount(l.t.Context(), "default"))
	for _, s := range l.subscriptions {
		if !s.deleted {
			l.released(s)
		}
	}
}

// gone are the deliveries that wait in the model and are no longer in the database.
func (l *life) gone() (ds []*lifeDelivery) {
	stored := map[uuid.UUID]bool{}
	for _, row := range l.stored() {
		stored[row.ID] = true
	}
	for _, d := range l.deliveries {
		if !stored[d.id] {
			ds = append(ds, d)
		}
	}
	return ds
}

func (l *life) cancel() {
	most, want := rapid.IntRange(1, 5).Draw(l.rt, "rows"), 0
	for _, s := range l.subscriptions {
		if s.isGone() {
			want += len(l.waiting(s))
		}
	}
	n, err := l.q.CancelDeliveries(l.t.Context(), db.CancelDeliveriesParams{ChangedSince: time.Unix(0, 0), MaxRows: int32(most)})
	l.ok(err)
	gone := l.gone()
	if want = min(want, most); int(n) != want || len(gone) != want {
		l.rt.Fatalf("cancelled %d, %d are gone, want %d", n, len(gone), want)
	}
	for _, d := range gone {
		if d.lease != uuid.Nil || !d.subscription.isGone() {
			l.rt.Fatalf("cancelled %+v of %+v", d, d.subscription)
		}
		l.endWithoutRequest(d, "cancelled", map[bool]string{true: "deleted", false: "deactivated"}[d.subscription.deleted])
	}
	_, err = l.q.CancelDeadLetters(l.t.Context(), db.CancelDeadLettersParams{ChangedSince: time.Unix(0, 0), MaxRows: 1000})
	l.ok(err)
	for id, end := range l.ended {
		if end.isDead && end.subscription.deleted {
			end.isDead, end.as = false, "cancelled"
			rows := l.attempts[id]
			var number int
			var outcome string
			fmt.Sscanf(rows[len(rows)-1], "%d %s", &number, &outcome)
			if outcome == "exhausted" {
				outcome = "" // no request
			}
			rows[len(rows)-1] = fmt.Sprintf("%d %s cancelled deleted", number, outcome)
		}
	}
}

// expire: of what is held, the oldest beyond a number end, and what is due for too long.
func (l *life) expire() {
	age, held := step*time.Duration(rapid.IntRange(2, 20).Draw(l.rt, "age")), rapid.IntRange(1, 8).Draw(l.rt, "held")
	began := l.now()
	reasons := map[*lifeDelivery]string{}
	for _, s := range l.subscriptions {
		if !s.deleted && (s.status == "paused" || s.status == "suspended" || l.isSuspended) || s.isOpen() {
			waiting := l.waiting(s)
			for i, d := range waiting {
				switch {
				case !d.dueAt.After(began.Add(-age)):
					reasons[d] = "expired"
				case i < len(waiting)-held:
					reasons[d] = "overflow"
				}
			}
		}
	}
	_, err := l.q.ExpireHeld(l.t.Context(), db.ExpireHeldParams{MaxAge: age, MaxHeld: int32(held), MaxRows: 1000})
	l.ok(err)
	gone := l.gone()
	count := map[*lifeSubscription]int{}
	for d := range reasons {
		count[d.subscription]++
	}
	for _, d := range gone {
		count[d.subscription]--
		// Of those due at the same time any may go.
		same := slices.ContainsFunc(l.waiting(d.subscription), func(o *lifeDelivery) bool { return reasons[o] != "" && o.dueAt.Equal(d.dueAt) })
		if !same {
			l.rt.Fatalf("held, and ended: %+v", d)
		}
	}
	for s, n := range count {
		if n != 0 {
			l.rt.Fatalf("%d more should have ended (age %v, at most %d held) of %+v", n, age, held, s)
		}
	}
	for _, d := range gone {
		reason := "overflow"
		if !d.dueAt.After(began.Add(-age)) {
			reason = "expired"
		}
		l.steps[reason]++
		l.endWithoutRequest(d, "exhausted", reason)
	}
}

func (l *life) endReleases() {
	_, err := l.q.EndReleases(l.t.Context())
	l.ok(err)
	for _, s := range l.subscriptions {
		if waiting := l.waiting(s); len(waiting) == 0 || waiting[0].dueAt.After(s.release) {
			s.release, s.releasedAt = time.Time{}, time.Time{}
		}
	}
}

func (l *life) isUnfinished(s *lifeSubscription, e lifeEvent) bool {
	for _, d := range l.deliveries {
		if d.subscription == s && d.event.id == e.id {
			return true
		}
	}
	return false
}

func (l *life) startReplay(s *lifeSubscription, source string) uuid.UUID {
	r, err := l.q.CreateReplay(l.t.Context(), db.CreateReplayParams{
		SubscriptionID: s.id, AccountID: "default", Since: l.now().Add(-time.Hour), Until: l.now().Add(time.Minute), Source: source, RatePerSecond: 1000, State: "running",
	})
	l.ok(err)
	l.do("UPDATE mailhook.replays SET advanced_at = now() - interval '1 second' WHERE id = $1", r.ID)
	return r.ID
}

func (l *life) replayExhausted() {
	s := l.subscription()
	row, err := l.q.AdvanceReplay(l.t.Context(), db.AdvanceReplayParams{ID: l.startReplay(s, "exhausted"), MaxScanned: replayScan})
	l.ok(err)
	again := map[int64]bool{}
	for _, end := range l.ended {
		if end.isDead && end.subscription == s && !s.isGone() && s.wants(end.event) {
			end.isDead = false
			if !l.isUnfinished(s, end.event) {
				again[end.event.id] = true
			}
		}
	}
	l.replayed(s, again, row.Inserted, row.State)
}

func (l *life) replayEvents() {
	s := l.subscription()
	row, err := l.q.AdvanceReplay(l.t.Context(), db.AdvanceReplayParams{ID: l.startReplay(s, "all"), MaxScanned: replayScan})
	l.ok(err)
	again := map[int64]bool{}
	for _, e := range l.dispatched() {
		if s.wants(e) && !l.isUnfinished(s, e) {
			again[e.id] = true
		}
	}
	for _, end := range l.ended {
		if end.subscription == s && !s.isGone() {
			end.isDead = false
		}
	}
	l.replayed(s, again, row.Inserted, row.State)
}

func (l *life) dispatched() []lifeEvent {
	return rowsOf(l.rt, l.t, l.bundle, func(row pgx.CollectableRow) (e lifeEvent, err error) {
		var about *string
		err = row.Scan(&e.id, &e.insertedAt, &e.eventType, &about)
		if about != nil {
			e.about = uuid.MustParse((*about)[len("sub_"):])
		}
		return e, err
	}, "SELECT id, inserted_at, event_type, data ->> 'subscription_id' FROM mailhook.events")
}

// replayed: one new delivery for each of these events, and the replay is over.
func (l *life) replayed(s *lifeSubscription, again map[int64]bool, inserted int64, state string) {
	want := map[bool]string{true: "cancelled", false: "done"}[s.isGone()]
	n := len(again)
	made := l.adopt(func(d *lifeDelivery) bool {
		expected := d.subscription == s && again[d.event.id] && d.lease == uuid.Nil
		delete(again, d.event.id)
		return expected
	})
	l.steps["replayed"] += n
	if len(made) != n || int(inserted) != n || state != want {
		l.rt.Fatalf("the replay made %d deliveries, says %d, and is %s; want %d and %s", len(made), inserted, state, n, want)
	}
}

// retry is what the API does for one delivery.
func (l *life) retry() {
	if len(l.ended) > 0 && rapid.Bool().Draw(l.rt, "of an ended one") {
		l.redeliver()
		return
	}
	s := l.subscription()
	waiting := l.waiting(s)
	if len(waiting) == 0 || s.isGone() {
		l.rt.Skip("nothing waits")
	}
	d := waiting[rapid.IntRange(0, len(waiting)-1).Draw(l.rt, "delivery")]
	n, err := l.q.HurryDelivery(l.t.Context(), d.id)
	l.ok(err)
	if n != 1 {
		l.rt.Fatalf("hurried %d of one that waits", n)
	}
	d.dueAt = l.now()
	if d.batch != uuid.Nil {
		d.batch = d.id
	}
}

func (l *life) redeliver() {
	ids := make([]uuid.UUID, 0, len(l.ended))
	for id := range l.ended {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b uuid.UUID) int { return slices.Compare(a[:], b[:]) })
	id := rapid.SampledFrom(ids).Draw(l.rt, "delivery")
	end := l.ended[id]
	target, err := l.q.GetRetryTarget(l.t.Context(), db.GetRetryTargetParams{SubscriptionID: end.subscription.id, EventInsertedAt: end.event.insertedAt, EventID: end.event.id})
	l.ok(err)
	if !target.EventExists || (target.SubscriptionStatus == "") != end.subscription.deleted {
		l.rt.Fatalf("%+v for %+v", target, end)
	}
	unfinished, err := l.q.IsPairUnfinished(l.t.Context(), db.IsPairUnfinishedParams{EventInsertedAt: end.event.insertedAt, EventID: end.event.id, SubscriptionID: end.subscription.id})
	l.ok(err)
	if unfinished != l.isUnfinished(end.subscription, end.event) {
		l.rt.Fatalf("unfinished: %v, for %+v", unfinished, end)
	}
	if unfinished || end.subscription.isGone() {
		l.rt.Skip("refused by the API")
	}
	_, err = l.q.InsertRetry(l.t.Context(), db.InsertRetryParams{
		SubscriptionID: end.subscription.id, AccountID: "default", EventInsertedAt: end.event.insertedAt, EventID: end.event.id, EventType: end.event.eventType,
	})
	l.ok(err)
	l.ok(l.q.DeleteDeadLetter(l.t.Context(), id))
	end.isDead = false
	l.adopt(func(d *lifeDelivery) bool {
		return d.subscription == end.subscription && d.event.id == end.event.id && d.lease == uuid.Nil
	})
}

// pass lets time pass: whatever has a time moves into the past.
func (l *life) pass() {
	d := step * time.Duration(rapid.SampledFrom([]int{1, 2, 4, 10, 25}).Draw(l.rt, "steps"))
	l.do("UPDATE mailhook.deliveries SET next_attempt_at = next_attempt_at - $1::interval", d)
	l.do(`UPDATE mailhook.subscription_health SET first_failed_at = first_failed_at - $1::interval, last_failed_at = last_failed_at - $1::interval, opened_at = opened_at - $1::interval,
		open_until = open_until - $1::interval, wait_until = wait_until - $1::interval, slowed_at = slowed_at - $1::interval, release_before = release_before - $1::interval,
		released_at = released_at - $1::interval`, d)
	for _, x := range l.deliveries {
		x.dueAt = x.dueAt.Add(-d)
	}
	for _, s := range l.subscriptions {
		s.pass(d)
	}
}

// compare holds the database against the model.
func (l *life) compare() {
	l.compareDeliveries()
	l.compareAttempts()
	l.compareSubscriptions()
	l.expectInOutbox()
	if len(l.deliveries)+len(l.ended) != l.made {
		l.rt.Fatalf("%d deliveries were made, %d are unfinished and %d have ended", l.made, len(l.deliveries), len(l.ended))
	}
}

func (l *life) compareDeliveries() {
	rows := l.stored()
	pairs := map[string]bool{}
	leased := map[*lifeSubscription]int{}
	for _, row := range rows {
		d := l.deliveries[row.ID]
		if d == nil {
			l.rt.Fatalf("this delivery has ended: %+v", row)
		}
		if isLeased := row.LeaseID != nil; isLeased != (d.lease != uuid.Nil) || isLeased && (*row.LeaseID != d.lease || *row.LeasedBy != d.worker) || row.Attempt != d.attempt || !near(row.NextAttemptAt, d.dueAt) || row.BatchID != d.batch {
			l.rt.Fatalf("stored is %+v, want %+v", row, d)
		}
		d.dueAt = row.NextAttemptAt
		if d.lease != uuid.Nil {
			leased[d.subscription]++
		}
		pair := fmt.Sprint(row.SubscriptionID, row.EventID)
		if pairs[pair] {
			l.rt.Fatalf("two unfinished deliveries of event %d to %v", row.EventID, row.SubscriptionID)
		}
		pairs[pair] = true
	}
	if len(rows) != len(l.deliveries) {
		l.rt.Fatalf("%d deliveries are stored, want %d", len(rows), len(l.deliveries))
	}
	for s, n := range leased {
		// A batch is claimed whole where there is room for one of it.
		if n > s.cap*s.ofEach() && (s.maxEvents == 0 || l.inBatches(s) == 0) {
			l.rt.Fatalf("%d are leased of %+v", n, s)
		}
	}
}

// inBatches counts the deliveries that have failed in a batch.
func (l *life) inBatches(s *lifeSubscription) (n int) {
	for _, d := range l.deliveries {
		if d.subscription == s && d.batch != uuid.Nil {
			n++
		}
	}
	return n
}

// compareAttempts: every row is expected, and an end has one.
func (l *life) compareAttempts() {
	type row struct {
		DeliveryID uuid.UUID
		Text       string
	}
	got := map[uuid.UUID][]string{}
	for _, r := range rowsOf(l.rt, l.t, l.bundle, pgx.RowToStructByPos[row], `SELECT delivery_id, concat(number, ' ', outcome, ' ', ended_as, ' ', ended_reason) FROM mailhook.attempts
		ORDER BY delivery_id, number, outcome NULLS LAST`) {
		got[r.DeliveryID] = append(got[r.DeliveryID], r.Text)
	}
	for id, want := range l.attempts {
		if !slices.Equal(got[id], want) {
			l.rt.Fatalf("attempts of %v: %q, want %q", id, got[id], want)
		}
	}
	if len(got) != len(l.attempts) {
		l.rt.Fatalf("%d deliveries have attempts, want %d", len(got), len(l.attempts))
	}
	letters := rowsOf(l.rt, l.t, l.bundle, pgx.RowTo[uuid.UUID], "SELECT id FROM mailhook.dead_letters")
	dead := 0
	for _, end := range l.ended {
		if end.isDead {
			dead++
		}
	}
	for _, id := range letters {
		if l.ended[id] == nil || !l.ended[id].isDead {
			l.rt.Fatalf("%v is a dead letter", id)
		}
	}
	if len(letters) != dead {
		l.rt.Fatalf("%d dead letters, want %d", len(letters), dead)
	}
}

type healthRow struct {
	ID                               uuid.UUID
	Status, StatusReason             string
	IsDeleted                        bool
	Failures, FailedProbes           int
	FirstFailed, OpenedAt, OpenUntil *time.Time
	WaitUntil, Release, ReleasedAt   *time.Time
	Limit                            *int
}

func (l *life) compareSubscriptions() {
	rows := rowsOf(l.rt, l.t, l.bundle, pgx.RowToStructByPos[healthRow], `SELECT s.id, s.status, coalesce(s.status_reason, ''), s.deleted_at IS NOT NULL, coalesce(h.consecutive_failures, 0), coalesce(h.failed_probes, 0),
		h.first_failed_at, h.opened_at, h.open_until, h.wait_until, h.release_before, h.released_at, h.in_flight_limit
		FROM mailhook.subscriptions AS s LEFT JOIN mailhook.subscription_health AS h ON h.subscription_id = s.id`)
	for _, row := range rows {
		i := slices.IndexFunc(l.subscriptions, func(s *lifeSubscription) bool { return s.id == row.ID })
		s := l.subscriptions[i]
		wrong := row.Status != s.status || row.StatusReason != s.reason || row.IsDeleted != s.deleted || row.Failures != s.failures || row.FailedProbes != s.failedProbes ||
			(row.Limit == nil) != (s.limit == 0) || row.Limit != nil && *row.Limit != s.limit
		// released_at moves with each release: that of the database counts.
		s.releasedAt = valueAt(row.ReleasedAt)
		for _, x := range []struct {
			got  *time.Time
			want *time.Time
		}{{row.OpenedAt, &s.openedAt}, {row.OpenUntil, &s.openUntil}, {row.WaitUntil, &s.waitUntil}, {row.Release, &s.release}} {
			wrong = wrong || (x.got == nil) != x.want.IsZero() || x.got != nil && !near(*x.got, *x.want)
			*x.want = valueAt(x.got)
		}
		if s.failures > 0 {
			wrong = wrong || row.FirstFailed == nil || !near(*row.FirstFailed, s.firstFailed)
			s.firstFailed = valueAt(row.FirstFailed)
		}
		if wrong {
			l.rt.Fatalf("stored is %+v\nwant %+v", row, s)
		}
	}
}

func valueAt(at *time.Time) time.Time {
	if at == nil {
		return time.Time{}
	}
	return *at
}
