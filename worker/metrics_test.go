package worker

import "testing"

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
