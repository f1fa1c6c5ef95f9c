// Package demo is mailhook demo: a small mail platform that writes records and events in one transaction and rolls
// some back, a worker, a receiver that verifies, one that often fails, and a ledger of what became of every event.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"mailhook/cmd/receiver"
	"mailhook/db"
	"mailhook/db/localpg"
	"mailhook/worker"
)

// A Config says how the demo runs.
type Config struct {
	// DatabaseURL is a database to use; "" starts a private PostgreSQL.
	DatabaseURL string
	Duration    time.Duration
	Out         io.Writer
	Log         *slog.Logger
	Version     string
}

// settleTime is how long deliveries may take to arrive after the platform has stopped.
const settleTime = 60 * time.Second

// Run runs the demo until its duration or ctx ends, and prints the ledger. The error says what the ledger found wrong.
func Run(ctx context.Context, cfg Config) error {
	url := cfg.DatabaseURL
	if url == "" {
		fmt.Fprintln(cfg.Out, "starting a private PostgreSQL …")
		server, err := localpg.Start(ctx, localpg.Options{})
		if err != nil {
			return err
		}
		defer server.Stop() //nolint:errcheck // it was ours alone
		url = server.URL("postgres")
	}
	if err := install(ctx, url); err != nil {
		return err
	}
	// What the ledger needs, and the tidying up, must still be done after Ctrl-C.
	lasting := context.WithoutCancel(ctx)
	defer db.MigrateDown(lasting, url, 0) //nolint:errcheck // the demo is over
	pool, err := pgxpool.New(ctx, url)
	if err != nil {
		return fmt.Errorf("connect to PostgreSQL: %w", err)
	}
	defer pool.Close()
	p := &platform{pool: pool, ledger: newLedger()}
	if err := p.install(ctx); err != nil {
		return err
	}
	defer p.remove(lasting) //nolint:errcheck // the demo is over
	return p.demonstrate(ctx, lasting, cfg, url)
}

// install refuses a database that mailhook is installed in: the demo's worker would send for its subscriptions, with
// another master key, and its events would go to the demo.
func install(ctx context.Context, url string) error {
	steps, err := db.MigrationStatus(ctx, url)
	if err != nil {
		return err
	}
	for _, s := range steps {
		if s.Applied {
			return errors.New("mailhook is installed in this database already, and the demo takes it out at its end: give the demo another database, or unset MAILHOOK_DATABASE_URL and it starts its own")
		}
	}
	_, err = db.MigrateUp(ctx, url)
	return err
}

func (p *platform) demonstrate(ctx, lasting context.Context, cfg Config, url string) error {
	keyring, err := db.NewKeyring(db.NewMasterKey())
	if err != nil {
		return err
	}
	receivers, address, err := receive(lasting, p.ledger, cfg.Out)
	if err != nil {
		return err
	}
	defer receivers.Close() //nolint:errcheck // nothing to do about it
	for _, path := range []string{steadyPath, flakyPath} {
		if err := p.subscribe(ctx, keyring, "http://"+address+path); err != nil {
			return err
		}
	}
	working, stop := context.WithCancel(lasting)
	defer stop()
	var group errgroup.Group
	defer group.Wait() //nolint:errcheck // its error is asked for below
	w, err := newWorker(lasting, cfg, url, keyring)
	if err != nil {
		return err
	}
	group.Go(func() error { return w.Run(working) })
	fmt.Fprintf(cfg.Out, "a mail platform writes events for %v; two receivers listen on %s; one answers 500 to every fifth request\n\n", cfg.Duration, address)

	producing, cancel := context.WithTimeout(ctx, cfg.Duration)
	defer cancel()
	progress, halt := context.WithCancel(lasting)
	defer halt()
	group.Go(func() error { p.ledger.progress(progress, cfg.Out); return nil })
	if err := p.produce(producing); err != nil {
		return err
	}
	p.ledger.settle(settleTime)
	halt()
	stop()
	if err := group.Wait(); err != nil {
		return err
	}
	return p.ledger.close(cfg.Out)
}

func newWorker(ctx context.Context, cfg Config, url string, keyring *db.Keyring) (*worker.Worker, error) {
	c := worker.DefaultConfig()
	c.DatabaseURL, c.Keyring, c.Log, c.Version, c.Registry = url, keyring, cfg.Log, cfg.Version, nil
	c.AllowInsecureHTTP, c.AllowCIDR = true, []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	return worker.New(ctx, c)
}

// receive starts the two receivers on one port.
func receive(ctx context.Context, l *ledger, out io.Writer) (*http.Server, string, error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, "", fmt.Errorf("open a port for the receivers: %w", err)
	}
	server := &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: &receiver.Receiver{
		Secret: func(string) string { return secret },
		Answer: func(w http.ResponseWriter, r receiver.Receipt) { l.receive(w, r, out) },
	}}
	go server.Serve(listener) //nolint:errcheck // it ends by Close
	return server, listener.Addr().String(), nil
}

// errLedger is the error of a demo whose ledger does not add up.
var errLedger = errors.New("the ledger does not add up")
