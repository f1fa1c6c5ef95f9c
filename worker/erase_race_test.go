package worker

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"mailhook/cmd/receiver"
	"mailhook/db"
	"mailhook/db/dbtest"
)

// A dry run counts what an erasure then does, and changes nothing.
func TestADryRunErasesNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.fillErasable(t, 300)
	q, pattern := db.New(b.Pool), patternOf(t, canary)
	id, err := q.CreateErasure(t.Context(), db.CreateErasureParams{Pattern: pattern, IsDryRun: true})
	if err != nil {
		t.Fatal(err)
	}
	state := func() string {
		var text []string
		for _, table := range []string{"outbox", "events", "deliveries", "attempts", "dead_letters", "quarantine", "dedupe_keys", "test_deliveries"} {
			text = append(text, dbtest.QueryOne[string](t, b.DB, "SELECT coalesce(md5(string_agg(x::text, '' ORDER BY x::text)), '') FROM mailhook."+table+" AS x"))
		}
		return strings.Join(text, " ")
	}
	before := state()
	dry := b.stepThrough(t, id)
	if after := state(); after != before {
		t.Errorf("a dry run changed something:\n%s\n%s", before, after)
	}
	wet := b.stepThrough(t, b.ask(t, canary, ""))
	if after := state(); after == before || wet.EventCount == 0 {
		t.Error("the erasure changed nothing")
	}
	counts := func(r db.GetErasureRow) [8]int64 {
		return [8]int64{r.OutboxCount, r.EventCount, r.DeliveryCount, r.AttemptCount, r.DeadLetterCount, r.QuarantineCount, r.DedupeKeyCount, r.TestDeliveryCount}
	}
	if counts(dry) != counts(wet) {
		t.Errorf("the dry run counted %v, the erasure %v", counts(dry), counts(wet))
	}
}

// An account's erasure touches no other account's rows.
func TestAnErasureOfAnAccount(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.fillErasable(t, 300)
	b.Exec(t, "UPDATE mailhook.outbox SET account_id = 'a' || id % 2")
	b.Exec(t, "UPDATE mailhook.quarantine SET account_id = 'a' || (-id) % 2")
	b.Exec(t, "INSERT INTO mailhook.subscriptions (account_id, url, event_types) VALUES ('a0', 'https://a.example', '{email}'), ('a1', 'https://a.example', '{email}')")
	b.Exec(t, "INSERT INTO mailhook.test_deliveries (subscription_id, account_id, event_type, response_excerpt) SELECT id, account_id, 'email', $1 FROM mailhook.subscriptions", []byte(canary))
	others := func() string {
		return dbtest.QueryOne[string](t, b.DB, `
			SELECT md5(string_agg(x, '' ORDER BY x)) FROM (
				SELECT o::text FROM mailhook.outbox AS o WHERE account_id = 'a1'
				UNION ALL SELECT q::text FROM mailhook.quarantine AS q WHERE account_id = 'a1'
				UNION ALL SELECT e::text FROM mailhook.events AS e WHERE account_id = 'a1'
				UNION ALL SELECT k::text FROM mailhook.dedupe_keys AS k WHERE account_id = 'a1'
				UNION ALL SELECT d::text FROM mailhook.deliveries AS d WHERE account_id = 'a1'
				UNION ALL SELECT l::text FROM mailhook.dead_letters AS l WHERE account_id = 'a1'
				UNION ALL SELECT a::text FROM mailhook.attempts AS a WHERE account_id = 'a1'
				UNION ALL SELECT t::text FROM mailhook.test_deliveries AS t JOIN mailhook.subscriptions AS s ON s.id = t.subscription_id WHERE s.account_id = 'a1'
			) AS all_of_it (x)`)
	}
	before := others()
	row := b.stepThrough(t, b.ask(t, canary, "a0"))
	if after := others(); after != before {
		t.Error("another account's rows have changed")
	}
	if row.OutboxCount != 50 || row.EventCount != 50 || row.DeliveryCount != 50 || row.DeadLetterCount != 50 || row.QuarantineCount != 50 || row.DedupeKeyCount != 50 || row.AttemptCount != 100 || row.TestDeliveryCount != 1 {
		t.Errorf("%+v", row)
	}
	if n := dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.events AS e WHERE account_id = 'a0' AND e::text ~* 'canary'"); n != 0 {
		t.Errorf("%d events are left", n)
	}
}

