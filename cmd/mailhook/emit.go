package main

import (
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/urfave/cli/v2"
)

func emitCommand() *cli.Command {
	return &cli.Command{
		Name:      "emit",
		Usage:     "write one event into the outbox, as a host would, and print its id",
		ArgsUsage: "[TYPE]",
		Description: `TYPE is email.delivered unless given.

   mailhook emit email.clicked --recipient r@example.com --data '{"link_url": "https://example.com/"}'`,
		Flags: []cli.Flag{
			databaseFlag(),
			&cli.StringFlag{Name: "account", EnvVars: []string{"MAILHOOK_ACCOUNT"}, Usage: "account id; 'default' without it"},
			&cli.StringFlag{Name: "recipient", EnvVars: []string{"MAILHOOK_RECIPIENT"}, Value: "recipient@example.com", Usage: "address"},
			&cli.StringFlag{Name: "message-id", EnvVars: []string{"MAILHOOK_MESSAGE_ID"}, Value: "test", Usage: "the host's message id"},
			&cli.StringFlag{Name: "data", EnvVars: []string{"MAILHOOK_DATA"}, Usage: "a JSON object with all other fields"},
		},
		Action: func(c *cli.Context) error {
			pool, err := commandPool(c, commandRole())
			if err != nil {
				return err
			}
			defer pool.Close()
			if c.NArg() > 1 {
				return usagef("emit takes one type, but got %q as well", c.Args().Get(1))
			}
			eventType := c.Args().First()
			if eventType == "" {
				eventType = "email.delivered"
			}
			var id string
			err = pool.QueryRow(c.Context,
				"SELECT mailhook.emit($1, account_id => $2, recipient => $3, message_id => $4, data => $5::text)",
				eventType, c.String("account"), c.String("recipient"), c.String("message-id"), c.String("data")).Scan(&id)
			var refused *pgconn.PgError
			if errors.As(err, &refused) && refused.Hint != "" {
				return fmt.Errorf("%s (%s): %s", refused.Message, refused.Code, refused.Hint)
			}
			if err != nil {
				return fmt.Errorf("emit: %w", err)
			}
			_, err = fmt.Fprintln(c.App.Writer, id)
			return err
		},
	}
}
