package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/urfave/cli/v2"

	"mailhook/db"
	"mailhook/db/egress"
	"mailhook/httpapi"
)

const (
	defaultListen = "127.0.0.1:8080"
	// apiConnections are what the API has to the database at most; its first line in the log says so.
	apiConnections = 10
)

func apiFlags() []cli.Flag {
	return []cli.Flag{
		listenFlag(defaultListen, "address of the API, healthz, readyz and metrics"),
		&cli.IntFlag{
			Name: "subscription-limit", EnvVars: []string{"MAILHOOK_SUBSCRIPTION_LIMIT"}, Value: httpapi.DefaultConfig().DefaultSubscriptionLimit,
			Usage: "subscriptions of an account that has no limit of its own; 0: none",
		},
		&cli.IntFlag{
			Name: "test-sends-per-minute", EnvVars: []string{"MAILHOOK_TEST_SENDS_PER_MINUTE"}, Value: httpapi.DefaultConfig().TestsPerMinute,
			Usage: "test sends that an account may ask for within a minute, of all API processes: so that they are no port scanner",
		},
		&cli.StringSliceFlag{
			Name: "publish-address", EnvVars: []string{"MAILHOOK_PUBLISH_ADDRESS"},
			Usage: "an address or network that requests to receivers come from, which GET /v1/egress tells them: 203.0.113.7; repeatable, or with commas",
		},
		&cli.StringFlag{
			Name: "pushover-url", EnvVars: []string{"MAILHOOK_PUSHOVER_URL"}, Value: httpapi.DefaultConfig().PushoverURL,
			Usage: "where requests of channel pushover go, for a relay of yours; a subscription keeps the one that it was stored with",
		},
		&cli.Float64Flag{
			Name: "api-rate-limit", EnvVars: []string{"MAILHOOK_API_RATE_LIMIT"}, Value: httpapi.DefaultConfig().RateLimit,
			Usage: "requests a second of one API key, and twice as many at once after a pause, in this process; 0 is no limit",
		},
	}
}

func apiCommand() *cli.Command {
	return &cli.Command{
		Name:  "api",
		Usage: "serve the JSON API; it sends nothing itself",
		Flags: slices.Concat([]cli.Flag{databaseFlag()}, keyringFlags(), logFlags(), egressFlags(), apiFlags()),
		Action: func(c *cli.Context) error {
			log, err := logger(c)
			if err != nil {
				return err
			}
			url, err := databaseURL(c)
			if err != nil {
				return err
			}
			handler, closeAPI, err := apiHandler(c, url, log, newRegistry(), nil)
			if err != nil {
				return err
			}
			defer closeAPI() // after the last request
			listener, err := listen(c.Context, c.String("listen"), "listen")
			if err != nil {
				return err
			}
			return serveHTTP(c.Context, log.With("connections", apiConnections), listener, handler)
		},
	}
}

func serveCommand() *cli.Command {
	return &cli.Command{
		Name:  "serve",
		Usage: "worker and API in one process",
		Flags: append(workerFlags(databaseFlag()), apiFlags()...),
		Action: func(c *cli.Context) error {
			url, err := databaseURL(c)
			if err != nil {
				return err
			}
			cfg, err := workerConfig(c, url)
			if err != nil {
				return err
			}
			registry := newRegistry()
			cfg.Registry = registry
			all, err := newWorkers(c.Context, cfg, []string{url})
			if err != nil {
				return err
			}
			handler, closeAPI, err := apiHandler(c, url, cfg.Log, registry, all)
			if err != nil {
				all.close()
				return err
			}
			defer closeAPI()
			return runWorkers(c, cfg.Log.With("connections", apiConnections), all, handler)
		},
	}
}

// apiHandler opens a pool of its own for the API: its commits are on disk when it answers.
func apiHandler(c *cli.Context, url string, log *slog.Logger, registry *prometheus.Registry, all workers) (handler http.Handler, closeAll func(), err error) {
	cfg := httpapi.DefaultConfig()
	if cfg.Keyring, err = keyring(c); err != nil {
		return nil, nil, err
	}
	if cfg.Policy, err = egressPolicy(c); err != nil {
		return nil, nil, err
	}
	if cfg.PublishAddresses, err = parseAll(c, "publish-address", egress.ParseNetwork); err != nil {
		return nil, nil, err
	}
	cfg.PushoverURL = c.String("pushover-url")
	cfg.DefaultSubscriptionLimit, cfg.TestsPerMinute = c.Int("subscription-limit"), c.Int("test-sends-per-minute")
	if cfg.DefaultSubscriptionLimit < 0 {
		return nil, nil, usagef("--subscription-limit must be 0 (no webhooks by default) or more")
	}
	if cfg.TestsPerMinute < 1 || cfg.TestsPerMinute > 10_000 {
		return nil, nil, usagef("--test-sends-per-minute must be 1 to 10000")
	}
	if cfg.RateLimit = c.Float64("api-rate-limit"); !(cfg.RateLimit >= 0 && cfg.RateLimit <= 1e6) {
		return nil, nil, usagef("--api-rate-limit must be 0 to 1000000 requests a second")
	}
	cfg.Version, cfg.Logger = version(), log
	cfg.Metrics, cfg.Healthy, cfg.Ready = metricsHandler(registry), all.healthy, all.ready
	cfg.Pool, err = db.Open(c.Context, url, db.Role{Name: "mailhook api", StatementTimeout: 30 * time.Second, MaxConns: apiConnections})
	if err != nil {
		return nil, nil, err
	}
	api, err := httpapi.New(c.Context, cfg)
	if err != nil {
		cfg.Pool.Close()
		return nil, nil, err
	}
	return api, func() {
		api.Close()
		cfg.Pool.Close()
	}, nil
}

// listen opens an address, and says in one line why it cannot, and by which flag to give another.
func listen(ctx context.Context, address, flag string) (net.Listener, error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	var op *net.OpError
	if errors.As(err, &op) {
		return nil, fmt.Errorf("cannot listen on %s: %w (choose another with --%s)", address, op.Err, flag)
	}
	return listener, err
}
