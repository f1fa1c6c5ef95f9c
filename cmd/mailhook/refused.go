package main

import (
	"github.com/urfave/cli/v2"

	"mailhook/db"
)

// explained adds to an error of a command what its database role lacks, where PostgreSQL has refused it something.
func explained(c *cli.Context, err error) error {
	if !db.IsRefusal(err) {
		return err
	}
	url, urlErr := databaseURL(c)
	if urlErr != nil {
		return err
	}
	// All other commands are the owner's.
	role := map[string]string{
		"emit": db.ProducerRole, "worker": db.WorkerRole, "api": db.APIRole, "serve": db.WorkerRole + ", " + db.APIRole,
	}[c.Command.Name]
	return db.ExplainRefusal(c.Context, url, err, role)
}
