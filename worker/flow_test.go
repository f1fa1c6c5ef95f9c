package worker

import (
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"mailhook/cmd/receiver"
	"mailhook/db/dbtest"
)

func fail(status int) func(http.ResponseWriter, receiver.Receipt) {
	return func(w http.ResponseWriter, _ receiver.Receipt) { w.WriteHeader(status) }
}

func TestAFailureIsRetriedOnItsSchedule(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var n atomic.Int32
	b.answerWith(func(w http.ResponseWriter, _ receiver.Receipt) {
		if n.Add(1) <= 2 {
			w.WriteHeader(http.StatusInternalServerError)
			fmt.Fprint(w, "bad\x00\xff")
		}
	})
	b.subscribe(t, "/", "email", "retry_schedule = '{1s,1s,1s}', retry_jitter = 0")
	b.run(t, b.config())
	b.Exec(t, "SELECT mailhook.emit('email.sent')")
	receipts := b.waitFor(t, 3)
	b.settled(t)
	for i, r := range receipts {
		if r.Problem != nil || r.ID != receipts[0].ID || string(r.Body) != string(receipts[0].Body) {
			t.Errorf("attempt %d: %v %s", i+1, r.Problem, r.Body)
		}
		if i > 0 && r.At.Sub(receipts[i-1].At) < time.Second {
			t.Errorf("attempt %d came %v after the one before", i+1, r.At.Sub(receipts[i-1].At))
		}
	}
	got := dbtest.QueryOne[string](t, b.DB, "SELECT string_agg(format('%s %s %s %s', number, outcome, status_code, ended_as), ', ' ORDER BY number) FROM mailhook.attempts")
	if want := "1 http_5xx 500 , 2 http_5xx 500 , 3 ok 200 delivered"; got != want {
		t.Errorf("attempts %s, want %s", got, want)
	}
	if excerpt := dbtest.QueryOne[[]byte](t, b.DB, "SELECT response_excerpt FROM mailhook.attempts WHERE number = 1"); string(excerpt) != "bad\x00\xff" {
		t.Errorf("excerpt %q", excerpt)
	}
	if n := dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.subscription_health WHERE consecutive_failures > 0"); n != 0 {
		t.Error("health remembers failures after a success")
	}
}

// The next attempt is computed in SQL: the later of Retry-After and the schedule, at most an hour beyond the schedule,
// with jitter of a fifth either way.
func TestWhenTheNextAttemptIs(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, set, header string
		least, most       time.Duration
	}{
		{"schedule", "retry_schedule = '{10m}', retry_jitter = 0", "", 10 * time.Minute, 10 * time.Minute},
		{"jitter", "retry_schedule = '{10m}'", "", 8 * time.Minute, 12 * time.Minute},
		{"Retry-After is later", "retry_schedule = '{10m}', retry_jitter = 0", "1800", 30 * time.Minute, 30 * time.Minute},
		{"Retry-After is sooner", "retry_schedule = '{10m}', retry_jitter = 0", "5", 10 * time.Minute, 10 * time.Minute},
		{"Retry-After is too late", "retry_schedule = '{10m}', retry_jitter = 0", "864000", 70 * time.Minute, 70 * time.Minute},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.answerWith(func(w http.ResponseWriter, _ receiver.Receipt) {
				if c.header != "" {
					w.Header().Set("Retry-After", c.header)
				}
				w.WriteHeader(http.StatusTooManyRequests)
			})
			b.subscribe(t, "/", "email", c.set)
			b.run(t, b.config())
			b.Exec(t, "SELECT mailhook.emit('email.sent')")
			dbtest.Eventually(t, "a recorded failure", func() bool {
				return dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.attempts") == 1
			})
			// One statement wrote both: the attempt started its duration and a moment before it.
			delay := time.Duration(dbtest.QueryOne[float64](t, b.DB,
				"SELECT extract(epoch FROM d.next_attempt_at - a.started_at)::float8 FROM mailhook.deliveries d, mailhook.attempts a") * float64(time.Second))
			if delay < c.least || delay > c.most+20*time.Second {
				t.Errorf("next attempt after %v, want %v to %v", delay, c.least, c.most)
			}
		})
	}
}

