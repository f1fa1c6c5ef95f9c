package worker

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"mailhook/db"
)

// Random subscriptions and random events: what dispatch makes of them, what a replay counts and delivers, and how a
// match is explained, are all held against one oracle.
func TestMatchingIsWhatTheContractSays(t *testing.T) {
	t.Parallel()
	b := setup(t)
	m := &matcher{bundle: b, w: b.idleWorker(t, b.config()), q: db.New(b.Pool)}
	rapid.Check(t, func(rt *rapid.T) { m.check(rt, t) })
	t.Logf("%d pairs of event and subscription, %d deliveries, %d events in quarantine, %d duplicates", m.pairs, m.deliveries, m.quarantined, m.duplicates)
}

// A matcher runs the checks one after the other in one database.
type matcher struct {
	*bundle
	w *Worker
	q *db.Queries

	base          time.Time
	subscriptions []wantedSubscription
	events        map[int64]wroteEvent // those dispatched, not refused
	duplicateOf   map[int64]*wroteEvent
	insertedAt    map[int64]time.Time

	pairs, deliveries, quarantined, duplicates int
}

// A pair is one event for one subscription.
type pair struct {
	event        int64
	subscription string
	eventType    string
}

func (m *matcher) check(rt *rapid.T, t *testing.T) {
	m.clear(rt, t)
	m.base = time.Now().UTC().Truncate(time.Second).Add(-time.Hour)
	m.subscriptions = nil
	for range rapid.IntRange(3, 10).Draw(rt, "subscriptions") {
		m.subscriptions = append(m.subscriptions, m.subscribeAny(rt, t))
	}
	keys := &dedupe{winners: map[[2]string]wroteEvent{}}
	refused := map[int64]wroteEvent{}
	m.events, m.duplicateOf = map[int64]wroteEvent{}, map[int64]*wroteEvent{}
	for round := range rapid.IntRange(1, 2).Draw(rt, "rounds") {
		if round > 0 && rapid.Bool().Draw(rt, "window over") {
			m.exec(rt, t, "UPDATE mailhook.dedupe_keys SET seen_at = seen_at - interval '2 days'")
			keys.expire()
		}
		for _, e := range m.write(rt, t, rapid.SliceOfN(rapid.Custom(m.anyEvent), 6, 24).Draw(rt, "events")) {
			if e.refused() {
				refused[e.id] = e
			} else {
				m.events[e.id], m.duplicateOf[e.id] = e, keys.winner(e)
			}
		}
		m.dispatchAll(rt, t, rapid.SampledFrom([]int{1, 5, 500}).Draw(rt, "batch"))
	}
	m.checkLog(rt, t)
	m.checkQuarantine(rt, t, refused)
	m.checkDeliveries(rt, t)
	m.checkExplained(rt, t)
	m.checkReplays(rt, t)
}

func (m *matcher) clear(rt *rapid.T, t *testing.T) {
	for _, table := range []string{"outbox", "events", "quarantine", "dedupe_keys", "deliveries", "dead_letters", "replays", "subscriptions", "subscription_event_types", "accounts"} {
		m.exec(rt, t, "DELETE FROM mailhook."+table)
	}
}

func (m *matcher) exec(rt *rapid.T, t *testing.T, sql string, args ...any) {
	if _, err := m.Pool.Exec(t.Context(), sql, args...); err != nil {
		rt.Fatalf("%s: %v", sql, err)
	}
}

// rowsOf is what a statement answers, a value of T for each row.
func rowsOf[T any](rt *rapid.T, t *testing.T, b *bundle, to pgx.RowToFunc[T], sql string, args ...any) []T {
	rows, _ := b.Pool.Query(t.Context(), sql, args...)
	values, err := pgx.CollectRows(rows, to)
	if err != nil {
		rt.Fatalf("%s: %v", sql, err)
	}
	return values
}

