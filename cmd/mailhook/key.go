package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/urfave/cli/v2"

	"mailhook/db"
)

func keyCommand() *cli.Command {
	return &cli.Command{
		Name:    "key",
		Aliases: []string{"keys"},
		Usage:   "make, list and revoke keys for the JSON API; rotate the master key, and tell its id",
		Subcommands: []*cli.Command{
			rotateCommand(), masterKeyIDsCommand(),
			{
				Name: "create", Usage: "make a key and print it, once: it is not kept in clear anywhere",
				Flags: []cli.Flag{
					databaseFlag(),
					accountFlag("the one account that the key may act for; without it the key is an admin's"),
					&cli.StringFlag{Name: "scope", EnvVars: []string{"MAILHOOK_KEY_SCOPE"}, Value: "write", Usage: "read: GET only; write: everything"},
					&cli.StringFlag{Name: "expires", EnvVars: []string{"MAILHOOK_KEY_EXPIRES"}, Usage: "how long the key is good for: 90d, 12h; without it, until it is revoked"},
					&cli.StringFlag{Name: "name", EnvVars: []string{"MAILHOOK_KEY_NAME"}, Usage: "for people: who has it, and what for"},
				},
				Action: createKey,
			},
			{
				Name: "list", Usage: "list keys, newest first, those that have ended too",
				Flags: []cli.Flag{databaseFlag(), accountFlag("only the keys of this account"), jsonFlag()}, Action: listKeys,
			},
			{
				Name: "revoke", Usage: "end a key, from the next request on", ArgsUsage: "KEY_ID", Flags: []cli.Flag{databaseFlag()}, Action: revokeKey,
			},
		},
	}
}

func accountFlag(usage string) cli.Flag {
	return &cli.StringFlag{Name: "account", EnvVars: []string{"MAILHOOK_ACCOUNT"}, Usage: usage}
}

func createKey(c *cli.Context) error {
	params := db.InsertAPIKeyParams{Scope: c.String("scope"), Name: c.String("name")}
	if c.IsSet("account") && c.String("account") == "" {
		return usagef("--account is empty: name an account, or leave it out for an admin key")
	}
	if params.Scope != "read" && params.Scope != "write" {
		return usagef("--scope %q is neither read nor write", params.Scope)
	}
	if c.IsSet("expires") {
		var err error
		if params.Lifetime, err = parseLifetime(c.String("expires")); err != nil {
			return usagef("--expires %q %w", c.String("expires"), err)
		}
	}
	kind := "admin key"
	if account := c.String("account"); account != "" {
		params.AccountID, kind = &account, "key for account "+account
	}
	if params.Scope == "read" {
		kind = "read-only " + kind
	}
	var key string
	key, params.KeyHash = db.NewAPIKey()
	var public string
	err := inCommandTx(c, func(ctx context.Context, q *db.Queries) error {
		row, err := q.InsertAPIKey(ctx, params)
		if err != nil {
			return fmt.Errorf("store the key: %w", err)
		}
		public = db.FormatID(db.KeyPrefix, row.ID)
		return q.Audit(ctx, db.Change{
			AccountID: params.AccountID, Action: "key.create", ObjectID: public,
			After: map[string]any{"name": params.Name, "scope": params.Scope, "expires_at": row.ExpiresAt},
		})
	})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.App.Writer, "%s %s, shown only now: %s\n", kind, public, key)
	return err
}

// parseLifetime reads how long a key is good for.
func parseLifetime(text string) (time.Duration, error) {
	lifetime, err := db.ParseDuration(text)
	if err != nil || lifetime < time.Minute || lifetime > 36_500*24*time.Hour {
		return 0, errors.New("is no time of 1m to 36500d, such as 90d or 12h")
	}
	return lifetime, nil
}

// A listedKey is a key as key list --json answers it.
type listedKey struct {
	ID         string     `json:"id"`
	Name       string     `json:"name"`
	AccountID  *string    `json:"account_id"`
	Scope      string     `json:"scope"`
	State      string     `json:"state"`
	CreatedAt  time.Time  `json:"created_at"`
	LastUsedAt *time.Time `json:"last_used_at"`
	ExpiresAt  *time.Time `json:"expires_at"`
	RevokedAt  *time.Time `json:"revoked_at"`
}

func listKeys(c *cli.Context) error {
	pool, err := commandPool(c, commandRole())
	if err != nil {
		return err
	}
	defer pool.Close()
	var account *string
	if name := c.String("account"); name != "" {
		account = &name
	}
	rows, err := db.New(pool).ListAPIKeys(c.Context, account)
	if err != nil {
		return fmt.Errorf("list keys: %w", err)
	}
	keys := make([]listedKey, len(rows))
	for i, row := range rows {
		keys[i] = listedKey{
			db.FormatID(db.KeyPrefix, row.ID), row.Name, row.AccountID, row.Scope, row.State,
			row.CreatedAt.UTC(), utc(row.LastUsedAt), utc(row.ExpiresAt), utc(row.RevokedAt),
		}
	}
	if c.Bool("json") {
		encoder := json.NewEncoder(c.App.Writer)
		encoder.SetIndent("", "  ")
		return encoder.Encode(keys)
	}
	return printKeys(c.App.Writer, keys)
}

func utc(at *time.Time) *time.Time {
	if at == nil {
		return nil
	}
	in := at.UTC()
	return &in
}

func printKeys(out io.Writer, keys []listedKey) error {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "ID\tNAME\tACCOUNT\tSCOPE\tCREATED\tLAST USED\tEXPIRES\tSTATE")
	at := func(t *time.Time, otherwise string) string {
		if t == nil {
			return otherwise
		}
		return t.Format("2006-01-02 15:04")
	}
	for _, k := range keys {
		account := "(admin)"
		if k.AccountID != nil {
			account = strconv.Quote(*k.AccountID)
		}
		fmt.Fprintf(table, "%s\t%q\t%s\t%s\t%s\t%s\t%s\t%s\n",
			k.ID, k.Name, account, k.Scope, at(&k.CreatedAt, ""), at(k.LastUsedAt, "never"), at(k.ExpiresAt, "never"), k.State)
	}
	return table.Flush()
}

func revokeKey(c *cli.Context) error {
	if c.Args().Len() != 1 {
		return usagef("name one key: mailhook key revoke KEY_ID (mailhook key list has the ids)")
	}
	public := c.Args().First()
	id, err := db.ParseID(db.KeyPrefix, public)
	if err != nil {
		// Who gives the key itself is not to find it in a log.
		return usagef("KEY_ID is not the id of a key: they begin with %s (mailhook key list has them)", db.KeyPrefix)
	}
	says := "revoked " + public
	err = inCommandTx(c, func(ctx context.Context, q *db.Queries) error {
		found, err := revoke(ctx, q, id)
		if found.WasRevoked {
			says = public + " was revoked before"
		}
		return err
	})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(c.App.Writer, says)
	return err
}

func revoke(ctx context.Context, q *db.Queries, id uuid.UUID) (db.RevokeAPIKeyRow, error) {
	public := db.FormatID(db.KeyPrefix, id)
	found, err := q.RevokeAPIKey(ctx, id)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return found, fmt.Errorf("there is no key %s (mailhook key list has the ids)", public)
	case err != nil:
		return found, fmt.Errorf("revoke the key: %w", err)
	case found.WasRevoked:
		return found, nil
	}
	return found, q.Audit(ctx, db.Change{
		AccountID: found.AccountID, Action: "key.revoke", ObjectID: public, Before: map[string]any{"name": found.Name},
	})
}
