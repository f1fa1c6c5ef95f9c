package worker

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"

	"mailhook/db"
	"mailhook/db/dbtest"
)

// pastDay makes the partition of a day of events and answers its first moment.
func (b *bundle) pastDay(t *testing.T, daysAgo int) time.Time {
	t.Helper()
	at := time.Now().UTC().Truncate(day).AddDate(0, 0, -daysAgo)
	b.Exec(t, "SELECT mailhook.create_partition('events', $1)", at)
	return at
}

// oldEvents writes n events, a second apart, from a time on: of several accounts, types and recipients, every tenth a
// duplicate.
func (b *bundle) oldEvents(t *testing.T, from time.Time, n int) {
	t.Helper()
	b.Exec(t, `INSERT INTO mailhook.events (inserted_at, id, account_id, event_type, occurred_at, dispatched_at, recipient, campaign_id, sending_domain, duplicate_of)
		SELECT $1::timestamptz + n * interval '1 second', n, 'a' || n % 3, CASE n % 2 WHEN 0 THEN 'email.sent' ELSE 'email.opened' END, now(), now(),
			CASE n % 4 WHEN 0 THEN 'R@Example.COM' WHEN 1 THEN '"a@b"@example.net' WHEN 2 THEN 'nobody' END,
			CASE n % 5 WHEN 0 THEN 'c1' END, CASE n % 7 WHEN 0 THEN 'Mail.Example.com' END, CASE n % 10 WHEN 0 THEN 'evt_x' END
		FROM generate_series(1, $2::int) AS n`, from, n)
}

// counts is event_counts in words, and what it should be by the rows that are in events now.
const (
	countsQuery = `SELECT coalesce(string_agg(format('%s %s %s c=%s s=%s r=%s %s', account_id, day, event_type, campaign_id, sending_domain, recipient_domain, n), E'\n'
		ORDER BY account_id, day, event_type, campaign_id, sending_domain, recipient_domain), '') FROM mailhook.event_counts`
	expectQuery = `SELECT coalesce(string_agg(format('%s %s %s c=%s s=%s r=%s %s', a, d, t, c, s, r, n), E'\n' ORDER BY a, d, t, c, s, r), '') FROM (
		SELECT account_id AS a, (inserted_at AT TIME ZONE 'UTC')::date AS d, event_type AS t, coalesce(campaign_id, '') AS c, lower(coalesce(sending_domain, '')) AS s,
			coalesce(lower(substring(recipient FROM '@([^@]*)$')), '') AS r, count(*) AS n
		FROM mailhook.events WHERE duplicate_of IS NULL AND inserted_at < $1 GROUP BY 1, 2, 3, 4, 5, 6) AS x`
)

func (b *bundle) hasDay(t *testing.T, at time.Time) bool {
	t.Helper()
	return dbtest.QueryOne[bool](t, b.DB, "SELECT to_regclass($1) IS NOT NULL", "mailhook.events"+at.Format("_20060102"))
}

func TestADayIsCountedAndDropped(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := b.idleWorker(t, b.config())
	old, kept := b.pastDay(t, 30), b.pastDay(t, 13)
	b.oldEvents(t, old, countSlice+2000) // two slices
	b.oldEvents(t, kept, 10)
	want := dbtest.QueryOne[string](t, b.DB, expectQuery, kept)
	w.retainOnce(t.Context(), time.Now().UTC())
	if got := dbtest.QueryOne[string](t, b.DB, countsQuery); got != want || !strings.Contains(got, "r=example.net") {
		t.Errorf("counted\n%s\nnot\n%s", got, want)
	}
	if b.hasDay(t, old) || !b.hasDay(t, kept) {
		t.Error("of a day of 30 and one of 13 days ago, the retention being 14 days, the first is there or the second gone")
	}
	if n := dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.detached_days"); n != 0 {
		t.Errorf("%d days still to be counted", n)
	}
}

