package worker

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"mailhook/db/dbtest"
)

func TestDeliveriesThatWaitAreMeasured(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.subscribe(t, "/", "email")
	b.waiting(t, id, 3, 1)
	b.Exec(t, "UPDATE mailhook.deliveries SET attempt = 1, next_attempt_at = now() + interval '1 hour' WHERE id <> (SELECT min(id::text)::uuid FROM mailhook.deliveries)")
	c := b.config()
	b.idleWorker(t, c)
	expectMetric(t, c.Registry, "mailhook_waiting_deliveries", "2")
	expectMetric(t, c.Registry, "mailhook_due_deliveries", "1")
}

// Every collector waits for a table here, and claims go on.
func TestAScrapeLeavesASessionToClaims(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.subscribe(t, "/", "email")
	b.waiting(t, id, 3, 1)
	config := b.config()
	c := newClaimLanes(b.idleWorker(t, config), t.Context()).ordinary
	other, err := b.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Rollback(t.Context())
	if _, err := other.Exec(t.Context(), "LOCK TABLE mailhook.quarantine, mailhook.erasures, mailhook.attempts_default IN ACCESS EXCLUSIVE MODE"); err != nil {
		t.Fatal(err)
	}
	scraped := make(chan error, 1)
	go func() {
		_, err := config.Registry.(*prometheus.Registry).Gather()
		scraped <- err
	}()
	dbtest.Eventually(t, "the scrape waits", func() bool {
		return dbtest.QueryOne[bool](t, b.DB, `SELECT EXISTS (SELECT FROM pg_stat_activity
			WHERE datname = current_database() AND application_name = 'mailhook worker' AND wait_event_type = 'Lock')`)
	})
	if result, err := c.once(t.Context()); err != nil || result.deliveries != 3 {
		t.Errorf("%d claimed beside a scrape: %v", result.deliveries, err)
	}
	if err := other.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-scraped; err != nil {
		t.Error(err)
	}
}
