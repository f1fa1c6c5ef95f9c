package worker

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"mailhook/db"
)

const (
	wakeupChannel = "mailhook_wakeup"
	testPayload   = "test"
	// pingInterval and pingTimeout find a LISTEN connection that is dead without having said so.
	pingInterval = 10 * time.Second
	pingTimeout  = 5 * time.Second
	// probeTimeout is how long a worker waits at its start for its own notification.
	probeTimeout = 3 * time.Second
)

// wake listens on a connection of its own, outside the pool and never in a transaction. Polling is the truth and
// notifications the accelerator: after every (re)connect it listens first and then has the outbox looked at.
func (w *Worker) wake(ctx context.Context) {
	probed := false
	for ctx.Err() == nil {
		err := w.listen(ctx, &probed)
		if ctx.Err() == nil {
			w.complain(ctx, "listen", err)
			pause(ctx, time.Second)
		}
	}
}

func (w *Worker) listen(ctx context.Context, probed *bool) error {
	connecting, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	conn, err := db.Connect(connecting, w.cfg.DatabaseURL, db.Role{Name: "mailhook listener", StatementTimeout: pingTimeout})
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // nothing to do about it
	probe := "mailhook_probe_" + strings.ReplaceAll(w.identity.get().String(), "-", "")
	if _, err := conn.Exec(connecting, "LISTEN "+wakeupChannel+"; LISTEN "+probe); err != nil {
		return err
	}
	signal(w.events)
	signal(w.tests)
	if !*probed {
		*probed = true
		if err := w.probe(ctx, conn, probe); err != nil {
			return err
		}
	}
	for {
		if err := w.next(ctx, conn, pingInterval); err != nil {
			return err
		}
	}
}

// next waits for one notification and passes it on. When none comes in time it pings on the same connection.
func (w *Worker) next(ctx context.Context, conn *pgx.Conn, within time.Duration) error {
	waiting, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	n, err := conn.WaitForNotification(waiting)
	switch {
	case err == nil && n.Channel == wakeupChannel && n.Payload == testPayload:
		signal(w.tests)
		return nil
	case err == nil && n.Channel == wakeupChannel:
		w.metrics.notifications.Inc()
		signal(w.events)
		return nil
	case err == nil:
		return nil
	case ctx.Err() == nil && errors.Is(waiting.Err(), context.DeadlineExceeded):
		ping, cancel := context.WithTimeout(ctx, pingTimeout)
		defer cancel()
		return conn.Ping(ping)
	}
	return err
}

// probe sends this worker a notification by way of the pool. A pooler in transaction mode swallows it: that is said
// once, and the worker goes on by polling.
func (w *Worker) probe(ctx context.Context, conn *pgx.Conn, channel string) error {
	if _, err := w.pool.Exec(ctx, "SELECT pg_notify($1, '')", channel); err != nil {
		return err
	}
	deadline := time.Now().Add(probeTimeout)
	for time.Now().Before(deadline) {
		waiting, cancel := context.WithDeadline(ctx, deadline)
		n, err := conn.WaitForNotification(waiting)
		cancel()
		if err == nil && n.Channel == channel {
			return nil
		}
		if err == nil {
			signal(w.events)
			continue
		}
		if ctx.Err() != nil || conn.IsClosed() {
			return err
		}
	}
	w.cfg.Log.Warn("notifications do not arrive: a pooler in transaction mode? Going on by polling", "poll_interval", w.cfg.PollInterval)
	return nil
}

// found is what a look that took rows means for waking: traffic. While the worker is awake, no host need notify.
func (d *dispatcher) found(ctx context.Context) {
	d.foundAt = time.Now()
	d.disarm(ctx)
}

func (d *dispatcher) disarm(ctx context.Context) {
	if !d.armed {
		return
	}
	d.armed = false
	err := call(ctx, func(ctx context.Context) error { return d.w.urgentQ.Disarm(ctx) })
	d.w.complain(ctx, "disarm", err)
}

// idle is what to do when a look found nothing: linger, then arm the trigger, then wait for the transactions that
// inserted before it was armed, then sleep. Each way out of it leads to another look.
func (d *dispatcher) idle(ctx context.Context) {
	switch {
	case time.Since(d.foundAt) < lingerTime:
		d.rest(ctx, lingerPause)
	case !d.armed:
		d.arm(ctx)
	case len(d.writers) > 0:
		if !d.rest(ctx, writersPause) {
			d.writersLeft(ctx)
		}
	default:
		if !d.rest(ctx, d.w.cfg.PollInterval) {
			// The backstop: arm again, for a worker that disarmed may have died, and look through all of it.
			d.arm(ctx)
		}
	}
}

// rest waits for a notification, and says whether one came.
func (d *dispatcher) rest(ctx context.Context, most time.Duration) bool {
	timer := time.NewTimer(most)
	defer timer.Stop()
	select {
	case <-d.w.events:
		// Whoever notified us has rows, or will have when it commits.
		d.foundAt = time.Now()
		d.disarm(ctx)
		return true
	case <-timer.C:
	case <-ctx.Done():
	}
	return false
}

// arm asks to be notified, and takes note of the transactions that wrote into the outbox before: they will not notify.
func (d *dispatcher) arm(ctx context.Context) {
	err := call(ctx, func(ctx context.Context) error {
		if _, err := d.w.urgentQ.Arm(ctx); err != nil {
			return err
		}
		writers, err := d.w.urgentQ.ListOutboxWriters(ctx)
		d.writers = map[string]bool{}
		for _, id := range writers {
			d.writers[id] = true
		}
		return err
	})
	if err != nil {
		d.w.complain(ctx, "arm", err)
		d.rest(ctx, time.Second)
		return
	}
	d.armed = true
	d.sweep.demand() // once more from the beginning: what committed until now
}

// writersLeft crosses out the transactions that have ended; what they wrote is found by a look from the beginning.
func (d *dispatcher) writersLeft(ctx context.Context) {
	var now []string
	err := call(ctx, func(ctx context.Context) (err error) {
		now, err = d.w.urgentQ.ListOutboxWriters(ctx)
		return err
	})
	if err != nil {
		d.w.complain(ctx, "list outbox writers", err)
		return
	}
	still := map[string]bool{}
	for _, id := range now {
		if d.writers[id] {
			still[id] = true
		}
	}
	if len(still) < len(d.writers) {
		d.sweep.demand()
	}
	d.writers = still
}
