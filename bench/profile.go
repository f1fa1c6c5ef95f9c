package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/pprof"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"mailhook/db"
	"mailhook/worker"
)

// runProfiled is a mailhook worker whose CPU profile goes to $PROFILE/worker-….pprof.
func runProfiled(ctx context.Context, args []string) error {
	c := worker.DefaultConfig()
	c.DatabaseURL, c.Registry = args[len(args)-1], prometheus.NewRegistry()
	c.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	c.AllowInsecureHTTP, c.AllowCIDR = true, []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	var err error
	if c.Keyring, err = db.NewKeyring(os.Getenv("MAILHOOK_SECRET_KEY")); err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(os.Getenv("PROFILE"), fmt.Sprintf("worker-%d.pprof", os.Getpid()))) //nolint:gosec // where its user wants it
	if err != nil {
		return err
	}
	w, err := worker.New(ctx, c)
	if err != nil {
		return err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return err
	}
	err = w.Run(ctx)
	pprof.StopCPUProfile()
	return errors.Join(err, f.Close())
}

// statements prints what took the time in PostgreSQL since the last call.
func (c *cluster) statements(ctx context.Context) error {
	if os.Getenv("PROFILE") == "" {
		return nil
	}
	if _, err := c.pool.Exec(ctx, "CREATE EXTENSION IF NOT EXISTS pg_stat_statements"); err != nil {
		return err
	}
	rows, err := c.pool.Query(ctx, `SELECT total_exec_time, calls, rows, wal_bytes::bigint, query FROM pg_stat_statements ORDER BY total_exec_time DESC LIMIT 12`)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var ms float64
		var calls, n, wal int64
		var query string
		if err := rows.Scan(&ms, &calls, &n, &wal, &query); err != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, "%10.0f ms %8d calls %9d rows %12d wal  %s\n", ms, calls, n, wal, strings.Join(strings.Fields(query[:min(80, len(query))]), " "))
	}
	_, err = c.pool.Exec(ctx, "SELECT pg_stat_statements_reset()")
	return errors.Join(err, rows.Err())
}
