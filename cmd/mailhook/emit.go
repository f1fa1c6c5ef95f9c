package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/urfave/cli/v2"

	"mailhook/db"
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
			role := commandRole()
			role.Produces = true
			pool, err := commandPool(c, role)
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
			if hint := unregistered(c.Context, db.New(pool), eventType); hint != "" {
				fmt.Fprintln(c.App.ErrWriter, hint)
			}
			_, err = fmt.Fprintln(c.App.Writer, id)
			return err
		},
	}
}

// unregistered is what to say about an event type that nobody has registered, which may be one that nobody subscribes to; ""
// for others, and for a role that may not read the types.
func unregistered(ctx context.Context, q *db.Queries, eventType string) string {
	types, err := q.ListEventTypes(ctx, db.ListEventTypesParams{MaxRows: 1000})
	if err != nil || eventType == "" {
		return ""
	}
	// A letter in three may be wrong.
	const most = 3
	nearest := []string{}
	least := len(eventType)/3 + 1
	for _, t := range types {
		switch n := distance(t.Name, eventType); {
		case n == 0:
			return ""
		case n < least:
			nearest, least = []string{t.Name}, n
		case n == least && len(nearest) > 0 && len(nearest) < most:
			nearest = append(nearest, t.Name)
		}
	}
	if len(nearest) == 0 {
		return fmt.Sprintf("no event type %s is registered; it is sent all the same, to whoever subscribes to it, to a type above it, or to *", eventType)
	}
	return fmt.Sprintf("no event type %s is registered, but %s is; it is sent all the same, to whoever subscribes to it, to a type above it, or to *", eventType, strings.Join(nearest, ", "))
}

// distance is how many letters are to be put in, taken out or changed to make b of a (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		before := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := before
			if a[i] != b[j] {
				cost = 1 + min(before, row[j], row[j+1])
			}
			before, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}
