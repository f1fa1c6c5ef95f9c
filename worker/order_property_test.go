package worker

import (
	"context"
	"testing"
	"time"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"mailhook/db"
)

// Random sequences of what two workers do with deliveries that go in order, in which what follows a commit is late or never comes:
// of each key one delivery is leased at a time, for the first time in the order of the events, and in the end none is left.
func TestOrderKeepsToItself(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.Exec(t, "UPDATE mailhook.installation SET circuit_failures = 1000000")
	w := b.idleWorker(t, b.config())
	rapid.Check(t, func(rt *rapid.T) {
		w.headless = newHeadless()
		o := &ordered{b: b, t: t, rt: rt, w: w, leased: map[uuid.UUID]lifeLease{}, last: map[int64]int64{}}
		o.start()
		rt.Repeat(map[string]func(*rapid.T){
			"":               func(rt *rapid.T) { o.rt = rt },
			"emit":           func(*rapid.T) { o.emit() },
			"dispatch":       func(*rapid.T) { o.dispatch(rapid.IntRange(0, 9).Draw(o.rt, "in turn") > 0) },
			"claim":          func(*rapid.T) { o.claim() },
			"record":         func(*rapid.T) { o.record(rapid.Bool().Draw(o.rt, "well")) },
			"unblock":        func(*rapid.T) { o.w.unblockAll(o.t.Context()) },
			"die before it":  func(*rapid.T) { o.w.headless = newHeadless() },
			"sweep":          func(*rapid.T) { o.sweep() },
			"rescue":         func(*rapid.T) { o.rescue() },
			"replay":         func(*rapid.T) { o.replay() },
			"claim again":    func(*rapid.T) { o.claim() },
			"record again":   func(*rapid.T) { o.record(true) },
			"dispatch again": func(*rapid.T) { o.dispatch(true) },
		})
		o.settle()
	})
}

type lifeLease struct {
	lease   uuid.UUID
	key     int64
	eventID int64
}

type ordered struct {
	b      *bundle
	t      *testing.T
	rt     *rapid.T
	w      *Worker
	id     uuid.UUID // of the subscription
	leased map[uuid.UUID]lifeLease
	last   map[int64]int64 // the latest event of each key that was leased
}

func (o *ordered) do(sql string, args ...any) {
	if _, err := o.b.Pool.Exec(o.t.Context(), sql, args...); err != nil {
		o.rt.Fatal(err)
	}
}

func (o *ordered) start() {
	for _, table := range []string{"outbox", "deliveries", "attempts", "dead_letters", "subscription_health", "subscriptions", "replays"} {
		o.do("DELETE FROM mailhook." + table)
	}
	o.id = uuid.New()
	o.do(`INSERT INTO mailhook.subscriptions (id, account_id, url, event_types, ordering, max_in_flight, retry_schedule, retry_jitter, created_at)
		VALUES ($1, 'default', 'https://example.com/', '{email}', 'recipient', 1000, '{1us}', 0, now() - interval '1 hour')`, o.id)
}

func (o *ordered) emit() {
	for range rapid.IntRange(1, 5).Draw(o.rt, "events") {
		o.do("INSERT INTO mailhook.outbox (event_type, recipient) VALUES ('email.sent', $1)", rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(o.rt, "recipient"))
	}
}

func (o *ordered) dispatch(inTurn bool) {
	lease := uuid.New()
	rows, err := o.w.q.Dispatch(o.t.Context(), db.DispatchParams{Holes: []int64{}, MaxRows: int32(rapid.IntRange(1, 6).Draw(o.rt, "rows")), MaxBytes: batchBytes, InTurn: inTurn,
		WorkerID: o.w.identity.get(), LeaseID: lease, FreeSlots: int32(rapid.IntRange(0, 6).Draw(o.rt, "free")), InFlight: []byte("{}"), Limits: []byte("{}"), IDPrefix: idPrefix()})
	if err != nil {
		o.rt.Fatal(err)
	}
	listed := listedOf(rows)
	o.w.headless.add(blockedKeys(listed)...)
	for i, id := range listed.DeliveryIDs {
		o.lease(id, lifeLease{lease, listed.OrderKeys[i], listed.EventIDs[i]})
	}
}