func TestAnExhaustedDeliveryIsADeadLetter(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.answerWith(fail(500))
	plain := b.subscribe(t, "/plain", "email", "retry_schedule = '{1s}', retry_jitter = 0")
	mailjet := b.subscribe(t, "/mailjet", "email", "retry_schedule = '{1s}', retry_jitter = 0, suspend_when_exhausted = true")
	b.run(t, b.config())
	b.Exec(t, "SELECT mailhook.emit('email.sent')")
	b.settled(t)
	if n := dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.dead_letters WHERE attempt = 2 AND last_outcome = 'http_5xx' AND reason = 'schedule_ended'"); n != 2 {
		t.Errorf("%d dead letters", n)
	}
	if n := dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.attempts WHERE ended_as = 'exhausted' AND number = 2"); n != 2 {
		t.Errorf("%d exhausted attempts", n)
	}
	b.Exec(t, "UPDATE mailhook.subscriptions SET deleted_at = now() WHERE id = $1", plain)
	dbtest.Eventually(t, "the dead letter of the deleted one cancelled", func() bool {
		return dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.attempts WHERE subscription_id = $1 AND ended_as = 'cancelled' AND ended_reason = 'deleted'", plain) == 1 &&
			dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.dead_letters") == 1
	})
	for id, want := range map[any]string{plain: "active", mailjet: "suspended schedule_ended"} {
		if got := dbtest.QueryOne[string](t, b.DB, "SELECT concat_ws(' ', status, status_reason) FROM mailhook.subscriptions WHERE id = $1", id); got != want {
			t.Errorf("%v is %s, want %s", id, got, want)
		}
	}
}

func TestGoneSuspendsAndHolds(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.answerWith(fail(410))
	id := b.subscribe(t, "/", "email", "retry_schedule = '{1s}'")
	b.run(t, b.config())
	b.Exec(t, "SELECT mailhook.emit('email.sent')")
	dbtest.Eventually(t, "suspended", func() bool {
		return dbtest.QueryOne[string](t, b.DB, "SELECT concat_ws(' ', status, status_reason) FROM mailhook.subscriptions WHERE id = $1", id) == "suspended gone"
	})
	b.Exec(t, "SELECT mailhook.emit('email.sent')")
	dbtest.Eventually(t, "both held", func() bool {
		return dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.deliveries WHERE lease_id IS NULL") == 2
	})
	b.answerWith(nil)
	b.Exec(t, "UPDATE mailhook.subscriptions SET status = 'active' WHERE id = $1", id)
	b.settled(t)
	if n := dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.attempts WHERE ended_as = 'delivered'"); n != 2 {
		t.Errorf("%d delivered", n)
	}
	b.waitFor(t, 3)
}

func TestPausedHoldsAndInactiveCancels(t *testing.T) {
	t.Parallel()
	b := setup(t)
	paused := b.subscribe(t, "/paused", "email", "status = 'paused'")
	inactive := b.subscribe(t, "/inactive", "email", "status = 'paused'")
	deleted := b.subscribe(t, "/deleted", "email", "status = 'paused'")
	b.subscribe(t, "/active", "email")
	b.run(t, b.config())
	b.Exec(t, "SELECT mailhook.emit('email.sent')")
	b.waitFor(t, 1)
	dbtest.Eventually(t, "three held", func() bool {
		return dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.deliveries") == 3
	})
	b.Exec(t, "UPDATE mailhook.subscriptions SET status = 'inactive' WHERE id = $1", inactive)
	b.Exec(t, "UPDATE mailhook.subscriptions SET deleted_at = now() WHERE id = $1", deleted)
	dbtest.Eventually(t, "two cancelled", func() bool {
		return dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.deliveries") == 1
	})
	got := dbtest.QueryOne[string](t, b.DB, "SELECT string_agg(concat_ws(' ', number, ended_as, ended_reason), ', ' ORDER BY ended_reason) FROM mailhook.attempts WHERE outcome IS NULL")
	if got != "0 cancelled deactivated, 0 cancelled deleted" {
		t.Error(got)
	}
	b.Exec(t, "SELECT mailhook.emit('email.sent')") // costs the inactive and the deleted nothing
	b.Exec(t, "UPDATE mailhook.subscriptions SET status = 'active' WHERE id = $1", paused)
	b.settled(t)
	paths := map[string]int{}
	for _, r := range b.waitFor(t, 4) {
		paths[r.Path]++
	}
	if paths["/paused"] != 2 || paths["/active"] != 2 || len(paths) != 2 {
		t.Error(paths)
	}
}