// subscribeAny makes a subscription, and then changes it to something else at times, as an account does.
func (m *matcher) subscribeAny(rt *rapid.T, t *testing.T) wantedSubscription {
	id := uuid.Must(uuid.NewV7())
	s := wantedSubscription{
		id: id.String(), account: rapid.SampledFrom(accountNames).Draw(rt, "account"), types: someOf(rt, "types", namedNodes),
		status:    rapid.SampledFrom([]string{"active", "active", "active", "paused", "inactive", "suspended"}).Draw(rt, "status"),
		deleted:   chance(rt, "deleted", 12),
		createdAt: m.base.Add(time.Duration(rapid.IntRange(-20, 20).Draw(rt, "created at"))*time.Minute - 10*time.Minute + 30*time.Second),
		domains:   anyFilter(rt, "domains", domainNames), nodes: anyFilter(rt, "nodes", nodeNames), bridges: anyFilter(rt, "bridges", bridgeNames),
	}
	if chance(rt, "ips set", 5) {
		s.ips = rapid.SliceOfN(rapid.SampledFrom(addresses), 1, 3).Draw(rt, "ips")
	}
	s.conditions = anyConditions(rt)
	row, err := m.q.CreateSubscription(t.Context(), db.CreateSubscriptionParams{
		ID: id, AccountID: s.account, Status: "active", ChannelType: "web", URL: "https://example.com/", HeaderNames: []string{}, EventTypes: s.types,
		FilterSendingDomain: s.domains, FilterSendingNode: s.nodes, FilterBridge: s.bridges, FilterDedicatedIp: ipTexts(s.ips), Format: "standard",
		RetrySchedule: []time.Duration{time.Minute}, Timeout: 15 * time.Second, MaxInFlight: 1,
		SuccessRule: "2xx", Ordering: "none", ChannelSettings: []byte("{}"), FilterConditions: conditionsJSON(s.conditions),
	})
	if err != nil {
		rt.Fatal(err)
	}
	if rapid.Bool().Draw(rt, "changed") {
		s.types, s.domains, s.conditions = someOf(rt, "new types", namedNodes), anyFilter(rt, "new domains", domainNames), anyConditions(rt)
		if _, err := m.q.UpdateSubscription(t.Context(), db.UpdateSubscriptionParams{
			ID: id, ChannelType: row.ChannelType, URL: row.URL, HeaderNames: []string{}, EventTypes: s.types, FilterSendingDomain: s.domains,
			FilterSendingNode: row.FilterSendingNode, FilterBridge: row.FilterBridge, FilterDedicatedIp: row.FilterDedicatedIp, Format: row.Format,
			RetrySchedule: row.RetrySchedule, Timeout: row.Timeout, MaxInFlight: row.MaxInFlight, SuccessRule: row.SuccessRule, Ordering: row.Ordering,
			ChannelSettings: row.ChannelSettings, FilterConditions: conditionsJSON(s.conditions),
		}); err != nil {
			rt.Fatal(err)
		}
	}
	for _, status := range []string{rapid.SampledFrom([]string{"active", "inactive"}).Draw(rt, "status before"), s.status} {
		if _, err := m.q.SetSubscriptionStatus(t.Context(), db.SetSubscriptionStatusParams{ID: id, Status: status}); err != nil {
			rt.Fatal(err)
		}
	}
	m.exec(rt, t, "UPDATE mailhook.subscriptions SET created_at = $2 WHERE id = $1", id, s.createdAt)
	if s.deleted {
		if _, err := m.q.DeleteSubscription(t.Context(), db.DeleteSubscriptionParams{ID: id}); err != nil {
			rt.Fatal(err)
		}
	}
	// Holding is not matching: a suspended account's events are matched all the same.
	if chance(rt, "account suspended", 8) {
		if err := m.q.PutAccount(t.Context(), db.PutAccountParams{ID: s.account, Status: "suspended"}); err != nil {
			rt.Fatal(err)
		}
	}
	return s
}

