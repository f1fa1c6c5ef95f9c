package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"mailhook/sql"
)

func adapterCommand() *cli.Command {
	return &cli.Command{
		Name:      "adapter",
		Usage:     "print the triggers that make a host's own tables emit events, to review and run with psql",
		ArgsUsage: "HOST",
		Description: `   mailhook adapter listmonk | psql -v ON_ERROR_STOP=1 "$MAILHOOK_DATABASE_URL"

Hosts: ` + strings.Join(sql.Adapters(), ", "),
		Flags: []cli.Flag{&cli.BoolFlag{
			Name: "uninstall", EnvVars: []string{"MAILHOOK_ADAPTER_UNINSTALL"}, Usage: "print the SQL that removes the triggers",
		}},
		Action: func(c *cli.Context) error {
			if c.NArg() != 1 {
				return usagef("name one host of %s: mailhook adapter HOST [--uninstall]", strings.Join(sql.Adapters(), ", "))
			}
			text, err := sql.Adapter(c.Args().First(), c.Bool("uninstall"))
			if err != nil {
				return usageError{err}
			}
			_, err = fmt.Fprint(c.App.Writer, text)
			return err
		},
	}
}
