package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"mailhook/sql"
)

// adapterCommand has a subcommand for each host, for flags are only read before the first argument.
func adapterCommand() *cli.Command {
	uninstall := func() []cli.Flag {
		return []cli.Flag{&cli.BoolFlag{
			Name: "uninstall", EnvVars: []string{"MAILHOOK_ADAPTER_UNINSTALL"}, Usage: "print the SQL that removes the triggers",
		}}
	}
	command := &cli.Command{
		Name:      "adapter",
		Usage:     "print the triggers that make a host's own tables emit events, to review and run with psql",
		ArgsUsage: "HOST",
		UsageText: `mailhook adapter HOST [--uninstall]

   mailhook adapter listmonk | psql -v ON_ERROR_STOP=1 "$MAILHOOK_DATABASE_URL"`,
		Flags: uninstall(),
		Action: func(c *cli.Context) error {
			if !c.Args().Present() {
				return cli.ShowSubcommandHelp(c)
			}
			_, err := sql.Adapter(c.Args().First(), false)
			return usageError{err}
		},
	}
	for _, host := range sql.Adapters() {
		command.Subcommands = append(command.Subcommands, &cli.Command{
			Name:   host,
			Usage:  "print the triggers for " + host,
			Flags:  uninstall(),
			Action: func(c *cli.Context) error { return printAdapter(c, host) },
		})
	}
	return command
}

// printAdapter takes --uninstall before the host's name as well as after it.
func printAdapter(c *cli.Context, host string) error {
	if c.Args().Present() {
		return usagef("adapter %s takes no argument, but got %q", host, c.Args().First())
	}
	remove := false
	for _, level := range c.Lineage() {
		remove = remove || level.Bool("uninstall")
	}
	text, err := sql.Adapter(host, remove)
	if err != nil {
		return err
	}
	_, err = fmt.Fprint(c.App.Writer, text)
	return err
}