// write puts events into the outbox as a host does, and answers them with their ids.
func (m *matcher) write(rt *rapid.T, t *testing.T, events []wroteEvent) []wroteEvent {
	batch := &pgx.Batch{}
	for i := range events {
		e := &events[i]
		batch.Queue(`INSERT INTO mailhook.outbox (inserted_at, account_id, event_type, occurred_at, recipient, sending_domain, sending_node, bridge, dedicated_ip, dedupe_key, data, campaign_id)
			VALUES ($1, $2, $3, $4::text::timestamptz, $5, $6, $7, $8, $9, $10, $11::text::json, $12) RETURNING id`,
			e.insertedAt, e.account, e.eventType, e.occurredAt, e.recipient, e.domain, e.node, e.bridge, e.ip.text, e.dedupeKey, e.data.text, e.campaign,
		).QueryRow(func(row pgx.Row) error { return row.Scan(&e.id) })
	}
	if err := m.Pool.SendBatch(t.Context(), batch).Close(); err != nil {
		rt.Fatal(err)
	}
	return events
}

// dispatchAll empties the outbox in batches. No slot is free: every delivery is written as waiting.
func (m *matcher) dispatchAll(rt *rapid.T, t *testing.T, batch int) {
	d := &dispatcher{w: m.w, requests: t.Context(), limit: batch, fanOut: -1}
	d.w.cfg.BatchRows = batch
	for {
		if n, err := d.look(t.Context(), 0, batchBytes); err != nil {
			rt.Fatal(err)
		} else if n == 0 {
			break
		}
	}
	for range rowsOf(rt, t, m.bundle, pgx.RowTo[int64], "SELECT id FROM mailhook.outbox") {
		rt.Fatal("dispatch found nothing more, and the outbox is not empty")
	}
}

// checkLog: every event that is not refused is logged, under its account and leaf type, and knows what it repeats.
func (m *matcher) checkLog(rt *rapid.T, t *testing.T) {
	type logged struct {
		ID                   int64
		InsertedAt           time.Time
		AccountID, EventType string
		Recipient            *string
		DuplicateOf          *string
	}
	m.insertedAt = map[int64]time.Time{}
	rows := rowsOf(rt, t, m.bundle, pgx.RowToStructByPos[logged], "SELECT id, inserted_at, account_id, event_type, recipient, duplicate_of FROM mailhook.events")
	for _, row := range rows {
		m.insertedAt[row.ID] = row.InsertedAt
	}
	for _, row := range rows {
		e, ok := m.events[row.ID]
		if !ok {
			rt.Fatalf("event %d is logged twice, or should be in quarantine: %+v", row.ID, row)
		}
		if row.AccountID != e.accountID() || row.EventType != e.leafType() || absent(row.Recipient) != absent(e.recipient) || row.Recipient != nil && *row.Recipient == "" {
			rt.Fatalf("event %d is logged as %+v, it was written as %#v", row.ID, row, e)
		}
		want := ""
		if first := m.duplicateOf[row.ID]; first != nil {
			want = publicEventID(m.insertedAt[first.id], first.id, m.w.installation)
			m.duplicates++
		}
		if got := row.DuplicateOf; (got == nil) != (want == "") || got != nil && *got != want {
			rt.Fatalf("event %d is a duplicate of %v, want %q", row.ID, got, want)
		}
	}
	if len(rows) != len(m.events) {
		rt.Fatalf("%d events are logged, of %d", len(rows), len(m.events))
	}
}

// checkQuarantine: what is refused is there as the host wrote it, and nothing else.
func (m *matcher) checkQuarantine(rt *rapid.T, t *testing.T, refused map[int64]wroteEvent) {
	type kept struct {
		ID                                       int64
		AccountID                                *string
		EventType                                string
		DedicatedIP, DedupeKey, Reason, Sqlstate *string
	}
	rows := rowsOf(rt, t, m.bundle, pgx.RowToStructByPos[kept], "SELECT id, account_id, event_type, dedicated_ip, dedupe_key, reason, error_code FROM mailhook.quarantine")
	for _, row := range rows {
		e, ok := refused[row.ID]
		switch {
		case !ok:
			rt.Fatalf("event %d is in quarantine for %s %s: %#v", row.ID, *row.Sqlstate, *row.Reason, m.events[row.ID])
		case !equal(row.AccountID, e.account) || row.EventType != e.eventType || !equal(row.DedicatedIP, e.ip.text) || !equal(row.DedupeKey, e.dedupeKey) || len(*row.Sqlstate) != 5 || *row.Reason == "":
			rt.Fatalf("event %d is in quarantine as %+v, it was written as %#v", row.ID, row, e)
		}
	}
	if len(rows) != len(refused) {
		rt.Fatalf("%d events are in quarantine, of %d", len(rows), len(refused))
	}
	m.quarantined += len(rows)
}