// A day that is being counted is no partition of events any more: it is looked through all the same, and its counts stay.
func TestADetachedDayIsErased(t *testing.T) {
	t.Parallel()
	b := setup(t)
	days := dbtest.QueryOne[[]string](t, b.DB, `SELECT array_agg(to_char(current_date - ago, 'YYYY-MM-DD') ORDER BY ago DESC) FROM unnest('{40,41,42}'::int[]) AS ago`)
	for i, at := range days {
		b.Exec(t, "SELECT mailhook.create_partition('events', $1::text::date)", at)
		b.Exec(t, `INSERT INTO mailhook.events (inserted_at, id, account_id, event_type, occurred_at, dispatched_at, recipient, data)
			SELECT $1::text::date + n * interval '1 second', $2::int * 1000 + n, 'a', 'email.sent', now(), now(), CASE WHEN n % 3 = 0 THEN $3 ELSE 'other@kept.example' END, '{}'
			FROM generate_series(1, 300) AS n`, at, i, canary)
		if needed := dbtest.QueryOne[string](t, b.DB, "SELECT mailhook.detach_day($1::text::date)", at); needed != "" {
			t.Fatal(needed)
		}
	}
	// One is counted in part, one is dropped in the middle.
	b.Exec(t, "SELECT mailhook.count_day($1::text::date, 100)", days[0])
	id := b.ask(t, canary, "")
	e := b.eraser(t)
	dropped := false
	for b.erasure(t, id).State != "done" {
		e.rows = 40
		if _, err := e.Step(t.Context()); err != nil {
			t.Fatal(err)
		}
		if row := b.erasure(t, id); row.Phase == "detached_days" && row.EventCount > 0 && !dropped {
			dropped = true
			b.Exec(t, "SELECT mailhook.count_day($1::text::date, 1000)", days[2])
		}
	}
	if row := b.erasure(t, id); row.EventCount != 200 {
		t.Errorf("%d events erased, not those of two days", row.EventCount)
	}
	if found := traces(b.Dump(t)); len(found) > 0 {
		t.Errorf("%d traces are left: %s", len(found), found[0])
	}
	for _, at := range days[:2] {
		b.Exec(t, "SELECT mailhook.count_day($1::text::date, 1000)", at)
	}
	if n := dbtest.QueryOne[int64](t, b.DB, "SELECT sum(n)::bigint FROM mailhook.event_counts"); n != 900 {
		t.Errorf("%d of 900 events counted", n)
	}
}

// Beside an erasure the host goes on, workers deliver, and replays and retries make deliveries of what is being erased. Each
// of the others' events comes; of what was erased nothing is left that could be sent.
func TestErasingBesideTraffic(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var mu sync.Mutex
	got := map[string]bool{}
	b.answerWith(func(w http.ResponseWriter, r receiver.Receipt) {
		mu.Lock()
		defer mu.Unlock()
		got[r.Path+" "+r.ID] = true
		if r.Path == "/dead" {
			w.WriteHeader(http.StatusInternalServerError)
		}
		fmt.Fprintf(w, "echo %s", r.Body)
	})
	b.subscribe(t, "/ok", "email")
	dead := b.subscribe(t, "/dead", "email", "retry_schedule = '{10ms}'", "max_in_flight = 200")
	b.Exec(t, "UPDATE mailhook.installation SET circuit_failures = 1000000")
	b.run(t, b.config())
	insert := func(n int, who string) {
		b.Exec(t, emitMany, n, who)
	}
	insert(400, canary)
	insert(400, "other@kept.example")
	dbtest.Eventually(t, "dead letters", func() bool {
		return dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.dead_letters") == 800
	})
	began := dbtest.QueryOne[time.Time](t, b.DB, "SELECT now()")
	stop := make(chan struct{})
	var traffic sync.WaitGroup
	sent := 400
	traffic.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				insert(20, "other@kept.example")
				sent += 20
				dbtest.Eventually(t, "dispatched", func() bool {
					return dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.outbox") == 0
				})
			}
		}
	})
	// Replays of all that is dead and of all there was, over and over, as the API and the workers make them.
	traffic.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				b.Exec(t, `INSERT INTO mailhook.replays (subscription_id, account_id, since, until, source, rate_per_second, matched)
					VALUES ($1, 'default', '2000-01-01', $3, $2, 1000, 1)`, dead, []string{"all", "exhausted"}[rand.IntN(2)], began)
				dbtest.Eventually(t, "the replay ends", func() bool {
					return dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.replays WHERE state = 'running'") == 0
				})
			}
		}
	})
	traffic.Go(func() { b.retryAgainAndAgain(t, stop) })
	id := b.ask(t, canary, "")
	row := b.erased(t, id)
	close(stop)
	traffic.Wait()
	if row.EventCount != 400 {
		t.Errorf("%d events erased", row.EventCount)
	}
	if n := dbtest.QueryOne[int64](t, b.DB, `SELECT count(*) FROM mailhook.events AS e WHERE e.erased_at IS NOT NULL AND (
			EXISTS (SELECT FROM mailhook.deliveries AS d WHERE (d.event_inserted_at, d.event_id) = (e.inserted_at, e.id))
			OR EXISTS (SELECT FROM mailhook.dead_letters AS d WHERE (d.event_inserted_at, d.event_id) = (e.inserted_at, e.id)))`); n != 0 {
		t.Errorf("%d erased events have deliveries", n)
	}
	b.settled(t)
	if found := traces(b.Dump(t)); len(found) > 0 {
		t.Errorf("%d traces are left: %s", len(found), found[0])
	}
	ids := dbtest.QueryOne[[]string](t, b.DB, "SELECT array_agg(mailhook.event_id(inserted_at, id)) FROM mailhook.events WHERE recipient = 'other@kept.example'")
	if len(ids) != sent {
		t.Errorf("%d events of the others are logged, %d were written", len(ids), sent)
	}
	mu.Lock()
	defer mu.Unlock()
	for _, event := range ids {
		if !got["/ok "+event] || !got["/dead "+event] {
			t.Fatalf("%s has not come", event)
		}
	}
	t.Logf("%d events beside it, %d deliveries and %d dead letters cancelled", sent, row.DeliveryCount, row.DeadLetterCount)
}

