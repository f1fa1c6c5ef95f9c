package worker

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"

	"mailhook/cmd/receiver"
	"mailhook/db/dbtest"
)

// A success that names events as failed: those come again, by themselves, and no others.
func TestFailedEventsOfABatch(t *testing.T) {
	t.Parallel()
	b := setup(t)
	failed := map[string]bool{}
	b.answerWith(func(w http.ResponseWriter, r receiver.Receipt) {
		if len(r.Events) != 100 {
			return
		}
		ids := append([]string{"evt_unknown"}, r.Events[10:20]...)
		for _, id := range ids[1:] {
			failed[id] = true
		}
		json.NewEncoder(w).Encode(map[string]any{"failed": ids, "more": strings.Repeat("x", 20_000)})
	})
	b.subscribe(t, "/", "email", "batch_max_events = 100, "+longWait, retrying)
	b.run(t, b.config())
	b.emit(t, 100)
	b.settled(t)
	receipts := b.waitFor(t, 2)
	if got := sizes(t, receipts); !slices.Equal(got, []int{100, 10}) || receipts[0].ID == receipts[1].ID {
		t.Fatalf("batches of %v, %s and %s", got, receipts[0].ID, receipts[1].ID)
	}
	for _, id := range receipts[1].Events {
		if !failed[id] {
			t.Errorf("%s had not failed", id)
		}
	}
	if n := dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.attempts WHERE outcome = 'partial_failure' AND status_code = 200 AND ended_as IS NULL"); n != 10 {
		t.Errorf("%d attempts are partial failures", n)
	}
	if n := dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.subscription_health WHERE consecutive_failures > 0"); n != 0 {
		t.Error("a success counts against the endpoint")
	}
}

func TestWhatNamesFailedEvents(t *testing.T) {
	t.Parallel()
	const all = -1
	for answer, want := range map[string]int{
		`{"failed": ["a", "b", "a"]}`: 2, ` {"x": {}, "failed":["a"]} `: 1, `{"failed": []}`: 0, `{"failed": null}`: 0, `{"failed": "a"}`: 0,
		`{"failed": ["a", 1, null, ["b"]]}`: 1, `["failed"]`: 0, `{"Failed": ["a"]}`: 0, "": 0, "\x00\"failed\"": 0, `{"failed": ["a"]} x`: 1,
		`{"x": [1, "failed"`: 0, `{"failed": ["a"], "x": [`: 1, `{"failed"`: 0, `{"failed": {"a": 1}}`: 0,
		`{"failed": ["a"`: all, `{"failed": ["a", "b`: all, `{"failed": [evt_1]}`: all, `{"failed": [`: all,
	} {
		got := failuresIn([]byte(answer))
		if n := len(got.ids); got.all != (want == all) || want != all && n != want {
			t.Errorf("%s: %v", answer, got)
		}
	}
}

// One event of a thousand that the receiver will not have: it is found within the budget, and all others come once.
func TestAPoisonEventIsIsolated(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const n, budget = 1000, 22
	isPoisoned := func(r receiver.Receipt) bool { return strings.Contains(string(r.Body), `"n":617}`) }
	b.answerWith(func(w http.ResponseWriter, r receiver.Receipt) {
		if isPoisoned(r) {
			w.WriteHeader(http.StatusUnprocessableEntity)
		}
	})
	b.subscribe(t, "/", "email", "batch_max_events = 1000, "+longWait, "retry_schedule = '{1h,1h}'")
	b.run(t, b.config())
	b.emit(t, n)
	receipts := b.waitForEvents(t, n-1)
	sizes(t, receipts)
	if len(receipts) > budget {
		t.Errorf("%d requests", len(receipts))
	}
	accepted := func(r receiver.Receipt) []string {
		if isPoisoned(r) {
			return nil
		}
		return r.Events
	}
	eachOnce(t, receipts, accepted, n-1)
	dbtest.Eventually(t, "the poison is put off", func() bool {
		return dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.deliveries WHERE attempt = 1 AND lease_id IS NULL AND batch_id IS NOT NULL") == 1
	})
	// It stays alone, whatever else there is.
	b.Exec(t, "UPDATE mailhook.deliveries SET next_attempt_at = now()")
	b.emit(t, 10)
	dbtest.Eventually(t, "it was tried again", func() bool {
		return dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.deliveries WHERE attempt = 2") == 1
	})
	alone := slices.ContainsFunc(b.waitFor(t, len(receipts)+1)[len(receipts):], func(r receiver.Receipt) bool { return isPoisoned(r) && len(r.Events) == 1 })
	if !alone {
		t.Error("the poison came with others")
	}
	if got := dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.attempts WHERE number = 1"); got != n {
		t.Errorf("%d attempts for %d deliveries", got, n)
	}
	// The attempt that counts is that of the last request, and a refusal beside successes is no failure of the endpoint.
	if got := dbtest.QueryOne[int64](t, b.DB, "SELECT coalesce(sum(consecutive_failures), 0) FROM mailhook.subscription_health"); got > 1 {
		t.Errorf("%d failures", got)
	}
}

