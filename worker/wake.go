package worker

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"mailhook/db"
)

const (
	// wakeupChannel is where hosts notify: only the watcher listens. workChannel is where it says that there is work for
	// more than one.
	wakeupChannel = "mailhook_wakeup"
	workChannel   = "mailhook_work"
	testPayload   = "test"
	// watchKey is the advisory lock of the watcher: "mailhwat" in ASCII. That of migrations is another: they wait for no worker.
	watchKey = 0x6d61696c68776174
	// electionInterval is how often the others try to become the watcher.
	electionInterval = time.Second
	// helpInterval is how often a worker asks the others for help at most.
	helpInterval = 100 * time.Millisecond
	// pingInterval and pingTimeout find a LISTEN connection that is dead without having said so; sessionTimeout lets the
	// server find a worker that is.
	pingInterval   = 5 * time.Second
	pingTimeout    = 3 * time.Second
	sessionTimeout = 3 * pingInterval
	// probeTimeout is how long a worker waits for its own notification after each connect, and probeInterval how long it
	// takes itself for deaf when none came.
	probeTimeout  = 3 * time.Second
	probeInterval = time.Minute
)

// wake listens on a connection of its own, outside the pool and never in a transaction. Polling is the truth and
// notifications the accelerator: after every (re)connect it listens first and then has the outbox looked at.
//
// Of all workers one is the watcher: it arms the trigger and is notified by hosts. The others sleep until it asks for
// help, so that an event wakes one worker and not sixteen, and nobody arms while another is awake. Nothing depends on
// it: without a watcher everyone polls. So does a worker behind a pooler: it listens on nothing.
func (w *Worker) wake(ctx context.Context) {
	for ctx.Err() == nil && !w.pool.Pooled() {
		err := w.listen(ctx)
		w.watching.Store(false)
		if ctx.Err() == nil {
			w.complain(ctx, "listen", err)
			pause(ctx, time.Second)
		}
	}
}

func (w *Worker) listen(ctx context.Context) error {
	connecting, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	conn, err := db.Connect(connecting, w.cfg.DatabaseURL, db.Role{Name: "mailhook listener", StatementTimeout: pingTimeout})
	if err != nil {
		return err
	}
	defer hangUp(ctx, conn)
	probe := "mailhook_probe_" + strings.ReplaceAll(w.identity.get().String(), "-", "")
	if _, err := conn.Exec(connecting, "LISTEN "+workChannel+"; LISTEN "+probe); err != nil {
		return err
	}
	signal(w.events)
	signal(w.tests)
	if err := w.probe(ctx, conn, probe); err != nil {
		return err
	}
	for connected, pinged := time.Now(), time.Now(); ; {
		within := electionInterval
		switch {
		case w.deaf.Load():
			if time.Since(connected) > probeInterval {
				return nil // it may have been a slow start
			}
		case !w.watching.Load():
			if err := w.stand(ctx, conn); err != nil {
				return err
			}
			pinged = time.Now()
		default:
			within = pingInterval
		}
		if err := w.next(ctx, conn, within); err != nil {
			return err
		}
		if time.Since(pinged) >= pingInterval {
			if err := w.ping(ctx, conn); err != nil {
				return err
			}
			pinged = time.Now()
		}
	}
}

func hangUp(ctx context.Context, conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pingTimeout)
	defer cancel()
	conn.Close(ctx) //nolint:errcheck // nothing to do about it
}

func (w *Worker) ping(ctx context.Context, conn *pgx.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	return conn.Ping(ctx)
}

// stand makes this worker the watcher if there is none. The lock ends with the connection.
func (w *Worker) stand(ctx context.Context, conn *pgx.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	var got bool
	if err := conn.QueryRow(ctx, "SELECT pg_try_advisory_lock($1)", int64(watchKey)).Scan(&got); err != nil || !got {
		return err
	}
	// The timeout is for a watcher that is stopped, or whose machine is gone: the server ends its session, and with it its
	// lock. A session that lives pings in time.
	if _, err := conn.Exec(ctx, fmt.Sprintf("SET idle_session_timeout = '%ds'; LISTEN %s", int(sessionTimeout.Seconds()), wakeupChannel)); err != nil {
		return err
	}
	w.watching.Store(true)
	signal(w.events)
	signal(w.tests)
	return nil
}

