package main

import (
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"sync"

	"github.com/urfave/cli/v2"

	"mailhook/cmd/receiver"
)

func listenCommand() *cli.Command {
	return &cli.Command{
		Name:  "listen",
		Usage: "receive webhooks here, verify both signatures, and print them",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "secret", EnvVars: []string{"MAILHOOK_LISTEN_SECRET"}, Usage: "the subscription's signing secret: whsec_…"},
			&cli.IntFlag{Name: "port", EnvVars: []string{"MAILHOOK_LISTEN_PORT"}, Value: 8000, Usage: "port on 127.0.0.1"},
			&cli.Float64Flag{Name: "fail-rate", EnvVars: []string{"MAILHOOK_LISTEN_FAIL_RATE"}, Usage: "share of requests to answer with 500, from 0 to 1"},
		},
		Action: func(c *cli.Context) error {
			if c.String("secret") == "" {
				return usagef("give the subscription's signing secret: --secret whsec_…")
			}
			rate, port := c.Float64("fail-rate"), c.Int("port")
			if rate < 0 || rate > 1 {
				return usagef("--fail-rate %v is not between 0 and 1", rate)
			}
			if port < 0 || port > 65535 {
				return usagef("--port %d is not a port", port)
			}
			listener, err := listen(c.Context, fmt.Sprintf("127.0.0.1:%d", port), "port")
			if err != nil {
				return err
			}
			log := slog.New(slog.NewTextHandler(c.App.ErrWriter, nil))
			return serveHTTP(c.Context, log, listener, printer(c.App.Writer, c.String("secret"), rate))
		},
	}
}

// printer answers 204 to what verifies, 400 to what does not, and 500 to a share of all.
func printer(out io.Writer, secret string, failRate float64) http.Handler {
	var mu sync.Mutex
	return &receiver.Receiver{
		Secret: func(string) string { return secret },
		Answer: func(w http.ResponseWriter, r receiver.Receipt) {
			status, verdict := http.StatusNoContent, "verified"
			switch {
			case r.Problem != nil:
				status, verdict = http.StatusBadRequest, r.Problem.Error()
			case rand.Float64() < failRate: //nolint:gosec // not a secret
				status = http.StatusInternalServerError
			}
			mu.Lock()
			fmt.Fprintf(out, "%s  answered %d, %s\n%s\n", r.At.Format("15:04:05.000"), status, inert(verdict), inert(string(r.Body)))
			mu.Unlock()
			w.WriteHeader(status)
		},
	}
}