func equal(a, b *string) bool { return (a == nil) == (b == nil) && (a == nil || *a == *b) }

// pairsWhere are the pairs of all events that are no duplicates.
func (m *matcher) pairsWhere(is func(wroteEvent, wantedSubscription) bool) []pair {
	pairs := []pair{}
	for id, e := range m.events {
		for _, s := range m.subscriptions {
			if m.duplicateOf[id] == nil && is(e, s) {
				pairs = append(pairs, pair{id, s.id, e.leafType()})
			}
		}
	}
	return sorted(pairs)
}

func sorted(pairs []pair) []pair {
	slices.SortFunc(pairs, func(a, b pair) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	return pairs
}

func (m *matcher) deliveredPairs(rt *rapid.T, t *testing.T) []pair {
	return sorted(rowsOf(rt, t, m.bundle, func(row pgx.CollectableRow) (p pair, err error) {
		return p, row.Scan(&p.event, &p.subscription, &p.eventType)
	}, "SELECT event_id, subscription_id::text, event_type FROM mailhook.deliveries"))
}

func (m *matcher) checkDeliveries(rt *rapid.T, t *testing.T) {
	want := m.pairsWhere(func(e wroteEvent, s wantedSubscription) bool {
		return !s.deleted && e.judge(s, time.Now()).atDispatch()
	})
	m.same(rt, "dispatch", m.deliveredPairs(rt, t), want)
	m.pairs += len(m.events) * len(m.subscriptions)
	m.deliveries += len(want)
}

func (m *matcher) same(rt *rapid.T, what string, got, want []pair) {
	if slices.Equal(got, want) {
		return
	}
	for _, p := range append(slices.Clone(got), want...) {
		if slices.Contains(got, p) != slices.Contains(want, p) {
			i := slices.IndexFunc(m.subscriptions, func(s wantedSubscription) bool { return s.id == p.subscription })
			e := m.events[p.event]
			rt.Fatalf("%s: delivered %v, want %v: event %#v\nleaf type %s\nsubscription %+v\nconditions %+v", what,
				slices.Contains(got, p), slices.Contains(want, p), e, p.eventType, m.subscriptions[i], e.judge(m.subscriptions[i], time.Now()))
		}
	}
	rt.Fatalf("%s: a pair comes more than once: %v", what, got)
}

// checkExplained: each condition of each pair, as the API explains it.
func (m *matcher) checkExplained(rt *rapid.T, t *testing.T) {
	for id, e := range m.events {
		logged, err := m.q.GetEvent(t.Context(), db.GetEventParams{InsertedAt: m.insertedAt[id], ID: id})
		if err != nil {
			rt.Fatal(err)
		}
		for _, s := range m.subscriptions {
			row, err := m.q.ExplainMatch(t.Context(), logged.Explain(uuid.MustParse(s.id)))
			if err != nil {
				rt.Fatal(err)
			}
			got := verdict{
				account: row.AccountPassed, created: row.CreatedBeforePassed, status: row.StatusPassed, eventType: row.EventTypePassed, domain: row.SendingDomainPassed,
				node: row.SendingNodePassed, bridge: row.BridgePassed, ip: row.DedicatedIpPassed, conditions: !bytes.Contains(row.Conditions, []byte(`"passed": false`)), aboutItself: row.IsAboutItself,
			}
			if want := e.judge(s, time.Now()); got != want {
				rt.Fatalf("explained as %+v; want %+v\nevent %#v\nsubscription %+v\nconditions %s", got, want, e, s, row.Conditions)
			}
		}
	}
}

// checkReplays: a replay of all counts, and then delivers, what the subscription matches today and has no unfinished
// delivery.
func (m *matcher) checkReplays(rt *rapid.T, t *testing.T) {
	// Some pairs have ended by then.
	m.exec(rt, t, "DELETE FROM mailhook.deliveries WHERE event_id % 3 = $1", rapid.IntRange(0, 2).Draw(rt, "ended"))
	var narrowed []string
	if chance(rt, "narrowed", 3) {
		narrowed = someOf(rt, "replayed types", namedNodes)
	}
	for _, s := range m.subscriptions {
		if s.deleted {
			continue // the API knows it no more
		}
		unfinished := m.deliveredPairs(rt, t)
		again := m.pairsWhere(func(e wroteEvent, o wantedSubscription) bool {
			return o.id == s.id && e.judge(s, time.Now()).today() && (narrowed == nil || namesAny(narrowed, e.leafType())) &&
				!slices.Contains(unfinished, pair{e.id, s.id, e.leafType()})
		})
		since, until := m.base.Add(-time.Hour), time.Now().Add(time.Minute)
		if n := m.countReplay(rt, t, s, since, until, narrowed); n != len(again) {
			rt.Fatalf("a replay would take %d events, want %d: %v\nsubscription %+v", n, len(again), again, s)
		}
		if s.status == "inactive" {
			again = nil // delivers nothing
		}
		m.replayAll(rt, t, s, since, until, narrowed)
		m.same(rt, "replay", m.deliveredPairs(rt, t), sorted(append(unfinished, again...)))
	}
}

// countReplay counts in slices of any size.
func (m *matcher) countReplay(rt *rapid.T, t *testing.T, s wantedSubscription, since, until time.Time, types []string) (n int) {
	slice := db.ScanReplayParams{
		SubscriptionID: uuid.MustParse(s.id), Source: "all", Since: since, Until: until, EventTypes: types, BeforeAt: until, MaxRows: int32(rapid.IntRange(1, 60).Draw(rt, "slice")),
	}
	for {
		row, err := m.q.ScanReplay(t.Context(), slice)
		if err != nil {
			rt.Fatal(err)
		}
		n, slice.BeforeAt, slice.BeforeID = n+int(row.Matched), row.BeforeAt, row.BeforeID
		if row.Scanned < int64(slice.MaxRows) {
			return n
		}
	}
}

// replayAll runs a replay to its end, in steps that are bounded by what is read, by the rate, or by both.
func (m *matcher) replayAll(rt *rapid.T, t *testing.T, s wantedSubscription, since, until time.Time, types []string) {
	rate, scan := rapid.IntRange(1, 30).Draw(rt, "rate"), rapid.IntRange(1, 30).Draw(rt, "scan")
	replay, err := m.q.CreateReplay(t.Context(), db.CreateReplayParams{
		SubscriptionID: uuid.MustParse(s.id), AccountID: s.account, Since: since, Until: until, EventTypes: types, Source: "all", RatePerSecond: float64(rate), State: "running",
	})
	if err != nil {
		rt.Fatal(err)
	}
	for range 2 * (len(m.events) + 1) {
		began := time.Now()
		m.exec(rt, t, "UPDATE mailhook.replays SET advanced_at = now() - interval '1 second' WHERE id = $1", replay.ID)
		row, err := m.q.AdvanceReplay(t.Context(), db.AdvanceReplayParams{ID: replay.ID, MaxScanned: int32(scan)})
		if err != nil {
			rt.Fatal(err)
		}
		if float64(row.Inserted) > float64(rate)*(1+time.Since(began).Seconds())+1 {
			rt.Fatalf("a step of a replay released %d, at %d a second", row.Inserted, rate)
		}
		if row.State != "running" {
			if want := map[bool]string{true: "cancelled", false: "done"}[s.status == "inactive"]; row.State != want {
				rt.Fatalf("the replay ended as %s, want %s", row.State, want)
			}
			return
		}
	}
	rt.Fatal("the replay does not come to its end")
}