const emitMany = "INSERT INTO mailhook.outbox (event_type, recipient, data) SELECT 'email.sent', $2, json_build_object('to', $2::text) FROM generate_series(1, $1::int)"

// retryAgainAndAgain makes new deliveries of the canary's events, in a transaction as the API has it.
func (b *bundle) retryAgainAndAgain(t *testing.T, stop chan struct{}) {
	for {
		select {
		case <-stop:
			return
		default:
		}
		err := pgx.BeginFunc(t.Context(), b.Pool, func(tx pgx.Tx) error {
			q := db.New(tx)
			var p db.InsertRetryParams
			var letter [16]byte
			err := tx.QueryRow(t.Context(), `SELECT id, subscription_id, account_id, event_inserted_at, event_id, event_type FROM mailhook.dead_letters
				WHERE (event_inserted_at, event_id) IN (SELECT inserted_at, id FROM mailhook.events WHERE recipient = $1) OFFSET $2 LIMIT 1`, canary, rand.IntN(100)).
				Scan(&letter, &p.SubscriptionID, &p.AccountID, &p.EventInsertedAt, &p.EventID, &p.EventType)
			if err != nil {
				return err
			}
			target, err := q.GetRetryTarget(t.Context(), db.GetRetryTargetParams{SubscriptionID: p.SubscriptionID, EventInsertedAt: p.EventInsertedAt, EventID: p.EventID})
			if err != nil || !target.EventExists {
				return err
			}
			if _, err := q.InsertRetry(t.Context(), p); err != nil {
				return err
			}
			return q.DeleteDeadLetter(t.Context(), letter)
		})
		if err != nil && err != pgx.ErrNoRows { //nolint:errorlint // pgx answers it bare
			t.Error(err)
			return
		}
	}
}

// What an erasure reads, it reads by ranges of a key, and what it changes it finds by one.
func TestPlansOfErasing(t *testing.T) {
	t.Parallel()
	const analyze = "VACUUM ANALYZE"
	for state, fill := range map[string][]string{
		"never analysed": {"rows"}, "analysed empty and then filled": {analyze, "rows"}, "full and analysed": {"rows", analyze},
	} {
		t.Run(state, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			for _, sql := range fill {
				if sql == "rows" {
					b.fillErasable(t, 6000)
				} else {
					b.Exec(t, sql)
				}
			}
			for name, plan := range b.plansOfErasing(t) {
				forbid(t, name, plan, "outbox", "events", "events_default", "quarantine", "dedupe_keys", "deliveries", "dead_letters", "attempts", "attempts_default", "test_deliveries", "erasures")
				probes(t, name, plan)
			}
		})
	}
}