func TestASuspendedAccountHoldsAll(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "/", "email")
	b.Exec(t, "INSERT INTO mailhook.accounts (id, status) VALUES ('default', 'suspended')")
	b.run(t, b.config())
	b.Exec(t, "SELECT mailhook.emit('email.sent')")
	dbtest.Eventually(t, "held", func() bool {
		return dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.deliveries WHERE lease_id IS NULL") == 1
	})
	b.Exec(t, "UPDATE mailhook.accounts SET status = 'active', updated_at = now()")
	b.settled(t)
	b.waitFor(t, 1)
}

func TestDeliveryOffKeepsEventsAndOnSendsThem(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "/", "email")
	b.Exec(t, "UPDATE mailhook.installation SET delivery_enabled = false")
	w, _ := b.run(t, b.config())
	dbtest.Eventually(t, "ready", func() bool { return w.Ready() == nil })
	b.Exec(t, "SELECT mailhook.emit('email.sent')")
	b.Exec(t, "UPDATE mailhook.installation SET delivery_enabled = true")
	b.settled(t)
	b.waitFor(t, 1)
}

func TestDedupe(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "/", "email")
	b.run(t, b.config())
	b.Exec(t, `SELECT mailhook.emit_many('[{"type": "email.sent", "dedupe_key": "k"}, {"type": "email.sent", "dedupe_key": "k"}, {"type": "email.sent"}, {"type": "email.sent"}]')`)
	b.settled(t)
	b.Exec(t, "SELECT mailhook.emit('email.sent', dedupe_key => 'k')")
	b.Exec(t, "SELECT mailhook.emit('email.sent', dedupe_key => 'k', account_id => 'another')")
	b.settled(t)
	if n := len(b.waitFor(t, 3)); n != 3 {
		t.Errorf("%d requests", n)
	}
	first := dbtest.QueryOne[string](t, b.DB, "SELECT mailhook.event_id(event_inserted_at, event_id) FROM mailhook.dedupe_keys WHERE account_id = 'default'")
	if n := dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.events WHERE duplicate_of = $1", first); n != 2 {
		t.Errorf("%d events say that they are duplicates of %s", n, first)
	}
}

// Every row that passes INSERT and cannot be dispatched is quarantined with its reason; its neighbours go on.
func TestPoison(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "/", "*")
	poison := []struct{ insert, code, reason string }{
		{`(event_type) VALUES ('Not A Type')`, "MH001", "event_type is not valid"},
		{`(event_type) VALUES (repeat('a', 101))`, "MH001", "event_type is not valid"},
		{`(event_type, data) VALUES ('email.sent', '[1]')`, "MH002", "data is not an object"},
		{`(event_type, data) VALUES ('email.sent', json_build_object('x', repeat('x', 262144)))`, "MH002", "data is longer than 262,144 bytes"},
		{`(event_type, message_id) VALUES ('email.sent', repeat('m', 6000))`, "MH003", "message_id is longer than 1,000 bytes"},
		{`(event_type, occurred_at) VALUES ('email.sent', 'infinity')`, "MH004", "occurred_at is not in the years 1 to 9999"},
		{`(event_type, data) VALUES ('email.sent', '{"a": "\u0000"}')`, "MH002", "data cannot be read back"},
		{`(event_type, data) VALUES ('email.bounced', '{"a": "\u0000", "bounce_type": 1e999999}')`, "MH002", "data cannot be read back"},
		{`(event_type, dedicated_ip) VALUES ('email.sent', 'not an address')`, "MH006", "dedicated_ip is not an address"},
		{`(event_type, recipient) VALUES ('email.sent', 'unheard of')`, "23514", ""},
	}
	// What nobody has thought of: the statement fails, and the row is found by halving.
	b.Exec(t, "ALTER TABLE mailhook.events ADD CONSTRAINT events_unheard_of_check CHECK (recipient <> 'unheard of')")
	for i := range 999 {
		if i%100 == 50 {
			b.Exec(t, "INSERT INTO mailhook.outbox "+poison[i/100].insert)
		}
		b.Exec(t, "INSERT INTO mailhook.outbox (event_type, data) VALUES ('email.sent', json_build_object('n', $1::int))", i)
	}
	b.run(t, b.config())
	b.settled(t)
	if n := len(b.waitFor(t, 999)); n != 999 {
		t.Errorf("%d neighbours delivered", n)
	}
	for _, p := range poison {
		if n := dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.quarantine WHERE error_code = $1 AND ($2 = '' OR reason = $2) AND reason <> ''", p.code, p.reason); n < 1 {
			t.Errorf("%s: no row in quarantine with %s %s", p.insert, p.code, p.reason)
		}
	}
	if n := dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.quarantine"); n != int64(len(poison)) {
		t.Errorf("%d in quarantine", n)
	}
}

