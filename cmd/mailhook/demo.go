package main

import (
	"log/slog"
	"time"

	"github.com/urfave/cli/v2"

	"mailhook/cmd/demo"
)

func demoCommand() *cli.Command {
	return &cli.Command{
		Name:  "demo",
		Usage: "see it work: a small mail platform, a worker, two receivers, and a ledger at the end",
		Description: `It starts a PostgreSQL of its own from local binaries. With MAILHOOK_DATABASE_URL it uses that database, where mailhook must
not be installed yet, and takes out at the end all that it made.
Exit code 1 if an event was lost, sent after a rollback, or wrongly signed.`,
		Flags: []cli.Flag{
			urlFlag("a database to use; without it a private PostgreSQL is started", "MAILHOOK_DATABASE_URL"),
			durationFlag("duration", "MAILHOOK_DEMO_DURATION", 15*time.Second, "how long the mail platform works; Ctrl-C ends it sooner"),
		},
		Action: func(c *cli.Context) error {
			url, err := givenURL(c)
			if err != nil {
				return err
			}
			return demo.Run(c.Context, demo.Config{
				DatabaseURL: url, Duration: givenDuration(c, "duration"), Out: c.App.Writer, Version: version(),
				Log: slog.New(slog.NewTextHandler(c.App.ErrWriter, &slog.HandlerOptions{Level: slog.LevelWarn})),
			})
		},
	}
}