// next waits for one notification, and passes it on.
func (w *Worker) next(ctx context.Context, conn *pgx.Conn, within time.Duration) error {
	waiting, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	n, err := conn.WaitForNotification(waiting)
	if err == nil {
		w.deaf.Store(false)
	}
	switch {
	case err == nil && n.Channel == wakeupChannel && n.Payload == testPayload:
		signal(w.tests)
		return nil
	case err == nil && n.Channel == wakeupChannel:
		w.metrics.notifications.Inc()
		signal(w.events)
		return nil
	case err == nil && n.Channel == workChannel:
		if !w.watching.Load() { // it is the one who asks
			signal(w.events)
		}
		signal(w.due)
		return nil
	case err == nil:
		return nil
	case ctx.Err() == nil && errors.Is(waiting.Err(), context.DeadlineExceeded) && !conn.IsClosed():
		return nil
	}
	return err
}

// probe sends this worker a notification by way of the pool. Where something swallows it, that is said once, and the
// worker goes on by polling, deaf.
func (w *Worker) probe(ctx context.Context, conn *pgx.Conn, channel string) error {
	if err := call(ctx, func(ctx context.Context) error { return w.q.Notify(ctx, channel) }); err != nil {
		return err
	}
	deadline := time.Now().Add(probeTimeout)
	for time.Now().Before(deadline) {
		waiting, cancel := context.WithDeadline(ctx, deadline)
		n, err := conn.WaitForNotification(waiting)
		cancel()
		if err == nil && n.Channel == channel {
			w.deaf.Store(false)
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
	if !w.deaf.Swap(true) {
		w.cfg.Log.Warn("notifications do not arrive: going on by polling", "poll_interval", w.cfg.PollInterval)
	}
	return nil
}

// found is what a look that took rows means for waking: traffic. While the watcher is awake, no host need notify.
func (d *dispatcher) found(ctx context.Context) {
	d.foundAt = time.Now()
	d.disarm(ctx)
	if d.full || d.leftSome {
		d.askForHelp(ctx)
	}
}

// askForHelp wakes the other workers: there is more than this one takes at once.
func (d *dispatcher) askForHelp(ctx context.Context) {
	if d.w.state.crew() < 2 || time.Since(d.askedAt) < helpInterval {
		return
	}
	d.askedAt = time.Now()
	err := call(ctx, func(ctx context.Context) error { return d.w.genericQ.Notify(ctx, workChannel) })
	d.w.complain(ctx, "ask for help", err)
}

func (d *dispatcher) disarm(ctx context.Context) {
	if !d.armed {
		return
	}
	d.armed = false
	// Without the watch any more, another may have armed for itself.
	if d.w.watching.Load() {
		d.setOff(ctx)
	}
}

func (d *dispatcher) setOff(ctx context.Context) {
	err := call(ctx, func(ctx context.Context) error { return d.w.genericQ.Disarm(ctx) })
	d.w.complain(ctx, "disarm", err)
}

// idle is what to do when a look found nothing. The watcher lingers, then arms the trigger, then waits for the
// transactions that inserted before it was armed, then sleeps. The others sleep. Each way out of it leads to another
// look.
func (d *dispatcher) idle(ctx context.Context) {
	switch {
	case !d.w.watching.Load() && !d.w.deaf.Load():
		d.armed, d.writers = false, nil // whoever watches now arms for itself
		d.rest(ctx, d.w.cfg.PollInterval)
	case time.Since(d.foundAt) < lingerTime:
		d.rest(ctx, lingerPause)
	case d.w.deaf.Load():
		d.rest(ctx, d.w.cfg.PollInterval)
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
	d.w.metrics.arms.Inc()
	err := call(ctx, func(ctx context.Context) error {
		// For longer than until the poll, which arms anew: a worker that dies leaves no host notifying for ever.
		if _, err := d.w.genericQ.Arm(ctx, 2*d.w.cfg.PollInterval.Seconds()+callTimeout.Seconds()); err != nil {
			return err
		}
		writers, err := d.w.genericQ.ListWriters(ctx, "mailhook.outbox")
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
		now, err = d.w.genericQ.ListWriters(ctx, "mailhook.outbox")
		return err
	})
	if err != nil {
		d.w.complain(ctx, "list writers of outbox", err)
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
