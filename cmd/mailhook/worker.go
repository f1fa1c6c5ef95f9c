package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"

	"mailhook/httpapi"
	"mailhook/worker"
)

func workerCommand() *cli.Command {
	return &cli.Command{
		Name:  "worker",
		Usage: "dispatch and deliver; run as many as you like, on as many machines",
		Flags: append(workerFlags(databasesFlag()), listenFlag("", "address for healthz, readyz and metrics; none without it")),
		Action: func(c *cli.Context) error {
			urls, err := databaseURLs(c)
			if err != nil {
				return err
			}
			cfg, err := workerConfig(c, urls[0])
			if err != nil {
				return err
			}
			registry := newRegistry()
			cfg.Registry = registry
			all, err := newWorkers(c.Context, cfg, urls)
			if err != nil {
				return err
			}
			// A request takes its connection's buffers, some stacks, and its answer up to three times.
			request := int64(64<<10 + 3*cfg.ExcerptBytes)
			spendMemory(int64(len(all)) * (2*cfg.MaxBodyBytes + int64(cfg.MaxInFlight)*request))
			return runWorkers(c, cfg.Log, all, httpapi.SecurityHeaders(workerHandler(all, registry)))
		},
	}
}

// runWorkers runs the workers, and serves a handler beside them if there is an address to listen on: opened first, so
// that a taken port is said before any work begins.
func runWorkers(c *cli.Context, log *slog.Logger, all workers, handler http.Handler) error {
	group, ctx := errgroup.WithContext(c.Context)
	if address := c.String("listen"); address != "" {
		listener, err := listen(ctx, address, "listen")
		if err != nil {
			all.close()
			return err
		}
		group.Go(func() error { return serveHTTP(ctx, log, listener, handler) })
	}
	for _, w := range all {
		group.Go(func() error { return w.run(ctx) })
	}
	return group.Wait()
}

// spendMemory lets the heap grow to four times what lives in it before the garbage collector runs again: what lives is
// bounded, and collecting at twice its size took a sixth of the CPU time of a delivery. It runs more often as the
// memory comes near what the flags allow, and 64 MiB. GOGC and GOMEMLIMIT win.
func spendMemory(allowed int64) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(300)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(allowed + 64<<20)
	}
}

func listenFlag(value, usage string) cli.Flag {
	return &cli.StringFlag{Name: "listen", EnvVars: []string{"MAILHOOK_LISTEN"}, Value: value, Usage: usage}
}

func workerFlags(database cli.Flag) []cli.Flag {
	d := worker.DefaultConfig()
	return slices.Concat([]cli.Flag{
		database,
		&cli.IntFlag{Name: "max-in-flight", EnvVars: []string{"MAILHOOK_MAX_IN_FLIGHT"}, Value: d.MaxInFlight, Usage: "requests under way, for each database; about as many more wait to be recorded"},
		&cli.Int64Flag{Name: "max-body-bytes", EnvVars: []string{"MAILHOOK_MAX_BODY_BYTES"}, Value: d.MaxBodyBytes, Usage: "bytes of event data held in memory, for each database"},
		&cli.IntFlag{Name: "batch-rows", EnvVars: []string{"MAILHOOK_BATCH_ROWS"}, Value: d.BatchRows, Usage: "events dispatched in one statement, at most"},
		&cli.IntFlag{Name: "connections", EnvVars: []string{"MAILHOOK_CONNECTIONS"}, Value: d.Connections, Usage: "connections to each database that work; one more listens"},
		durationFlag("poll-interval", "MAILHOOK_POLL_INTERVAL", d.PollInterval, "the longest a sleeping worker relies on notifications"),
		durationFlag("claim-interval", "MAILHOOK_CLAIM_INTERVAL", d.ClaimInterval, "how often due retries are looked for"),
		durationFlag("grace", "MAILHOOK_GRACE", d.Grace, "how long a stopping worker lets requests finish"),
		&cli.IntFlag{Name: "excerpt-bytes", EnvVars: []string{"MAILHOOK_EXCERPT_BYTES"}, Value: d.ExcerptBytes, Usage: "bytes of a receiver's answer that are kept"},
		durationFlag("retain-events", "MAILHOOK_RETAIN_EVENTS", d.Retention.Events, "how long dispatched events are kept"),
		durationFlag("retain-attempts", "MAILHOOK_RETAIN_ATTEMPTS", d.Retention.Attempts, "how long attempts are kept"),
		durationFlag("retain-dead-letters", "MAILHOOK_RETAIN_DEAD_LETTERS", d.Retention.DeadLetters, "how long exhausted deliveries can be replayed"),
		durationFlag("retain-quarantine", "MAILHOOK_RETAIN_QUARANTINE", d.Retention.Quarantine, "how long quarantined events are kept"),
		durationFlag("retain-audit", "MAILHOOK_RETAIN_AUDIT", d.Retention.AuditLog, "how long the audit log is kept"),
		durationFlag("retain-held", "MAILHOOK_RETAIN_HELD", d.Retention.Held, "how long deliveries are held before they become dead letters"),
		&cli.IntFlag{Name: "max-held", EnvVars: []string{"MAILHOOK_MAX_HELD"}, Value: d.Retention.MaxHeld, Usage: "deliveries held for one subscription; beyond it the oldest become dead letters"},
		sourceAddressFlag(),
	}, keyringFlags(), logFlags(), egressFlags())
}

func logFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "log-format", EnvVars: []string{"MAILHOOK_LOG_FORMAT"}, Value: "text", Usage: "text or json"},
		&cli.StringFlag{Name: "log-level", EnvVars: []string{"MAILHOOK_LOG_LEVEL"}, Value: "info", Usage: "debug, info, warn or error"},
	}
}

func workerConfig(c *cli.Context, databaseURL string) (worker.Config, error) {
	cfg := worker.DefaultConfig()
	cfg.DatabaseURL = databaseURL
	var err error
	if cfg.Keyring, err = keyring(c); err != nil {
		return cfg, err
	}
	if cfg.Policy, err = egressPolicy(c); err != nil {
		return cfg, err
	}
	if cfg.Log, err = logger(c); err != nil {
		return cfg, err
	}
	cfg.Version = version()
	cfg.MaxInFlight, cfg.MaxBodyBytes, cfg.BatchRows = c.Int("max-in-flight"), c.Int64("max-body-bytes"), c.Int("batch-rows")
	cfg.Connections, cfg.ExcerptBytes = c.Int("connections"), c.Int("excerpt-bytes")
	cfg.PollInterval, cfg.ClaimInterval, cfg.Grace = givenDuration(c, "poll-interval"), givenDuration(c, "claim-interval"), givenDuration(c, "grace")
	cfg.Retention = worker.Retention{
		Events: givenDuration(c, "retain-events"), Attempts: givenDuration(c, "retain-attempts"), DeadLetters: givenDuration(c, "retain-dead-letters"),
		Quarantine: givenDuration(c, "retain-quarantine"), AuditLog: givenDuration(c, "retain-audit"), Held: givenDuration(c, "retain-held"), MaxHeld: c.Int("max-held"),
	}
	if err := cfg.Validate(); err != nil {
		return cfg, usageError{err}
	}
	return cfg, nil
}

func logger(c *cli.Context) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.String("log-level"))); err != nil {
		return nil, usagef("--log-level %q is none of debug, info, warn, error", c.String("log-level"))
	}
	return newLogger(c.App.ErrWriter, c.String("log-format"), level)
}

func newLogger(out io.Writer, format string, level slog.Level) (*slog.Logger, error) {
	options := &slog.HandlerOptions{Level: level}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(out, options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(out, options)), nil
	}
	return nil, usagef("--log-format %q is neither text nor json", format)
}

func newRegistry() *prometheus.Registry {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return registry
}

// workerHandler answers for the workers' health: healthz that their loops come round, readyz that they make progress.
func workerHandler(all workers, registry *prometheus.Registry) http.Handler {
	mux := http.NewServeMux()
	for path, ask := range map[string]func() error{"/healthz": all.healthy, "/readyz": all.ready} {
		mux.HandleFunc("GET "+path, func(out http.ResponseWriter, _ *http.Request) {
			if err := ask(); err != nil {
				http.Error(out, err.Error(), http.StatusServiceUnavailable)
				return
			}
			fmt.Fprintln(out, "ok")
		})
	}
	mux.Handle("GET /metrics", metricsHandler(registry))
	return mux
}

// metricsHandler leaves out what a database that does not answer would say, and tells the rest: the other databases'
// metrics, and the count of failed calls.
func metricsHandler(registry *prometheus.Registry) http.Handler {
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError})
}

// serveHTTP serves until ctx ends, then lets requests finish.
func serveHTTP(ctx context.Context, log *slog.Logger, listener net.Listener, handler http.Handler) error {
	// A test send waits for up to 65 s before it answers.
	server := &http.Server{
		Handler: handler, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 30 * time.Second, WriteTimeout: 2 * time.Minute,
		IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 32 << 10,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	log.Info("listening", "address", listener.Addr().String())
	stopped := make(chan error, 1)
	go func() {
		<-ctx.Done()
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		stopped <- server.Shutdown(grace)
	}()
	if err := server.Serve(listener); err != http.ErrServerClosed {
		return fmt.Errorf("serve: %w", err)
	}
	return <-stopped
}