func (o *ordered) claim() {
	lease := uuid.New()
	rows, err := o.w.q.Claim(o.t.Context(), db.ClaimParams{MaxSteps: claimSteps, MaxOfEach: claimOfEach, FreeSlots: int32(rapid.IntRange(1, 6).Draw(o.rt, "free")), MaxBytes: batchBytes,
		InFlight: []byte("{}"), Limits: []byte("{}"), WorkerID: o.w.identity.get(), LeaseID: lease})
	if err != nil {
		o.rt.Fatal(err)
	}
	for _, row := range rows {
		if row.DeliveryID != nil {
			o.lease(*row.DeliveryID, lifeLease{lease, row.OrderKey, row.EventID})
		}
	}
}

func (o *ordered) lease(id uuid.UUID, l lifeLease) {
	for other, held := range o.leased {
		if held.key == l.key {
			o.rt.Fatalf("event %d is leased beside event %d of the same key (%v)", l.eventID, held.eventID, other)
		}
	}
	o.leased[id] = l
	// A repetition may come after younger ones; the first time may not.
	first := o.count("SELECT count(*) FROM mailhook.attempts WHERE event_id = $1", l.eventID) == 0
	if first && l.eventID < o.last[l.key] {
		o.rt.Fatalf("event %d goes out after event %d", l.eventID, o.last[l.key])
	}
	o.last[l.key] = max(o.last[l.key], l.eventID)
}

func (o *ordered) count(sql string, args ...any) (n int64) {
	if err := o.b.Pool.QueryRow(o.t.Context(), sql, args...).Scan(&n); err != nil {
		o.rt.Fatal(err)
	}
	return n
}

func (o *ordered) record(well bool) {
	var batch []outcome
	for id, l := range o.leased {
		if len(batch) == 3 {
			break
		}
		word := outcomeHTTP5xx
		if well {
			word = outcomeOK
		}
		batch = append(batch, outcome{delivery: &delivery{id: id, leaseID: l.lease, subscriptionID: o.id, orderKey: l.key}, word: word, startedAt: time.Now()})
		delete(o.leased, id)
	}
	if len(batch) == 0 {
		return
	}
	p := recordParams(batch)
	p.AgesMS = ages(batch)
	if _, err := o.w.q.Record(o.t.Context(), p); err != nil {
		o.rt.Fatal(err)
	}
	o.w.headless.add(keysOf(batch)...)
}

func (o *ordered) sweep() {
	s := keySweep{}
	if _, err := s.slice(o.t.Context(), o.w); err != nil {
		o.rt.Fatal(err)
	}
	o.w.unblockAll(o.t.Context())
}

func (o *ordered) rescue() {
	o.do("UPDATE mailhook.deliveries SET leased_by = NULL, lease_id = NULL")
	clear(o.leased)
}

// replay makes new deliveries of the dead letters, and leaves their keys to a sweep.
func (o *ordered) replay() {
	o.do(`INSERT INTO mailhook.replays (subscription_id, account_id, since, until, source, rate_per_second, matched, advanced_at)
		VALUES ($1, 'default', now() - interval '1 hour', now() + interval '1 hour', 'exhausted', 1000, 0, now() - interval '1 second')`, o.id)
	running, err := o.w.q.ListRunningReplays(o.t.Context())
	if err != nil {
		o.rt.Fatal(err)
	}
	for _, r := range running {
		if _, err := o.w.q.AdvanceReplay(context.WithoutCancel(o.t.Context()), db.AdvanceReplayParams{ID: r.ID, MaxScanned: replayScan}); err != nil {
			o.rt.Fatal(err)
		}
	}
}

// settle lets everything go well from now on.
func (o *ordered) settle() {
	left := func() int64 {
		return o.count("SELECT (SELECT count(*) FROM mailhook.outbox) + (SELECT count(*) FROM mailhook.deliveries)")
	}
	o.rescue()
	for range 2000 {
		if left() == 0 {
			return
		}
		o.dispatch(true)
		o.claim()
		o.record(true)
		o.sweep()
	}
	o.rt.Fatalf("%d are left", left())
}
