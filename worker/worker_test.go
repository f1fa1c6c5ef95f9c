package worker

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"mailhook/cmd/receiver"
	"mailhook/db/dbtest"
)

func TestAnEventReachesItsSubscription(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "/hook", "email.delivered")
	b.run(t, b.config())
	id := dbtest.QueryOne[string](t, b.DB, `SELECT mailhook.emit('email.delivered', recipient => 'r@example.com', message_id => 'abc',
		occurred_at => '2024-01-15T10:30:00Z', data => '{"b": 1, "a": [1, 2], "empty": "", "nothing": null}')`)
	r := b.waitFor(t, 1)[0]
	if r.Problem != nil {
		t.Error(r.Problem)
	}
	if r.ID != id {
		t.Errorf("webhook-id %s, emit answered %s", r.ID, id)
	}
	want := `{"id":"` + id + `","type":"email.delivered","timestamp":"2024-01-15T10:30:00.000Z","data":{"recipient":"r@example.com","message_id":"abc","b":1,"a":[1, 2]}}`
	if string(r.Body) != want || !json.Valid(r.Body) {
		t.Errorf("body\n%s\nwant\n%s", r.Body, want)
	}
	b.settled(t)
	if n := dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.attempts WHERE outcome = 'ok' AND ended_as = 'delivered'"); n != 1 {
		t.Errorf("%d delivered attempts", n)
	}
}

// A login of the API reads the schema's version, too, and would fail at each statement.
func TestALoginOfTheAPIIsRefused(t *testing.T) {
	t.Parallel()
	b := setup(t)
	config := b.config()
	config.DatabaseURL = b.As("mailhook_api")
	const want = "the database role mailhook_api lacks INSERT on mailhook.attempts: GRANT mailhook_worker TO mailhook_api"
	if _, err := New(t.Context(), config); err == nil || err.Error() != want {
		t.Error(err)
	}
}

// A worker that finds a backlog at its start is ready when it has taken of it, not when it has come to its end.
func TestAWorkerWithABacklogIsReady(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.subscribe(t, "/", "email", "max_in_flight = 100")
	b.Exec(t, "SELECT mailhook.emit('email.sent') FROM generate_series(1, 20)")
	came, release := make(chan struct{}, 20), make(chan struct{})
	b.answerWith(func(http.ResponseWriter, receiver.Receipt) { came <- struct{}{}; <-release })
	c := b.config()
	c.MaxInFlight = 4
	w, _ := b.run(t, c)
	// Dispatch may use three slots of the four, and does not look again before one of them is free.
	for range 3 {
		<-came
	}
	if err := w.Ready(); err != nil {
		t.Error(err)
	}
	close(release)
	b.settled(t)
}

// What healthz says is of this process: what the database does is for readyz, a loop that stands still is not.
func TestHealthIsOfTheProcess(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w, _ := b.run(t, b.config())
	if err := w.Healthy(); err != nil {
		t.Errorf("at the start: %v", err)
	}
	dbtest.Eventually(t, "ready", func() bool { return w.Ready() == nil }) // a worker that cannot register ends
	turns := func() (pulse, beat time.Time) {
		w.state.set(func(s *pulseState) { pulse, beat = s.pulseTurned, s.beatTurned })
		return pulse, beat
	}
	b.Exec(t, "ALTER TABLE mailhook.workers RENAME TO gone")
	defer b.Exec(t, "ALTER TABLE mailhook.gone RENAME TO workers")
	dbtest.Eventually(t, "calls fail", func() bool { return value(w.metrics.databaseErrors.WithLabelValues("ask for changes")) > 0 })
	pulse, beat := turns()
	dbtest.Eventually(t, "both loops come round nevertheless", func() bool {
		nextPulse, nextBeat := turns()
		return nextPulse.After(pulse) && nextBeat.After(beat)
	})
	if err := w.Healthy(); err != nil {
		t.Errorf("while calls fail: %v", err)
	}
	state := pulseState{pulseTurned: time.Now(), beatTurned: time.Now().Add(-stuckLimit - time.Second)}
	if err := state.turning(time.Now()); err == nil || !strings.Contains(err.Error(), "heartbeat") {
		t.Errorf("a heartbeat that has stood still: %v", err)
	}
}