// A count is cut short after any of its slices, several sessions count at once, and a late event of the same day comes:
// each event is counted once.
func TestEachEventIsCountedOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := b.idleWorker(t, b.config())
	old := b.pastDay(t, 30)
	b.oldEvents(t, old, 5000)
	late := fmt.Sprintf(`INSERT INTO mailhook.events (inserted_at, id, account_id, event_type, occurred_at, dispatched_at) VALUES ('%s', 9999, 'a0', 'email.sent', now(), now())`, old.Format(time.RFC3339))
	b.Exec(t, late)
	want := dbtest.QueryOne[string](t, b.DB, expectQuery, old.Add(day))
	b.Exec(t, "DELETE FROM mailhook.events WHERE id = 9999")

	if reason, err := w.q.DetachDay(t.Context(), dateOf(old)); err != nil || reason != "" {
		t.Fatal(reason, err)
	}
	b.Exec(t, late)
	slice := db.CountDayParams{Day: dateOf(old), MaxRows: 100}
	if n, err := w.q.CountDay(t.Context(), slice); err != nil || n != 100 {
		t.Fatal(n, err)
	}
	tx, err := w.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.q.WithTx(tx).CountDay(t.Context(), slice); err != nil {
		t.Fatal(err)
	}
	if n, err := w.q.CountDay(t.Context(), slice); err != nil || n != -1 {
		t.Errorf("counted %d, %v while another session counts", n, err)
	}
	tx.Rollback(t.Context())
	ended := make(chan error)
	for range 3 {
		go func() {
			for {
				n, err := w.q.CountDay(t.Context(), slice)
				if err != nil || n == 0 || dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.detached_days") == 0 {
					ended <- err
					return
				}
			}
		}()
	}
	for range 3 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	w.retainOnce(t.Context(), time.Now().UTC()) // the late one lies in DEFAULT
	if got := dbtest.QueryOne[string](t, b.DB, countsQuery); got != want {
		t.Errorf("counted\n%s\nnot\n%s", got, want)
	}
	if n := dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.events"); n != 0 || b.hasDay(t, old) {
		t.Errorf("%d events are left, or their partition", n)
	}
}

// The longest values that dispatch lets through fit into the index of event_counts.
func TestTheLongestValuesAreCounted(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := b.idleWorker(t, b.config())
	old := b.pastDay(t, 30)
	// Random text: PostgreSQL would compress a repeated letter.
	b.Exec(t, `INSERT INTO mailhook.events (inserted_at, id, account_id, event_type, occurred_at, dispatched_at, recipient, campaign_id, sending_domain)
		SELECT $1, 1, left(x, 1000), 'a' || left(regexp_replace(x, '[0-9]', 'a', 'g'), 99), now(), now(), '@' || left(x, 999), left(x, 1000), left(x, 1000)
		FROM (SELECT string_agg(md5(random()::text), '') AS x FROM generate_series(1, 40)) AS r`, old)
	b.Exec(t, `INSERT INTO mailhook.events (inserted_at, id, account_id, event_type, occurred_at, dispatched_at, recipient, campaign_id, sending_domain)
		SELECT $1, 2, 'b', 'email.sent', now(), now(), '@' || left(x, 249), left(x, 250), left(x, 250)
		FROM (SELECT string_agg(chr(65536 + (random() * 60000)::int), '') AS x FROM generate_series(1, 250)) AS r`, old)
	w.retainOnce(t.Context(), time.Now().UTC())
	if got := dbtest.QueryOne[string](t, b.DB, "SELECT string_agg(format('%s %s %s', octet_length(account_id), char_length(campaign_id), n), ', ' ORDER BY account_id = 'b') FROM mailhook.event_counts"); got != "1000 100 1, 1 100 1" {
		t.Errorf("counted %q", got)
	}
}

// Each day stays for as long as something needs it, and keeps no other.
func TestADayThatIsNeededStays(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.subscribe(t, "/", "form", "status = 'paused'")
	c := b.config()
	c.Registry = prometheus.NewRegistry()
	logs := &lockedBuffer{}
	c.Log = logs.logger()
	w := b.idleWorker(t, c)
	delivery, deadLetter, replay, free := b.pastDay(t, 40), b.pastDay(t, 38), b.pastDay(t, 36), b.pastDay(t, 39)
	last := func(at time.Time) time.Time { return at.Add(day - time.Microsecond) }
	b.Exec(t, `INSERT INTO mailhook.deliveries (subscription_id, account_id, event_inserted_at, event_id, event_type, next_attempt_at, created_at)
		VALUES ($1, 'default', $2, 1, 'email.sent', now(), now())`, id, last(delivery))
	b.Exec(t, `INSERT INTO mailhook.dead_letters (id, subscription_id, account_id, event_inserted_at, event_id, event_type, attempt, reason, created_at, ended_at)
		VALUES (gen_random_uuid(), $1, 'default', $2, 1, 'email.sent', 1, 'schedule_ended', now(), now())`, id, deadLetter)
	b.Exec(t, `INSERT INTO mailhook.replays (subscription_id, account_id, since, until, source, rate_per_second, matched, after_inserted_at)
		VALUES ($1, 'default', $2, now(), 'all', 1, 1, $2)`, id, replay.Add(-time.Hour))
	// One that has run for a week keeps nothing any more.
	old := b.pastDay(t, 41)
	b.Exec(t, `INSERT INTO mailhook.replays (subscription_id, account_id, since, until, source, rate_per_second, matched, after_inserted_at, created_at)
		VALUES ($1, 'default', $2::timestamptz, $2::timestamptz + interval '1 hour', 'all', 1, 1, $2, now() - interval '8 days')`, id, old)
	w.retainOnce(t.Context(), time.Now().UTC())
	if b.hasDay(t, old) {
		t.Error("a replay of last week keeps its day")
	}
	for what, at := range map[string]time.Time{"unfinished delivery": delivery, "dead letter": deadLetter, "running replay": replay} {
		if !b.hasDay(t, at) {
			t.Errorf("the day of a %s is gone", what)
		}
	}
	if b.hasDay(t, free) {
		t.Error("a day between two that are needed is kept")
	}
	for _, reason := range []string{"delivery", "dead_letter", "replay"} {
		if !strings.Contains(logs.String(), "reason="+reason+" days=1") {
			t.Errorf("the log does not say that a day is kept for a %s:\n%s", reason, logs.String())
		}
	}
	expectMetric(t, c.Registry, "mailhook_partitions_overdue",
		"counting events 0", "dead_letter events 1", "delivery events 1", "replay events 1", "waiting attempts 0", "waiting events 0")
}

