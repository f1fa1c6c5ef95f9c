package main

import (
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"mailhook/db"
)

// commandRole is for commands that ask the database a few things and end.
func commandRole() db.Role {
	return db.Role{Name: "mailhook", StatementTimeout: time.Minute, MaxConns: 2}
}

func deliveryCommand() *cli.Command {
	action := func(enabled bool, says string) cli.ActionFunc {
		return func(c *cli.Context) error {
			url, err := databaseURL(c)
			if err != nil {
				return err
			}
			pool, err := db.Open(c.Context, url, commandRole())
			if err != nil {
				return err
			}
			defer pool.Close()
			if err := db.New(pool).SetDelivery(c.Context, enabled); err != nil {
				return fmt.Errorf("switch delivery: %w", err)
			}
			_, err = fmt.Fprintln(c.App.Writer, says)
			return err
		}
	}
	return &cli.Command{
		Name:  "delivery",
		Usage: "switch sending off or on for the whole installation",
		Subcommands: []*cli.Command{
			{
				Name: "off", Usage: "the host keeps writing, nothing is sent: workers see it within a second", Flags: []cli.Flag{databaseFlag()},
				Action: action(false, "delivery is off: events wait in the outbox"),
			},
			{
				Name: "on", Usage: "send again, what has waited first", Flags: []cli.Flag{databaseFlag()},
				Action: action(true, "delivery is on"),
			},
		},
	}
}
