package main

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// terminate ends all sessions of the workers every second.
func terminate() scenario {
	return scenario{
		name: "terminate", what: "pg_terminate_backend of all our sessions every second", ci: true,
		workers: 2, load: usualLoad(), recovery: afterFault, market: sluggish,
		run: func(ctx context.Context, f *field) error {
			began, ended := time.Now(), 0
			for range f.scaled(20, 5) {
				if !pause(ctx, time.Second) {
					return ctx.Err()
				}
				n, err := f.terminateOurs(ctx)
				if err != nil {
					return err
				}
				ended += n
			}
			f.faulty(fault{from: began, to: time.Now()})
			f.note("%d sessions ended", ended)
			pause(ctx, 2*time.Second)
			return nil
		},
	}
}

const endOurs = "SELECT count(*) FROM (SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'mailhook%') AS ended"

func (f *field) terminateOurs(ctx context.Context) (int, error) {
	n, err := f.count(ctx, endOurs)
	return int(n), err
}

// restart crashes PostgreSQL under load, and starts it again.
func restart() scenario {
	return scenario{
		name: "restart", what: "pg_ctl stop -m immediate and start, ten times under load", ci: true,
		workers: 2, load: usualLoad(), recovery: afterFault, market: sluggish,
		run: func(ctx context.Context, f *field) error {
			random := f.random("nemesis")
			for range f.scaled(10, 2) {
				if !pause(ctx, 2*time.Second+time.Duration(random.IntN(2000))*time.Millisecond) {
					return ctx.Err()
				}
				if err := f.crashDatabase(ctx, time.Duration(random.IntN(2000))*time.Millisecond); err != nil {
					return err
				}
			}
			pause(ctx, 2*time.Second)
			return nil
		},
	}
}

// crashDatabase ends PostgreSQL without a checkpoint, and starts it after a while. What was answered in the last second
// may be sent again: workers commit asynchronously, and what they had recorded may be gone.
func (f *field) crashDatabase(ctx context.Context, down time.Duration) error {
	x := fault{from: time.Now(), outage: true}
	if err := f.server.StopImmediate(); err != nil {
		return err
	}
	pause(ctx, down)
	err := f.server.Restart(ctx)
	x.to = time.Now()
	f.faulty(x)
	return err
}

// connections takes all connections that there are, and ends ours: the workers have to wait for a place.
func connections() scenario {
	return scenario{
		name: "connections", what: "max_connections eaten by the host, our sessions ended", ci: false,
		workers: 2, load: usualLoad(), recovery: afterFault, settings: map[string]string{"max_connections": "50"},
		run: func(ctx context.Context, f *field) error {
			if !pause(ctx, 2*time.Second) {
				return ctx.Err()
			}
			x := fault{from: time.Now()}
			eaten, err := f.eatConnections(ctx, f.seconds(15))
			x.to = time.Now()
			f.faulty(x)
			f.note("%d connections eaten", eaten)
			pause(ctx, 6*time.Second)
			return err
		},
	}
}

// eatConnections takes every connection that is to be had, for a while.
func (f *field) eatConnections(ctx context.Context, d time.Duration) (int, error) {
	var eaten []*pgx.Conn
	defer func() {
		for _, c := range eaten {
			c.Close(context.WithoutCancel(ctx)) //nolint:errcheck // ours alone
		}
	}()
	terminated := false
	for end := time.Now().Add(d); time.Now().Before(end); {
		c, err := pgx.Connect(ctx, f.url)
		var refused *pgconn.PgError
		switch {
		case err == nil:
			eaten = append(eaten, c)
		case errors.As(err, &refused) && refused.Code == "53300":
			if !terminated {
				// On one of those eaten: for another there is no room.
				if len(eaten) == 0 {
					return 0, err
				}
				if _, err := eaten[0].Exec(ctx, endOurs); err != nil {
					return len(eaten), err
				}
				terminated = true
			}
			pause(ctx, 5*time.Millisecond)
		default:
			return len(eaten), err
		}
	}
	return len(eaten), nil
}