func (b *bundle) plansOfErasing(t *testing.T) map[string]string {
	t.Helper()
	pool, err := db.Open(t.Context(), b.URL, db.Role{Name: "plans", IndexOnly: true, StatementTimeout: callTimeout, MaxConns: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	e := &execExplainer{explainer{Pool: pool.Pool}}
	q := db.New(e)
	plans := map[string]string{}
	account := "a1"
	for _, of := range []*string{nil, &account} {
		for name, run := range map[string]func(){
			"outbox":          func() { q.FindInOutbox(t.Context(), db.FindInOutboxParams{AccountID: of, MaxRows: 1000}) },
			"erase outbox":    func() { q.EraseFromOutbox(t.Context(), db.EraseFromOutboxParams{IDs: []int64{1, 2}}) },
			"quarantine":      func() { q.FindInQuarantine(t.Context(), db.FindInQuarantineParams{AccountID: of, MaxRows: 1000}) },
			"from quarantine": func() { q.EraseFromQuarantine(t.Context(), db.EraseFromQuarantineParams{}) },
			"dedupe keys":     func() { q.EraseDedupeKeys(t.Context(), db.EraseDedupeKeysParams{AccountID: of, MaxRows: 1000}) },
			"events":          func() { q.FindInEvents(t.Context(), db.FindInEventsParams{AccountID: of, MaxRows: 1000}) },
			"erase events":    func() { q.EraseEvents(t.Context(), db.EraseEventsParams{}) },
			"deliveries":      func() { q.CancelErasedDeliveries(t.Context(), db.CancelErasedDeliveriesParams{}) },
			"dead letters":    func() { q.EraseDeadLetters(t.Context(), db.EraseDeadLettersParams{}) },
			"count":           func() { q.CountOfEvents(t.Context(), db.CountOfEventsParams{}) },
			"attempts":        func() { q.EraseAttempts(t.Context(), db.EraseAttemptsParams{AccountID: of, MaxRows: 1000}) },
			"test sends":      func() { q.EraseTestDeliveries(t.Context(), db.EraseTestDeliveriesParams{AccountID: of}) },
			"bounds":          func() { q.ErasureBounds(t.Context()) },
			"drop":            func() { q.DropErasures(t.Context(), db.DropErasuresParams{MaxRows: 1000}) },
		} {
			e.plan = ""
			run() // the explainer answers no row
			if e.plan == "" {
				t.Fatalf("no plan of %s", name)
			}
			plans[name+" "+strconv.FormatBool(of != nil)] = e.plan
		}
	}
	return plans
}

// What the host has written and not committed is covered: an erasure looks at nothing before those transactions end.
func TestAnErasureWaitsForTheHost(t *testing.T) {
	t.Parallel()
	b := setup(t)
	host, err := b.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer host.Rollback(t.Context())
	if _, err := host.Exec(t.Context(), emitMany, 10, canary); err != nil {
		t.Fatal(err)
	}
	id := b.ask(t, canary, "")
	e := b.eraser(t)
	if n, err := e.Step(t.Context()); err != nil || !n.Turned {
		t.Fatal(n, err)
	}
	for range 10 {
		if n, err := e.Step(t.Context()); err != nil || n != (Erased{}) {
			t.Fatal(n, err)
		}
	}
	if phase := b.erasure(t, id).Phase; phase != "waiting" {
		t.Fatalf("it is at %s", phase)
	}
	if err := host.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if row := b.stepThrough(t, id); row.OutboxCount != 10 {
		t.Errorf("%d of 10 erased", row.OutboxCount)
	}
}

// An account that asks for many erasures at once holds up another's by one of them.
func TestAccountsTakeTurnsAtErasing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var many []uuid.UUID
	for range 10 {
		many = append(many, b.ask(t, canary, "a0"))
	}
	e := b.eraser(t)
	if n, err := e.Step(t.Context()); err != nil || !n.Turned {
		t.Fatal(n, err)
	}
	others := []uuid.UUID{b.ask(t, canary, "a1"), b.ask(t, canary, "")}
	ended := func() (n int) {
		for _, id := range many {
			if b.erasure(t, id).State == "done" {
				n++
			}
		}
		return n
	}
	for _, id := range others {
		if b.stepThrough(t, id); ended() != 1 {
			t.Errorf("%d of the other account came before it", ended())
		}
	}
	// One that is asked for later does not wait for the rest either.
	if b.stepThrough(t, b.ask(t, canary, "a1")); ended() > 2 {
		t.Errorf("%d of the other account came before the second", ended())
	}
	for i, id := range many {
		if b.stepThrough(t, id); ended() != max(i+1, 2) {
			t.Errorf("%d ended with the one of place %d", ended(), i)
		}
	}
}

// Between the look for an erasure and its lock another session may end it: this one then leaves it alone.
func TestAnErasureEndsUnderAnother(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.ask(t, canary, "")
	// A policy holds the look up after it has its snapshot.
	b.Exec(t, `CREATE FUNCTION public.hold_up() RETURNS boolean LANGUAGE plpgsql SET lock_timeout = 0 AS 'BEGIN PERFORM pg_advisory_xact_lock(7); RETURN true; END'`)
	b.Exec(t, "CREATE POLICY hold_up ON mailhook.erasures USING (public.hold_up())")
	b.Exec(t, "ALTER TABLE mailhook.erasures ENABLE ROW LEVEL SECURITY")
	other, err := b.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Rollback(t.Context())
	if _, err := other.Exec(t.Context(), "SELECT pg_advisory_xact_lock(7)"); err != nil {
		t.Fatal(err)
	}
	type answer struct {
		n   Erased
		err error
	}
	answers, e := make(chan answer, 1), b.eraser(t)
	go func() {
		n, err := e.Step(t.Context())
		answers <- answer{n, err}
	}()
	dbtest.Eventually(t, "it looks", func() bool {
		return dbtest.QueryOne[bool](t, b.DB, "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = 7 AND NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))")
	})
	if err := db.New(b.Pool).EndErasure(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if err := other.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := <-answers; got.err != nil || got.n != (Erased{}) {
		t.Error(got)
	}
}

// A step that waits while rows move from DEFAULT into a partition that is being made sees them in their new place: planned
// before, it would know only the old partitions, and go on past them.
func TestErasingBesideANewPartition(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, phase, parent string }{
		{"events", "events", "events"},
		{"attempts", "attempts", "attempts"},
		{"events of attempts", "attempts", "events"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.fillErasable(t, 90)
			b.Exec(t, `INSERT INTO mailhook.attempts (started_at, id, delivery_id, subscription_id, account_id, event_inserted_at, event_id, event_type, number, outcome, response_excerpt, delivery_created_at)
				VALUES (now() - interval '20 days', mailhook.uuid7(), mailhook.uuid7(), mailhook.uuid7(), 'a0', now() - interval '20 days', 0, 'email.sent', 1, 'http_5xx', $1, now())`, []byte(canary))
			id, e := b.ask(t, canary, ""), b.eraser(t)
			for b.erasure(t, id).Phase != c.phase {
				if _, err := e.Step(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			other, err := b.Pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer other.Rollback(t.Context())
			if _, err := other.Exec(t.Context(), "SELECT mailhook.create_partition($1, (now() AT TIME ZONE 'UTC' - interval '20 days')::date)", c.parent); err != nil {
				t.Fatal(err)
			}
			stepped := make(chan error, 1)
			go func() {
				_, err := e.Step(t.Context())
				stepped <- err
			}()
			dbtest.Eventually(t, "it waits", func() bool {
				return len(stepped) > 0 || dbtest.QueryOne[bool](t, b.DB, "SELECT EXISTS (SELECT FROM pg_locks WHERE relation = $1::text::regclass AND NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))", "mailhook."+c.parent+"_default")
			})
			if err := other.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := <-stepped; sqlState(err) == "55P03" {
				t.Log("it has waited too long, and tries again: this shows nothing")
			} else if err != nil {
				t.Fatal(err)
			}
			b.stepThrough(t, id)
			if found := traces(b.Dump(t)); len(found) > 0 {
				t.Errorf("%d traces are left: %s", len(found), found[0])
			}
			if n := dbtest.QueryOne[int64](t, b.DB, `SELECT count(*) FROM mailhook.attempts AS a JOIN mailhook.events AS e ON (e.inserted_at, e.id) = (a.event_inserted_at, a.event_id)
				WHERE e.erased_at IS NOT NULL AND a.response_excerpt IS NOT NULL`); n != 0 {
				t.Errorf("%d answers to erased events are left", n)
			}
		})
	}
}
