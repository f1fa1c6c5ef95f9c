package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"mailhook/db/localpg"
)

// pooler has workers and host share the sessions of a PgBouncer in transaction mode, and crashes the database behind it.
func pooler() scenario {
	var bouncer *localpg.Bouncer
	return scenario{
		name: "pooler", what: "PgBouncer in transaction mode before workers and host, PostgreSQL crashed behind it",
		workers: 2, load: usualLoad(), recovery: afterFault, market: sluggish,
		place: func(ctx context.Context, f *field) (err error) {
			bouncer, err = f.poolSessions(ctx)
			return err
		},
		run: func(ctx context.Context, f *field) error {
			looking, stop := context.WithCancel(ctx)
			var wg sync.WaitGroup
			var looks atomic.Int64
			for range 3 { // at once, so that they see several of the sessions
				wg.Go(func() { f.watchSettings(looking, bouncer.URL("postgres"), &looks) })
			}
			err := f.crashBehind(ctx)
			stop()
			wg.Wait()
			f.note("%d looks at the settings that the host's transactions get", looks.Load())
			if looks.Load() == 0 {
				f.problem("nobody looked at the host's settings: nothing was shown")
			}
			return err
		},
		verify: func(ctx context.Context, f *field, _ *checker) error {
			n, err := f.count(ctx, "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'mailhook listener' OR query LIKE 'LISTEN%'")
			if n > 0 {
				f.problem("%d sessions listen, behind a pooler", n)
			}
			for _, p := range f.living() {
				log, readErr := os.ReadFile(p.log)
				err = errors.Join(err, readErr)
				if said := bytes.Count(log, []byte("a pooler stands between")); said != 1 {
					f.problem("%s says %d times that a pooler stands between, not once", p.name, said)
				}
			}
			return err
		},
	}
}

// poolSessions puts PgBouncer between. It asks a server that has refused again after a second, not after its 15.
func (f *field) poolSessions(ctx context.Context) (*localpg.Bouncer, error) {
	log, err := os.Create(filepath.Join(f.dir, "pgbouncer.log"))
	if err != nil {
		return nil, err
	}
	settings := map[string]string{"server_login_retry": "1", "default_pool_size": "20", "ignore_startup_parameters": ""}
	bouncer, err := localpg.StartBouncer(ctx, f.server, localpg.BouncerOptions{Settings: settings, Log: log})
	if errors.Is(err, exec.ErrNotFound) {
		return nil, notRun(err.Error())
	}
	if err != nil {
		return nil, err
	}
	f.atEnd(func() { bouncer.Stop() }) //nolint:errcheck // at the end
	f.workerURL = bouncer.URL("postgres")
	// All of its clients are one user: the host is known by its name.
	f.hostURL = f.workerURL + "&application_name=host&default_query_exec_mode=exec"
	return bouncer, nil
}

func (f *field) crashBehind(ctx context.Context) error {
	for range 2 {
		if !pause(ctx, f.seconds(8)) {
			return ctx.Err()
		}
		if err := f.crashDatabase(ctx, time.Second); err != nil {
			return err
		}
	}
	pause(ctx, f.seconds(8))
	return nil
}

// settingsSQL is what a session is set to, and what that would be if nobody had set anything. application_name is each
// client's own, and the pooler sets it; keepalives show what the system does.
const settingsSQL = `SELECT coalesce(string_agg(name || ' = ' || setting || ' instead of ' || reset_val, ', '), '') FROM pg_settings
	WHERE setting IS DISTINCT FROM reset_val AND context IN ('user', 'superuser') AND name NOT LIKE 'transaction_%' AND name NOT LIKE 'tcp_keepalives_%' AND name <> 'application_name'`

// watchSettings looks, as the host would, whether a session has settings that are not its own.
func (f *field) watchSettings(ctx context.Context, url string, looks *atomic.Int64) {
	var conn *pgx.Conn
	usual := ""
	for pause(ctx, 20*time.Millisecond) {
		if conn == nil || conn.IsClosed() {
			var err error
			if conn, err = pgx.Connect(ctx, url+"&application_name=host&default_query_exec_mode=exec"); err != nil {
				continue // an outage
			}
		}
		var set string
		if err := conn.QueryRow(ctx, settingsSQL).Scan(&set); err != nil {
			continue
		}
		if looks.Add(1); set != usual {
			f.problem("a transaction of the host has settings of somebody else: %s", fmt.Sprintf("%.200s", set))
			usual = set // told once
		}
	}
	if conn != nil {
		conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // it only read
	}
}