// An event that no dispatch gets done with in its time holds up what is behind it until it stands alone; then that goes on.
func TestAnEventThatTakesTooLongIsQuarantined(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "/", "*")
	b.Exec(t, `CREATE FUNCTION public.linger() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(60); RETURN NEW; END $$`)
	b.Exec(t, `CREATE TRIGGER linger BEFORE INSERT ON mailhook.events_default FOR EACH ROW WHEN (NEW.recipient = 'slow@example.com') EXECUTE FUNCTION public.linger()`)
	// Of a day without a partition.
	b.Exec(t, `INSERT INTO mailhook.outbox (inserted_at, event_type, recipient) VALUES (now() - interval '90 days', 'email.sent', 'slow@example.com')`)
	b.Exec(t, `INSERT INTO mailhook.outbox (event_type, data) SELECT 'email.sent', json_build_object('n', n) FROM generate_series(1, 10) AS n`)
	c := b.config()
	c.BatchRows = 4
	b.run(t, c)
	b.settled(t)
	if n := len(b.waitFor(t, 10)); n != 10 {
		t.Errorf("%d neighbours delivered", n)
	}
	if got := dbtest.QueryOne[string](t, b.DB, "SELECT string_agg(recipient || ' ' || error_code || ' ' || reason, ', ') FROM mailhook.quarantine"); got != "slow@example.com 57014 its dispatch does not end in time: look at the filters of its account" {
		t.Errorf("quarantine: %s", got)
	}
}

func TestInFlightCapHolds(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var now, most atomic.Int32
	release := make(chan struct{})
	b.answerWith(func(_ http.ResponseWriter, r receiver.Receipt) {
		if r.Path != "/capped" {
			return
		}
		n := now.Add(1)
		defer now.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		<-release
	})
	b.subscribe(t, "/capped", "email.sent", "max_in_flight = 3")
	b.subscribe(t, "/free", "email.opened")
	// Two workers: the cap is one, over both.
	b.run(t, b.config())
	b.run(t, b.config())
	b.waitForWorkers(t, 2)
	b.Exec(t, "INSERT INTO mailhook.outbox (event_type) SELECT unnest('{email.sent,email.opened}'::text[]) FROM generate_series(1, 40)")
	b.waitFor(t, 40) // the free ones are not in the way of the capped
	close(release)
	b.settled(t)
	if most.Load() > 3 || most.Load() < 1 {
		t.Errorf("%d requests at one time, the cap is 3", most.Load())
	}
}

func TestRateLimit(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "/", "email", "rate_limit_per_second = 10")
	b.run(t, b.config())
	began := time.Now()
	b.Exec(t, "INSERT INTO mailhook.outbox (event_type) SELECT 'email.sent' FROM generate_series(1, 30)")
	receipts := b.waitFor(t, 30)
	if took := receipts[29].At.Sub(began); took < 2900*time.Millisecond {
		t.Errorf("30 requests at 10 a second took %v", took)
	}
}