// A receiver that throws at one event: the first attempt takes it for the endpoint's failure, the second finds the event.
func TestAnEventThatBreaksTheReceiverIsIsolated(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const n, budget = 1000, 22
	b.answerWith(func(w http.ResponseWriter, r receiver.Receipt) {
		if strings.Contains(string(r.Body), `"n":617}`) {
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	b.subscribe(t, "/", "email", "batch_max_events = 1000, "+longWait, "retry_schedule = '{1h,1h}'")
	b.run(t, b.config())
	b.emit(t, n)
	putOff := func(attempt, n int64) {
		dbtest.Eventually(t, "they are put off", func() bool {
			return dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.deliveries WHERE attempt = $1 AND lease_id IS NULL", attempt) == n
		})
	}
	putOff(1, n)
	if first := b.waitFor(t, 1); len(first) != 1 {
		t.Errorf("%d requests at first", len(first))
	}
	b.Exec(t, "UPDATE mailhook.deliveries SET next_attempt_at = now() - interval '1 second'")
	putOff(2, 1)
	dbtest.Eventually(t, "the others have ended", func() bool { return dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.deliveries") == 1 })
	if receipts := b.waitFor(t, 3); len(receipts) > 1+budget {
		t.Errorf("%d requests", len(receipts))
	}
	if got := dbtest.QueryOne[int64](t, b.DB, "SELECT count(DISTINCT delivery_id) FROM mailhook.attempts WHERE ended_as = 'delivered'"); got != n-1 {
		t.Errorf("%d delivered", got)
	}
}

// A receiver that dies of one event: while it takes others, each further attempt cuts the batch that holds it.
func TestAnEventThatBringsTheReceiverDownIsIsolated(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const n, rounds = 512, 9
	b.answerWith(func(_ http.ResponseWriter, r receiver.Receipt) {
		if strings.Contains(string(r.Body), `"n":317}`) {
			panic(http.ErrAbortHandler)
		}
	})
	b.subscribe(t, "/", "email", "batch_max_events = 512, "+longWait, "retry_schedule = '{1h,1h,1h,1h,1h,1h,1h,1h,1h}'")
	b.run(t, b.config())
	b.emit(t, n)
	left, round := int64(n), 1
	for ; left > 1 && round <= rounds; round++ {
		dbtest.Eventually(t, "what is left is put off", func() bool {
			left = b.count(t, "SELECT count(*) FROM mailhook.deliveries")
			return left > 0 && b.count(t, "SELECT count(*) FROM mailhook.deliveries WHERE attempt = $1 AND lease_id IS NULL", round) == left
		})
		b.Exec(t, "UPDATE mailhook.deliveries SET next_attempt_at = now() - interval '1 second'")
	}
	if left != 1 {
		t.Errorf("%d are left after %d attempts", left, rounds)
	}
	if got := b.count(t, "SELECT count(DISTINCT delivery_id) FROM mailhook.attempts WHERE ended_as = 'delivered'"); got != n-1 {
		t.Errorf("%d delivered", got)
	}
}

// A receiver that is dead for all of them: the batch is cut once, to see whether it is for an event, and no further.
func TestABatchForADeadReceiverIsCutOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.answerWith(func(http.ResponseWriter, receiver.Receipt) { panic(http.ErrAbortHandler) })
	b.subscribe(t, "/", "email", "batch_max_events = 512, "+longWait, "retry_schedule = '{1h,1h,1h,1h,1h}'")
	b.run(t, b.config())
	b.emit(t, 512)
	for attempt, batches := range []int64{1, 8, 8, 8} {
		dbtest.Eventually(t, "all are put off", func() bool {
			return b.count(t, "SELECT count(*) FROM mailhook.deliveries WHERE attempt = $1 AND lease_id IS NULL", attempt+1) == 512
		})
		if n := b.count(t, "SELECT count(DISTINCT batch_id) FROM mailhook.deliveries"); n != batches {
			t.Errorf("%d batches after attempt %d, want %d", n, attempt+1, batches)
		}
		b.Exec(t, "UPDATE mailhook.deliveries SET next_attempt_at = now() - interval '1 second'")
	}
}

// While no part of it is taken a batch comes again as it was, and each attempt looks a little further.
func TestABatchThatNobodyTakesStaysWhole(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.answerWith(func(w http.ResponseWriter, r receiver.Receipt) {
		w.WriteHeader(http.StatusInternalServerError)
		w.Write([]byte(strings.Repeat("x", 1000)))
	})
	b.subscribe(t, "/", "email", "batch_max_events = 64, "+longWait, "retry_schedule = '{1h,1h,1h}'")
	b.run(t, b.config())
	b.emit(t, 64)
	for attempt, requests := range []int{1, 1 + 3, 1 + 3 + 5} {
		dbtest.Eventually(t, "all are put off", func() bool {
			return dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.deliveries WHERE attempt = $1 AND lease_id IS NULL", attempt+1) == 64
		})
		receipts := b.waitFor(t, requests)
		if len(receipts) != requests {
			t.Errorf("%d requests after attempt %d, want %d", len(receipts), attempt+1, requests)
		}
		if n := dbtest.QueryOne[int64](t, b.DB, "SELECT count(DISTINCT batch_id) FROM mailhook.deliveries"); n != 1 {
			t.Errorf("%d batches after attempt %d", n, attempt+1)
		}
		b.Exec(t, "UPDATE mailhook.deliveries SET next_attempt_at = now() - interval '1 second'")
	}
	if n := dbtest.QueryOne[int](t, b.DB, "SELECT max(octet_length(response_excerpt)) FROM mailhook.attempts"); n != batchExcerpt {
		t.Errorf("%d bytes of an answer are kept with each event", n)
	}
}

// Everything is refused: no more requests than the budget, and what is left is cut further each time.
func TestARefusedBatchIsCutWithinItsBudget(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.answerWith(func(w http.ResponseWriter, r receiver.Receipt) { w.WriteHeader(http.StatusRequestEntityTooLarge) })
	b.subscribe(t, "/", "email", "batch_max_events = 64, "+longWait, "retry_schedule = '{1h,1h,1h}'")
	b.run(t, b.config())
	b.emit(t, 64)
	tried := func(attempt int) {
		dbtest.Eventually(t, "all are put off", func() bool {
			return dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.deliveries WHERE attempt = $1 AND lease_id IS NULL", attempt) == 64
		})
	}
	tried(1)
	const budget = 2*6 + 2
	if n := len(b.waitFor(t, 1)); n != budget {
		t.Errorf("%d requests, the budget is %d", n, budget)
	}
	largest := func() int64 {
		return dbtest.QueryOne[int64](t, b.DB, "SELECT max(n) FROM (SELECT count(*) AS n FROM mailhook.deliveries GROUP BY batch_id) AS x")
	}
	first := largest()
	b.Exec(t, "UPDATE mailhook.deliveries SET next_attempt_at = now() - interval '1 second'")
	tried(2)
	if second := largest(); first >= 64 || second >= first {
		t.Errorf("parts of at most %d, then of at most %d", first, second)
	}
	if n := dbtest.QueryOne[int](t, b.DB, "SELECT consecutive_failures FROM mailhook.subscription_health"); n > 64 {
		t.Errorf("%d failures", n)
	}
	if n := dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.attempts"); n != 128 {
		t.Errorf("%d attempts of 64 deliveries that were tried twice", n)
	}
}

// A receiver that echoes a batch: its answer is kept with each event of it, and tells of none of the people in the others, who may be erased.
func TestTheAnswerToABatchNamesNobody(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.answerWith(func(w http.ResponseWriter, r receiver.Receipt) {
		w.WriteHeader(http.StatusInternalServerError)
		w.Write(r.Body)
	})
	b.subscribe(t, "/", "email", "batch_max_events = 2, "+longWait, "retry_schedule = '{1h}'")
	b.run(t, b.config())
	b.Exec(t, "INSERT INTO mailhook.outbox (event_type, recipient) VALUES ('email.sent', 'ann@example.com'), ('email.sent', 'bob@example.com')")
	dbtest.Eventually(t, "both have been tried", func() bool { return b.count(t, "SELECT count(*) FROM mailhook.attempts") == 2 })
	for _, excerpt := range dbtest.QueryOne[[][]byte](t, b.DB, "SELECT array_agg(response_excerpt) FROM mailhook.attempts") {
		if text := string(excerpt); !strings.Contains(text, `"recipient":"***"`) || strings.Contains(text, "example.com") {
			t.Errorf("kept %s", text)
		}
	}
}
