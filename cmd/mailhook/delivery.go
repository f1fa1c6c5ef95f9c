package main

import (
	"context"
	"fmt"

	"github.com/urfave/cli/v2"

	"mailhook/db"
)

func deliveryCommand() *cli.Command {
	action := func(enabled bool, word, says string) cli.ActionFunc {
		return func(c *cli.Context) error {
			err := inCommandTx(c, func(ctx context.Context, q *db.Queries) error {
				before, err := q.SetDelivery(ctx, enabled)
				if err != nil {
					return fmt.Errorf("switch delivery: %w", err)
				}
				return q.Audit(ctx, db.Change{
					Action: "delivery." + word, Before: map[string]bool{"delivery_enabled": before}, After: map[string]bool{"delivery_enabled": enabled},
				})
			})
			if err != nil {
				return err
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
				Action: action(false, "off", "delivery is off: events wait in the outbox"),
			},
			{
				Name: "on", Usage: "send again, what has waited first", Flags: []cli.Flag{databaseFlag()},
				Action: action(true, "on", "delivery is on"),
			},
		},
	}
}