// expectMetric compares one gauge: its labels and values in words, in any order.
func expectMetric(t *testing.T, registry prometheus.Registerer, name string, want ...string) {
	t.Helper()
	families, err := registry.(*prometheus.Registry).Gather()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			words := []string{}
			for _, l := range m.GetLabel() {
				words = append(words, l.GetValue())
			}
			got = append(got, strings.Join(append(words, fmt.Sprint(m.GetGauge().GetValue())), " "))
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%s is %q, not %q", name, got, want)
	}
}

// An event of a day past its retention is delivered once more (a retry, a replay) in the moment in which the day goes.
func TestADayDoesNotGoUnderADeliveryInTheMaking(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.subscribe(t, "/", "email", "status = 'paused'")
	w := b.idleWorker(t, b.config())
	old := b.pastDay(t, 30)
	b.oldEvents(t, old, 1)
	tx, err := b.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	if _, err := tx.Exec(t.Context(), `INSERT INTO mailhook.deliveries (subscription_id, account_id, event_inserted_at, event_id, event_type, next_attempt_at, created_at)
		SELECT $1, e.account_id, e.inserted_at, e.id, e.event_type, now(), now() FROM mailhook.events AS e WHERE e.inserted_at < $2`, id, old.Add(day)); err != nil {
		t.Fatal(err)
	}
	type answer struct {
		reason string
		err    error
	}
	answered := make(chan answer)
	go func() {
		reason, err := w.q.DetachDay(t.Context(), dateOf(old))
		answered <- answer{reason, err}
	}()
	dbtest.Eventually(t, "the day is about to go", func() bool {
		return dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM pg_locks WHERE relation = 'mailhook.events'::regclass AND mode = 'AccessExclusiveLock' AND NOT granted") == 1
	})
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := <-answered; got.err != nil || got.reason != "delivery" {
		t.Errorf("%q, %v: the delivery was there before the day went", got.reason, got.err)
	}
	if n := dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.events"); n != 1 {
		t.Error("the event of an unfinished delivery is gone")
	}
}

func TestPartitionsThatRunOutAreSaid(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.config()
	c.Registry = prometheus.NewRegistry()
	logs := &lockedBuffer{}
	c.Log = logs.logger()
	w := b.idleWorker(t, c)
	alarm := func() string {
		t.Helper()
		if err := w.alarm(t.Context()); err != nil {
			t.Fatal(err)
		}
		return logs.String()
	}
	if got := alarm(); got != "" {
		t.Errorf("nothing is wrong, and it says %s", got)
	}
	// The day after tomorrow and what follows: one day ahead is left.
	now := dbtest.QueryOne[time.Time](t, b.DB, "SELECT clock_timestamp()").UTC()
	b.Exec(t, "DROP TABLE mailhook.events"+now.AddDate(0, 0, 2).Format("_20060102"))
	b.Exec(t, "DROP TABLE mailhook.attempts"+now.Format("_20060102"))
	b.Exec(t, "SELECT mailhook.create_partition('attempts', $1)", now.AddDate(0, 0, -20))
	b.Exec(t, "INSERT INTO mailhook.attempts (started_at, id, delivery_id, subscription_id, account_id, event_inserted_at, event_id, event_type, number, outcome, delivery_created_at) SELECT now(), u, u, u, 'a', now(), 1, 'email.sent', 1, 'ok', now() FROM gen_random_uuid() AS u")
	got := alarm()
	for _, want := range []string{"level=ERROR msg=\"partitions run out\" table=events days_ahead=1", "table=attempts days_ahead=-1",
		"level=ERROR msg=\"days are kept beyond their retention\" table=attempts reason=waiting days=1", "level=ERROR msg=\"rows lie in a DEFAULT partition\" events=0 attempts=1"} {
		if !strings.Contains(got, want) {
			t.Errorf("without %q:\n%s", want, got)
		}
	}
	expectMetric(t, c.Registry, "mailhook_partition_days_ahead", "attempts -1", "events 1")
	expectMetric(t, c.Registry, "mailhook_default_partition_rows", "1")
	// Retention puts all of it right.
	w.retainOnce(t.Context(), now)
	expectMetric(t, c.Registry, "mailhook_partition_days_ahead", "attempts 3", "events 3")
	expectMetric(t, c.Registry, "mailhook_default_partition_rows", "0")
	if n := dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.attempts"); n != 1 {
		t.Errorf("%d attempts; one was in DEFAULT", n)
	}
}

