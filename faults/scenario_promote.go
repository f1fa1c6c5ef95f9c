package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"mailhook/db/localpg"
)

// behind is how much the asynchronous standby never gets.
const behind = time.Second

// A succession is a primary and its standby, and what stands between them and the rest of the world.
type succession struct {
	synchronous      bool
	primary, standby *localpg.Server
	front, stream    *localpg.Proxy // of the primary: for clients, for the standby
	promised         int            // events of acknowledged commits that only the primary had
}

// promoteSync loses the primary. No commit was acknowledged that the standby did not have.
func promoteSync() scenario {
	return promote("promote-sync", "the primary is lost, a synchronous standby promoted", &succession{synchronous: true})
}

// promoteAsync loses the primary and the last second of what it had acknowledged.
func promoteAsync() scenario {
	return promote("promote-async", "the primary is lost, a standby promoted that is a second behind", &succession{})
}

func promote(name, what string, s *succession) scenario {
	return scenario{
		name: name, what: what, workers: 2, load: usualLoad(), recovery: afterFault, market: sluggish,
		place: s.place,
		run: func(ctx context.Context, f *field) error {
			if !pause(ctx, f.seconds(8)) {
				return ctx.Err()
			}
			if err := s.succeed(ctx, f); err != nil {
				return err
			}
			pause(ctx, f.seconds(8))
			if err := f.host.stop(ctx); err != nil {
				return err
			}
			return s.reconcile(ctx, f)
		},
		verify: func(_ context.Context, f *field, c *checker) error {
			f.note("%d events gone with the primary, %d of them acknowledged; %d receipts of them", len(c.facts.gone), s.promised, c.promised)
			switch {
			case s.synchronous && s.promised > 0:
				f.problem("%d events of acknowledged commits are lost, in spite of synchronous replication", s.promised)
			case s.synchronous && c.promised > 0:
				f.problem("%d receipts of commits that the standby never had: they were sent before they were visible", c.promised)
			case !s.synchronous && s.promised == 0:
				f.problem("the standby had all: nothing was shown")
			}
			return nil
		},
	}
}

// place starts the standby. Workers, host and harness know both servers; the host asks for the one that takes writes.
func (s *succession) place(ctx context.Context, f *field) (err error) {
	s.primary = f.server
	if s.stream, err = f.standBetween(s.primary.Addr()); err != nil {
		return err
	}
	if s.front, err = f.standBetween(s.primary.Addr()); err != nil {
		return err
	}
	host, port, err := net.SplitHostPort(s.stream.Addr())
	if err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(f.dir, "standby.log"))
	if err != nil {
		return err
	}
	conninfo := fmt.Sprintf("host=%s port=%s user=postgres sslmode=disable", host, port)
	s.standby, err = s.primary.StartStandby(ctx, localpg.Options{Settings: map[string]string{"primary_conninfo": conninfo}, Log: log})
	if err != nil {
		return err
	}
	f.atEnd(func() { s.standby.Stop() }) //nolint:errcheck // a second time does nothing
	f.atEnd(func() { s.primary.Stop() }) //nolint:errcheck // the same
	if s.synchronous {
		if err := s.synchronise(ctx, f); err != nil {
			return err
		}
	}
	both := s.front.Addr() + "," + s.standby.Addr()
	if f.workerURL, err = via(f.url, both); err != nil {
		return err
	}
	if f.hostURL, err = via(f.hostURL, both); err != nil {
		return err
	}
	f.url, f.hostURL = f.workerURL+"&target_session_attrs=read-write", f.hostURL+"&target_session_attrs=read-write"
	f.pool.Close()
	f.pool, err = pgxpool.New(ctx, f.url)
	return err
}

// synchronise has commits wait for the standby.
func (s *succession) synchronise(ctx context.Context, f *field) error {
	if err := f.exec(ctx, fmt.Sprintf(`ALTER SYSTEM SET synchronous_standby_names = '"%s"'`, s.standby.Name())); err != nil {
		return err
	}
	if err := f.exec(ctx, "SELECT pg_reload_conf()"); err != nil {
		return err
	}
	return eventually(ctx, 20*time.Second, "the standby is synchronous", func() (bool, error) {
		n, err := f.count(ctx, "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'")
		return n == 1, err
	})
}

// succeed loses the primary, and promotes the standby.
func (s *succession) succeed(ctx context.Context, f *field) error {
	// WAL of commits that wait for no disk is on its way for three times wal_writer_delay, and then to the standby.
	x := fault{outage: true, forgets: time.Now().Add(-time.Second)}
	if !s.synchronous {
		s.stream.Blackhole()
		pause(ctx, behind)
	}
	x.from = time.Now()
	if err := s.primary.StopImmediate(); err != nil {
		return err
	}
	s.front.Refuse()
	s.front.Cut()
	s.stream.Close()
	pause(ctx, time.Second) // until somebody decides
	began := time.Now()
	err := s.standby.Promote(ctx)
	x.to = time.Now()
	f.note("promoted within %v", x.to.Sub(began).Round(time.Millisecond))
	f.server = s.standby
	f.faulty(x)
	return err
}

// reconcile asks both servers for the host's transactions, the old one where nobody else can reach it, and notes those in
// the ledger that went with it.
func (s *succession) reconcile(ctx context.Context, f *field) error {
	if err := s.primary.Restart(ctx); err != nil {
		return err
	}
	before, err := transactionsOf(ctx, s.primary)
	if err != nil {
		return err
	}
	after, err := transactionsOf(ctx, s.standby)
	if err != nil {
		return err
	}
	intents, acknowledged := map[int64]transaction{}, map[int64]bool{}
	err = readLedger(f.host.ledger, func(t transaction) {
		if t.State == intended {
			intents[t.Number] = t
		}
		acknowledged[t.Number] = t.State == committed
	})
	for number, t := range intents {
		switch {
		case after[number]:
		case before[number]:
			if acknowledged[number] {
				s.promised += int(t.Events)
			}
			err = errors.Join(err, f.host.ledger.append(transaction{At: f.at(time.Now()), Number: number, State: gone}))
		case acknowledged[number]:
			f.problem("transaction %d was acknowledged and is on neither server", number)
		}
	}
	return err
}

// transactionsOf are the numbers of the host's transactions that a server has.
func transactionsOf(ctx context.Context, server *localpg.Server) (map[int64]bool, error) {
	conn, err := pgx.Connect(ctx, server.URL("postgres"))
	if err != nil {
		return nil, err
	}
	defer conn.Close(ctx) //nolint:errcheck // it only reads
	rows, err := conn.Query(ctx, "SELECT number FROM host.transactions")
	if err != nil {
		return nil, err
	}
	all := map[int64]bool{}
	var number int64
	_, err = pgx.ForEachRow(rows, []any{&number}, func() error {
		all[number] = true
		return nil
	})
	return all, err
}
