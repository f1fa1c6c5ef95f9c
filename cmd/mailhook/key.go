package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"mailhook/db"
)

func keyCommand() *cli.Command {
	return &cli.Command{
		Name:    "key",
		Aliases: []string{"keys"},
		Usage:   "make keys for the JSON API; rotate the master key",
		Subcommands: []*cli.Command{rotateCommand(), {
			Name: "create", Usage: "make a key and print it, once: it is not kept in clear anywhere",
			Flags: []cli.Flag{
				databaseFlag(),
				&cli.StringFlag{Name: "account", EnvVars: []string{"MAILHOOK_ACCOUNT"}, Usage: "the one account that the key may act for; without it the key is an admin's"},
			},
			Action: func(c *cli.Context) error {
				if c.IsSet("account") && c.String("account") == "" {
					return usagef("--account is empty: name an account, or leave it out for an admin key")
				}
				url, err := databaseURL(c)
				if err != nil {
					return err
				}
				pool, err := db.Open(c.Context, url, commandRole())
				if err != nil {
					return err
				}
				defer pool.Close()
				key, hash := db.NewAPIKey()
				params := db.InsertAPIKeyParams{KeyHash: hash}
				kind := "admin key"
				if account := c.String("account"); account != "" {
					params.AccountID, kind = &account, "key for account "+account
				}
				if err := db.New(pool).InsertAPIKey(c.Context, params); err != nil {
					return fmt.Errorf("store the key: %w", err)
				}
				_, err = fmt.Fprintf(c.App.Writer, "%s, shown only now: %s\n", kind, key)
				return err
			},
		}},
	}
}
