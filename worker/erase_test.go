package worker

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"mailhook/cmd/receiver"
	"mailhook/db"
	"mailhook/db/dbtest"
)

// canary is who is erased; nothing else in these databases has the word.
const canary = "Canary.7@erased.example"

// traces are the lines of a text that still have something of the canary.
func traces(text string) (found []string) {
	for line := range strings.Lines(text) {
		if strings.Contains(strings.ToLower(line), "canary") {
			found = append(found, line)
		}
	}
	return found
}

// ask asks for an erasure of an account, or of all.
func (b *bundle) ask(t *testing.T, address, account string) uuid.UUID {
	t.Helper()
	pattern, err := db.RecipientPattern(address)
	if err != nil {
		t.Fatal(err)
	}
	params := db.CreateErasureParams{Pattern: pattern}
	if account != "" {
		params.AccountID = &account
	}
	id, err := db.New(b.Pool).CreateErasure(t.Context(), params)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func (b *bundle) erasure(t *testing.T, id uuid.UUID) db.GetErasureRow {
	t.Helper()
	row, err := db.New(b.Pool).GetErasure(t.Context(), db.GetErasureParams{ID: id})
	if err != nil {
		t.Fatal(err)
	}
	return row
}

func (b *bundle) erased(t *testing.T, id uuid.UUID) (row db.GetErasureRow) {
	t.Helper()
	dbtest.Eventually(t, "erased", func() bool {
		row = b.erasure(t, id)
		return row.State == "done"
	})
	return row
}

// eraser is one as mailhook erase has it, without the pauses of a Step.
func (b *bundle) eraser(t *testing.T) *Eraser {
	t.Helper()
	pool, err := db.Open(t.Context(), b.As("mailhook_worker"), db.Role{Name: "erase", IndexOnly: true, StatementTimeout: slowTimeout, MaxConns: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return NewEraser(pool)
}

// stepThrough works an erasure off.
func (b *bundle) stepThrough(t *testing.T, id uuid.UUID) db.GetErasureRow {
	t.Helper()
	e := b.eraser(t)
	for range 1000 {
		if row := b.erasure(t, id); row.State == "done" {
			return row
		}
		if _, err := e.Step(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	t.Fatal("the erasure does not end")
	return db.GetErasureRow{}
}

// echo answers with what it got, as careless receivers do; what comes to /slow is counted, and waits for the channel to be closed.
func echo(slow chan struct{}, under *gauge) func(http.ResponseWriter, receiver.Receipt) {
	return func(w http.ResponseWriter, r receiver.Receipt) {
		if r.Path == "/slow" {
			under.enter()
			defer under.leave()
			<-slow
		}
		if r.Path != "/ok" {
			w.WriteHeader(http.StatusInternalServerError)
		}
		fmt.Fprintf(w, "bad request: %s", r.Body)
	}
}

const emitCanary = "INSERT INTO mailhook.outbox (account_id, event_type, recipient, message_id, campaign_id, dedupe_key, data) VALUES "

// pushThrough brings the canary to every place that data of an event can come to, with another person beside it. It ends
// with delivery off, a request to /slow under way, and rows in the outbox.
func (b *bundle) pushThrough(t *testing.T) {
	t.Helper()
	b.subscribe(t, "/ok", "email.delivered,form")
	b.subscribe(t, "/dead", "email.bounced", "retry_schedule = '{10ms}'")
	b.subscribe(t, "/pending", "email.opened", "retry_schedule = '{1h}'")
	b.subscribe(t, "/held", "email.clicked", "status = 'paused'")
	for _, who := range []string{canary, "other@kept.example"} {
		word := strings.ToLower(strings.SplitN(who, "@", 2)[0])
		for i, row := range [][]any{
			{"email.delivered", who, "<" + word + "-1@host.example>", nil, who, `{"a":1}`},
			{"email.delivered", who, nil, nil, who, `{"again":"a duplicate"}`},
			{"email.bounced", strings.ToUpper(who), nil, word + "-campaign " + who, nil, nil},
			{"email.opened", who, nil, nil, word + "-key", nil},
			{"email.clicked", who, nil, nil, nil, `{"link_url":"https://x.example/?e=` + word + `"}`},
			{"form.submitted", "form@host.example", nil, nil, nil, `{"fields":{"mail":"` + strings.Replace(who, "@", `\u0040`, 1) + `"}}`},
			{"email.delivered", "list@host.example", nil, nil, nil, `{"link_url":"https://x.example/?e=` + strings.Replace(who, "@", "%40", 1) + `"}`},
			{"email.failed", who, nil, nil, nil, nil},                         // nobody's
			{"Not a type of " + who, "list@host.example", nil, nil, nil, nil}, // quarantined
			{"email.sent", who, nil, nil, nil, `["` + who + `"]`},             // the same
		} {
			if _, err := b.Pool.Exec(t.Context(), emitCanary+"('default', $1, $2, $3, $4, $5, $6::json)", row...); err != nil {
				t.Fatalf("row %d: %v", i, err)
			}
		}
	}
	for what, sql := range map[string]string{
		"delivered":   "SELECT count(*) FROM mailhook.attempts WHERE ended_as = 'delivered' AND response_excerpt IS NOT NULL",
		"duplicates":  "SELECT 3 * count(*) FROM mailhook.events WHERE duplicate_of IS NOT NULL",
		"dead":        "SELECT 3 * count(*) FROM mailhook.dead_letters",
		"pending":     "SELECT 3 * count(*) FROM mailhook.deliveries WHERE attempt = 1",
		"held":        "SELECT 3 * count(*) FROM mailhook.deliveries WHERE attempt = 0",
		"quarantined": "SELECT 3 * count(*) / 2 FROM mailhook.quarantine",
	} {
		dbtest.Eventually(t, what, func() bool { return dbtest.QueryOne[int64](t, b.DB, sql) == 6 })
	}
}

// holdOff brings two requests to /slow under way, switches delivery off, and leaves events in the outbox.
func (b *bundle) holdOff(t *testing.T, under *gauge) {
	t.Helper()
	b.subscribe(t, "/slow", "email.complained", "retry_schedule = '{1h}'", "timeout = '60 s'")
	for _, who := range []string{canary, "other@kept.example"} {
		b.Exec(t, emitCanary+"('default', 'email.complained', $1, NULL, NULL, NULL, NULL)", who)
	}
	dbtest.Eventually(t, "under way", func() bool { return under.peak() == 2 })
	b.Exec(t, "UPDATE mailhook.installation SET delivery_enabled = false")
	b.waitForWorkers(t, 1)
	for _, who := range []string{canary, "other@kept.example"} {
		b.Exec(t, emitCanary+"('default', 'email.delivered', $1, NULL, 'c1', NULL, NULL), ('default', $1, NULL, NULL, $1, NULL, NULL)", who)
	}
}

// kept is what the other person has, in a text that changes when any of it does. What goes on by itself is left out.
func (b *bundle) kept(t *testing.T) string {
	t.Helper()
	return dbtest.QueryOne[string](t, b.DB, `
		SELECT string_agg(x, chr(10) ORDER BY x) FROM (
			SELECT e::text FROM mailhook.events AS e WHERE mailhook.mentions($1, recipient, message_id, campaign_id, dedupe_key, data)
			UNION ALL SELECT o::text FROM mailhook.outbox AS o WHERE o::text ~ $1
			UNION ALL SELECT q::text FROM mailhook.quarantine AS q WHERE q::text ~ $1
			UNION ALL SELECT k::text FROM mailhook.dedupe_keys AS k WHERE k::text ~* 'other'
			UNION ALL SELECT d::text FROM mailhook.deliveries AS d JOIN mailhook.events AS e ON (e.inserted_at, e.id) = (d.event_inserted_at, d.event_id)
				WHERE mailhook.mentions($1, recipient, message_id, campaign_id, dedupe_key, data) AND d.lease_id IS NULL
			UNION ALL SELECT l::text FROM mailhook.dead_letters AS l JOIN mailhook.events AS e ON (e.inserted_at, e.id) = (l.event_inserted_at, l.event_id)
				WHERE mailhook.mentions($1, recipient, message_id, campaign_id, dedupe_key, data)
			UNION ALL SELECT a::text FROM mailhook.attempts AS a JOIN mailhook.events AS e ON (e.inserted_at, e.id) = (a.event_inserted_at, a.event_id)
				WHERE mailhook.mentions($1, recipient, message_id, campaign_id, dedupe_key, data)
		) AS all_of_it (x)`, patternOf(t, "other@kept.example"))
}

func patternOf(t *testing.T, address string) string {
	t.Helper()
	p, err := db.RecipientPattern(address)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// The canary is pushed through success, failure, death, hold, retry, quarantine, duplication and the outbox, and erased
// while one of its requests is under way; a transaction of the host is open at that moment. Nothing of it is left, and
// all of the other person.
func TestErasing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	slow := make(chan struct{})
	answer := sync.OnceFunc(func() { close(slow) })
	defer answer()
	var under gauge
	b.answerWith(echo(slow, &under))
	logs := &lockedBuffer{}
	c := b.config()
	c.Log = logs.logger()
	b.run(t, c)
	b.pushThrough(t)
	b.holdOff(t, &under)
	b.Exec(t, "INSERT INTO mailhook.test_deliveries (subscription_id, account_id, event_type, leased_by, ended_at, response_excerpt) SELECT id, account_id, 'email.sent', id, now(), $1 FROM mailhook.subscriptions LIMIT 1", []byte("to "+canary+"\x00\xff"))
	// The key of an event that is past its retention.
	b.Exec(t, "INSERT INTO mailhook.dedupe_keys (account_id, dedupe_key, event_inserted_at, event_id) VALUES ('default', $1, now() - interval '20 days', 1)", "for "+canary)
	b.Exec(t, "ANALYZE")
	host, err := b.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer host.Rollback(t.Context())
	if _, err := host.Exec(t.Context(), emitCanary+"('default', 'email.sent', $1, NULL, NULL, NULL, NULL)", canary); err != nil {
		t.Fatal(err)
	}
	before := b.kept(t)
	if n := strings.Count(before, "\n"); n < 20 {
		t.Fatalf("%d rows of the other person:\n%s", n, before)
	}
	id := b.ask(t, strings.ToLower(canary), "")
	dbtest.Eventually(t, "it waits for the host", func() bool { return b.erasure(t, id).Phase == "waiting" })
	if err := host.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	row := b.erased(t, id)
	for what, n := range map[string][2]int64{
		"outbox": {row.OutboxCount, 3}, "events": {row.EventCount, 9}, "deliveries": {row.DeliveryCount, 3}, "dead letters": {row.DeadLetterCount, 1},
		"quarantine": {row.QuarantineCount, 2}, "dedupe keys": {row.DedupeKeyCount, 3}, "test deliveries": {row.TestDeliveryCount, 1},
		// Three successes, two attempts that failed, and the first one of the pending delivery.
		"attempts": {row.AttemptCount, 6},
	} {
		if n[0] != n[1] {
			t.Errorf("%s: %d, not %d", what, n[0], n[1])
		}
	}
	answer() // it echoes the request; its record comes too late
	dbtest.Eventually(t, "a late outcome", func() bool { return strings.Contains(logs.String(), "outcomes came too late") })
	dbtest.Eventually(t, "the other person's goes on", func() bool {
		return dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.deliveries WHERE event_type = 'email.complained' AND attempt = 1") == 1
	})
	if found := traces(b.Dump(t)); len(found) > 0 {
		t.Errorf("%d traces are left:\n%s", len(found), strings.Join(found, ""))
	}
	if found := traces(logs.String()); len(found) > 0 {
		t.Errorf("in the log:\n%s", strings.Join(found, ""))
	}
	if after := b.kept(t); !strings.HasPrefix(after, before) && !containsLines(after, before) {
		t.Errorf("of the other person, before:\n%s\nafter:\n%s", before, after)
	}
	// What is left counts: as many events of each type as the other person has, but for quarantine and the host's one.
	if n := dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.events WHERE erased_at IS NOT NULL AND account_id = 'default'"); n != 12 {
		t.Errorf("%d anonymous events", n)
	}
	if n := dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.attempts WHERE ended_as = 'cancelled' AND ended_reason = 'erased'"); n != 4 {
		t.Errorf("%d deliveries ended as erased", n)
	}
	// Nothing of it is sent when delivery is on again; the other one's is.
	b.mu.Lock()
	b.receipts = nil
	b.mu.Unlock()
	b.Exec(t, "UPDATE mailhook.installation SET delivery_enabled = true")
	b.Exec(t, "UPDATE mailhook.subscriptions SET status = 'active'")
	for _, r := range b.waitFor(t, 2) {
		if len(traces(string(r.Body))) > 0 || !strings.Contains(string(r.Body), "other@kept.example") {
			t.Errorf("sent to %s: %s", r.Path, r.Body)
		}
	}
	if again := b.erased(t, b.ask(t, canary, "")); again.OutboxCount+again.EventCount+again.DeliveryCount+again.AttemptCount+again.QuarantineCount+again.DedupeKeyCount > 0 {
		t.Errorf("found a second time: %+v", again)
	}
}

// Counts are kept for ever: an address that the host has put where a campaign or a domain belongs does not come into them.
func TestNoAddressIsCounted(t *testing.T) {
	t.Parallel()
	b := setup(t)
	now := time.Now().UTC()
	old, inDefault := b.pastDay(t, 30), now.Truncate(day).AddDate(0, 0, -40)
	for i, campaign := range []string{canary, "to " + canary + strings.Repeat("x", 400), "Canary.7%40erased.example", `canary.7\u0040erased.example`, "spring"} {
		for j, at := range []time.Time{old, inDefault} {
			b.Exec(t, `INSERT INTO mailhook.events (inserted_at, id, account_id, event_type, occurred_at, dispatched_at, recipient, campaign_id, sending_domain)
				VALUES ($1, $2, 'a', 'email.sent', now(), now(), $3, $4, $4)`, at, 2*i+j, canary, campaign)
		}
	}
	b.idleWorker(t, b.config()).retainOnce(t.Context(), now)
	if n := dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.events"); n != 0 {
		t.Fatalf("%d events are not counted", n)
	}
	got := dbtest.QueryOne[string](t, b.DB, `SELECT string_agg(DISTINCT format('c=%s s=%s %s', campaign_id, sending_domain, n), ', ') FROM mailhook.event_counts`)
	if got != "c= s= 4, c=spring s=spring 1" {
		t.Error(got)
	}
	b.stepThrough(t, b.ask(t, canary, ""))
	if found := traces(b.Dump(t)); len(found) > 0 {
		t.Errorf("%d traces are left: %s", len(found), found[0])
	}
}

// containsLines says whether all lines of some are lines of all.
func containsLines(all, some string) bool {
	lines := map[string]bool{}
	for line := range strings.SplitSeq(all, "\n") {
		lines[line] = true
	}
	for line := range strings.SplitSeq(some, "\n") {
		if !lines[line] {
			return false
		}
	}
	return true
}

// An erasure that is cut off anywhere, its transaction with it, goes on where it was, and counts each row once.
func TestAnErasureIsCutOff(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.fillErasable(t, 300)
	id := b.ask(t, canary, "")
	cut := 0
	for delay := time.Duration(0); b.erasure(t, id).State != "done"; delay += 300 * time.Microsecond {
		e := b.eraser(t)
		e.rows = 25
		ctx, cancel := context.WithTimeout(t.Context(), delay)
		for ctx.Err() == nil && b.erasure(t, id).State != "done" {
			if _, err := e.Step(ctx); err != nil {
				cut++
				break
			}
			e.rows = 25
		}
		cancel()
	}
	row := b.erasure(t, id)
	if row.EventCount != 100 || row.DeliveryCount != 100 || row.DeadLetterCount != 100 || row.AttemptCount != 200 || row.QuarantineCount != 100 || row.DedupeKeyCount != 100 || row.OutboxCount != 100 {
		t.Errorf("counted more or less than once: %+v", row)
	}
	if found := traces(b.Dump(t)); len(found) > 0 {
		t.Errorf("%d traces are left:\n%s", len(found), found[0])
	}
	if n := dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.events WHERE data IS NOT NULL"); n != 200 {
		t.Errorf("%d other events left", n)
	}
	if cut < 3 {
		t.Fatalf("cut off %d times only", cut)
	}
	t.Logf("cut off %d times", cut)
}

// fillErasable writes n rows into each table, of which each third is the canary's; events also in DEFAULT, ahead and behind.
func (b *bundle) fillErasable(t *testing.T, n int) {
	t.Helper()
	for _, sql := range []string{
		`CREATE TABLE public.person AS
			SELECT n, CASE WHEN n % 3 = 0 THEN '` + canary + `' ELSE 'other' || n || '@kept.example' END AS address, now() - n * interval '1 millisecond' AS at
			FROM generate_series(1, ` + strconv.Itoa(n) + `) AS n`,
		`INSERT INTO mailhook.outbox (event_type, recipient, data) SELECT 'email.sent', address, '{}' FROM public.person`,
		`INSERT INTO mailhook.quarantine (inserted_at, id, event_type, recipient, reason, error_code) SELECT at, -n, 'x', address, 'r', 'c' FROM public.person`,
		`INSERT INTO mailhook.events (inserted_at, id, account_id, event_type, occurred_at, dispatched_at, recipient, dedupe_key, data)
			SELECT CASE n % 10 WHEN 1 THEN at + interval '20 days' WHEN 2 THEN at - interval '20 days' ELSE at END, n, 'a' || n % 2, 'email.sent', at, at, address,
				'key' || n, json_build_object('to', address)
			FROM public.person`,
		`INSERT INTO mailhook.dedupe_keys SELECT account_id, dedupe_key, inserted_at, id, least(inserted_at, now()) FROM mailhook.events`,
		`INSERT INTO mailhook.deliveries (subscription_id, account_id, event_inserted_at, event_id, event_type, next_attempt_at, created_at)
			SELECT mailhook.uuid7(), account_id, inserted_at, id, event_type, now(), now() FROM mailhook.events`,
		`INSERT INTO mailhook.dead_letters (id, subscription_id, account_id, event_inserted_at, event_id, event_type, attempt, reason, created_at, ended_at)
			SELECT mailhook.uuid7(), mailhook.uuid7(), account_id, inserted_at, id, event_type, 1, 'schedule_ended', now(), now() FROM mailhook.events`,
		`INSERT INTO mailhook.attempts (started_at, id, delivery_id, subscription_id, account_id, event_inserted_at, event_id, event_type, number, outcome, response_excerpt, ended_as, delivery_created_at)
			SELECT clock_timestamp(), mailhook.uuid7(), l.id, l.subscription_id, l.account_id, l.event_inserted_at, l.event_id, l.event_type, 1, 'http_5xx', convert_to(e.recipient, 'UTF8'), 'exhausted', now()
			FROM mailhook.dead_letters AS l JOIN mailhook.events AS e ON (e.inserted_at, e.id) = (l.event_inserted_at, l.event_id)`,
		`INSERT INTO mailhook.attempts (started_at, id, delivery_id, subscription_id, account_id, event_inserted_at, event_id, event_type, number, outcome, response_excerpt, delivery_created_at)
			SELECT clock_timestamp(), mailhook.uuid7(), d.id, d.subscription_id, d.account_id, d.event_inserted_at, d.event_id, d.event_type, 1, 'http_5xx', 'no address in it', now()
			FROM mailhook.deliveries AS d`,
		`DROP TABLE public.person`,
	} {
		b.Exec(t, sql)
	}
}
