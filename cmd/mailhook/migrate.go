package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"mailhook/db"
)

func migrateCommand() *cli.Command {
	return &cli.Command{
		Name:  "migrate",
		Usage: "install mailhook into the host's database, upgrade it, or take it out",
		Subcommands: []*cli.Command{
			{
				Name: "up", Usage: "bring the schema mailhook to this binary's version; safe to run from several machines at once",
				Flags: []cli.Flag{databaseFlag(), jsonFlag()},
				Action: func(c *cli.Context) error {
					return migrate(c, func(url string) ([]db.MigrationStep, error) { return db.MigrateUp(c.Context, url) })
				},
			},
			{
				Name: "down", Usage: "go back to a version; 0 takes mailhook out, with all events and history",
				Flags: []cli.Flag{
					databaseFlag(), jsonFlag(),
					&cli.Int64Flag{Name: "to", EnvVars: []string{"MAILHOOK_MIGRATE_TO"}, Usage: "the version to go back to; it must be given"},
					&cli.BoolFlag{Name: "yes", EnvVars: []string{"MAILHOOK_MIGRATE_YES"}, Usage: "do it; without it, only say what would be gone"},
				},
				Action: func(c *cli.Context) error {
					if !c.IsSet("to") {
						return usagef("say how far down: --to VERSION; --to 0 takes mailhook out, with all events and history")
					}
					return migrate(c, func(url string) ([]db.MigrationStep, error) { return migrateDown(c, url) })
				},
			},
			{
				Name: "status", Usage: "list the migrations and which are applied",
				Flags: []cli.Flag{databaseFlag(), jsonFlag()},
				Action: func(c *cli.Context) error {
					return migrate(c, func(url string) ([]db.MigrationStep, error) { return db.MigrationStatus(c.Context, url) })
				},
			},
		},
	}
}

// migrateDown refuses without --yes, and says what would be gone, unless that is nothing.
func migrateDown(c *cli.Context, url string) ([]db.MigrationStep, error) {
	to := c.Int64("to")
	if c.Bool("yes") {
		return db.MigrateDown(c.Context, url, to)
	}
	gone, err := db.MigrationsAbove(c.Context, url, to)
	if err != nil || len(gone.Steps) == 0 {
		return nil, err
	}
	if to == 0 {
		return nil, usagef("--to 0 takes mailhook out of %s: %d subscriptions with their secrets, %d events and %d deliveries that wait, and all history would be gone; --yes does it",
			gone.Database, gone.Subscriptions, gone.Undispatched, gone.Deliveries)
	}
	var names []string
	for _, s := range gone.Steps {
		names = append(names, s.Name)
	}
	return nil, usagef("--to %d takes back %s in %s, and what they made would be gone, with its rows; --yes does it", to, strings.Join(names, ", "), gone.Database)
}

func migrate(c *cli.Context, f func(url string) ([]db.MigrationStep, error)) error {
	url, err := databaseURL(c)
	if err != nil {
		return err
	}
	steps, err := f(url)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return json.NewEncoder(c.App.Writer).Encode(append([]db.MigrationStep{}, steps...))
	}
	if len(steps) == 0 {
		_, err := fmt.Fprintln(c.App.Writer, "nothing to do")
		return err
	}
	w := tabwriter.NewWriter(c.App.Writer, 0, 0, 2, ' ', 0)
	for _, s := range steps {
		state := "not applied"
		if s.Applied {
			state = "applied"
		}
		fmt.Fprintf(w, "%d\t%s\t%s\n", s.Version, s.Name, state)
	}
	return w.Flush()
}