func TestAFullStopFinishesWhatIsInFlight(t *testing.T) {
	t.Parallel()
	b := setup(t)
	started := make(chan struct{}, 100)
	release := make(chan struct{})
	b.answerWith(func(http.ResponseWriter, receiver.Receipt) { started <- struct{}{}; <-release })
	b.subscribe(t, "/", "email.sent", "max_in_flight = 5")
	_, stop := b.run(t, b.config())
	b.Exec(t, "INSERT INTO mailhook.outbox (event_type) SELECT 'email.sent' FROM generate_series(1, 20)")
	for range 5 {
		<-started
	}
	go func() {
		// The stop has begun when the worker no longer takes what is new.
		dbtest.Eventually(t, "the worker stops", func() bool {
			return dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.deliveries WHERE lease_id IS NOT NULL") <= 5
		})
		close(release)
	}()
	stop()
	if n := dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.attempts WHERE outcome = 'ok'"); n < 5 {
		t.Errorf("%d recorded", n)
	}
	if n := dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.deliveries WHERE lease_id IS NOT NULL"); n != 0 {
		t.Errorf("%d leases left behind", n)
	}
	if n := dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.workers"); n != 0 {
		t.Error("the worker has not signed off")
	}
}

func TestTheGraceIsBounded(t *testing.T) {
	t.Parallel()
	b := setup(t)
	started := make(chan struct{}, 1)
	release := make(chan struct{})
	defer close(release)
	b.answerWith(func(http.ResponseWriter, receiver.Receipt) { started <- struct{}{}; <-release })
	b.subscribe(t, "/", "email")
	cfg := b.config()
	cfg.Grace = 100 * time.Millisecond
	_, stop := b.run(t, cfg)
	b.Exec(t, "SELECT mailhook.emit('email.sent')")
	<-started
	stop()
	if n := dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.deliveries WHERE attempt = 0 AND lease_id IS NULL"); n != 1 {
		t.Error("an attempt that we broke off was counted")
	}
}

func TestReplays(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.answerWith(fail(500))
	id := b.subscribe(t, "/", "email", "retry_schedule = '{1s}', retry_jitter = 0")
	b.run(t, b.config())
	b.Exec(t, "INSERT INTO mailhook.outbox (event_type) SELECT unnest('{email.sent,email.opened}'::text[]) FROM generate_series(1, 5)")
	b.settled(t)
	b.answerWith(nil)
	dead := len(b.waitFor(t, 20))
	insert := "INSERT INTO mailhook.replays (subscription_id, account_id, since, until, event_types, source, rate_per_second, matched) VALUES ($1, 'default', now() - interval '1 hour', now(), $2, $3, 1000, 0)"
	b.Exec(t, insert, id, []string{"email.sent"}, "exhausted")
	done := func(n int64) {
		dbtest.Eventually(t, "replays done", func() bool {
			return dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.replays WHERE state = 'done'") == n
		})
		b.settled(t)
	}
	done(1)
	if n := dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.dead_letters"); n != 5 || len(b.waitFor(t, dead+5)) != dead+5 {
		t.Errorf("%d dead letters after the replay of half", n)
	}
	b.Exec(t, insert, id, nil, "all")
	done(2)
	if n := dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.dead_letters"); n != 0 || len(b.waitFor(t, dead+15)) != dead+15 {
		t.Errorf("%d dead letters after the replay of all", n)
	}
	// Attempts count from 1, in deliveries of their own, for the same events.
	if n := dbtest.QueryOne[int64](t, b.DB, "SELECT count(DISTINCT delivery_id) FROM mailhook.attempts WHERE number = 1 AND ended_as = 'delivered'"); n != 15 {
		t.Errorf("%d replayed deliveries", n)
	}
	ids := map[string]bool{}
	for _, r := range b.waitFor(t, dead+15) {
		ids[r.ID] = true
	}
	if len(ids) != 10 {
		t.Errorf("%d event ids", len(ids))
	}
}

// A burst beyond a subscription's cap is worked off as its slots become free, not once an interval.
func TestABurstBeyondTheCapFlows(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "/", "email", "max_in_flight = 4")
	cfg := b.config()
	cfg.ClaimInterval = 20 * time.Second // by the clock alone it would take 25 minutes
	b.run(t, cfg)
	b.Exec(t, "INSERT INTO mailhook.outbox (event_type) SELECT 'email.sent' FROM generate_series(1, 300)")
	b.waitFor(t, 300)
	b.settled(t)
}