// Rows in DEFAULT move to a partition of their day; those of a day far ahead stay, and are no reason for more partitions.
func TestRowsInDefaultMove(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := b.idleWorker(t, b.config())
	now := dbtest.QueryOne[time.Time](t, b.DB, "SELECT clock_timestamp()").UTC()
	for n, at := range []time.Time{now.AddDate(0, 0, -9), now.AddDate(0, 0, -4), now.AddDate(50, 0, 0)} {
		b.Exec(t, "INSERT INTO mailhook.events (inserted_at, id, account_id, event_type, occurred_at, dispatched_at) VALUES ($1, $2, 'default', 'email.sent', now(), now())", at, n)
	}
	w.retainOnce(t.Context(), now)
	if got := dbtest.QueryOne[string](t, b.DB, "SELECT string_agg(tableoid::regclass::text, ' ' ORDER BY id) FROM mailhook.events"); got != fmt.Sprintf("mailhook.events_%s mailhook.events_%s mailhook.events_default",
		now.AddDate(0, 0, -9).Format("20060102"), now.AddDate(0, 0, -4).Format("20060102")) {
		t.Errorf("the rows lie in %s", got)
	}
}

// All workers were away for days, and the host wrote on: the days of the backlog have partitions before it is dispatched.
func TestTheDaysOfABacklogHavePartitions(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := b.idleWorker(t, b.config())
	now := dbtest.QueryOne[time.Time](t, b.DB, "SELECT clock_timestamp()").UTC()
	b.Exec(t, "INSERT INTO mailhook.outbox (event_type, inserted_at) VALUES ('email.sent', $1)", now.AddDate(0, 0, -5))
	w.retainOnce(t.Context(), now)
	b.look(t, w)
	if got := dbtest.QueryOne[string](t, b.DB, "SELECT tableoid::regclass::text FROM mailhook.events"); got != "mailhook.events_"+now.AddDate(0, 0, -5).Format("20060102") {
		t.Errorf("the event lies in %s", got)
	}
}

// Who reads an event while its day gets a partition sees it all the time, where it lies now or where it will.
func TestMovingHidesNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	now := dbtest.QueryOne[time.Time](t, b.DB, "SELECT clock_timestamp()").UTC()
	at := now.AddDate(0, 0, -9)
	b.Exec(t, "INSERT INTO mailhook.events (inserted_at, id, account_id, event_type, occurred_at, dispatched_at) VALUES ($1, 1, 'default', 'email.sent', now(), now())", at)
	reader, err := b.Pool.BeginTx(t.Context(), pgx.TxOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Rollback(t.Context())
	see := func() (n int) {
		t.Helper()
		if err := reader.QueryRow(t.Context(), "SELECT count(*) FROM mailhook.events WHERE inserted_at = $1", at).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if see() != 1 {
		t.Fatal("not there before")
	}
	done := make(chan error)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		_, err := b.Pool.Exec(ctx, "SELECT mailhook.create_partition('events', $1)", at)
		done <- err
	}()
	dbtest.Eventually(t, "the move waits for the reader", func() bool {
		return dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM pg_locks WHERE relation = 'mailhook.events_default'::regclass AND NOT granted") == 1
	})
	if see() != 1 {
		t.Error("not there while it is moved")
	}
	reader.Rollback(t.Context())
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if n := dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.events WHERE inserted_at = $1", at); n != 1 {
		t.Error("not there afterwards")
	}
}
