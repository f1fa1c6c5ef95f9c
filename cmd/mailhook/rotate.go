package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"

	"mailhook/db"
)

func rotateCommand() *cli.Command {
	return &cli.Command{
		Name:  "rotate",
		Usage: "seal everything with the first master key of several, while workers and API go on",
		Description: `1. Put a new key before the one in use, NEW,OLD, at every worker and API process, and restart them one by one.
2. Run this with the same keys. Whatever ends it, run it again.
3. When it names OLD as not needed any more, take it away everywhere, and restart again.
Exit code 1 if a value could not be opened: it is left as it is, and its subscription is named; and if the first key is the one
in use already while a new one stands behind it (mailhook keys ids tells which is which).`,
		Flags: append([]cli.Flag{databaseFlag(), jsonFlag()}, keyringFlags()...),
		Action: func(c *cli.Context) error {
			ring, err := keyring(c)
			if err != nil {
				return err
			}
			role := commandRole()
			role.Name = "mailhook rotate"
			pool, err := commandPool(c, role)
			if err != nil {
				return err
			}
			defer pool.Close()
			done, err := db.Rotate(c.Context, pool, ring, func(resealed int64) { fmt.Fprintf(c.App.ErrWriter, "%d sealed anew\n", resealed) })
			if err != nil {
				return err
			}
			return tellRotation(c.App.Writer, done, c.Bool("json"))
		},
	}
}

func tellRotation(out io.Writer, done *db.Rotation, asJSON bool) error {
	var err error
	if asJSON {
		err = json.NewEncoder(out).Encode(done)
	} else {
		err = printRotation(out, done)
	}
	if err == nil && done.Misplaced() {
		err = fmt.Errorf("the first key of MAILHOOK_SECRET_KEY is the one in use already, %s: to rotate to %s, put it first", done.KeyID, strings.Join(done.UnusedKeyIDs, " or "))
	}
	if err == nil && len(done.Unopened) > 0 {
		err = fmt.Errorf("%d sealed values could not be opened and are left as they are: their subscriptions send nothing until their secrets or headers are set anew", len(done.Unopened))
	}
	return err
}

func printRotation(out io.Writer, done *db.Rotation) error {
	var text strings.Builder
	switch {
	case done.PreviousKeyID != done.KeyID:
		fmt.Fprintf(&text, "the master key is %s now, %s before; %d values sealed anew\n", done.KeyID, done.PreviousKeyID, done.Resealed)
	case done.Resealed > 0:
		fmt.Fprintf(&text, "the master key was %s already; %d values sealed anew\n", done.KeyID, done.Resealed)
	case done.IsFirst:
		fmt.Fprintf(&text, "the master key is %s now, the first of this installation\n", done.KeyID)
	case !done.Misplaced(): // it is an error otherwise
		fmt.Fprintf(&text, "the master key was %s already: nothing to do; to rotate, put a new key first\n", done.KeyID)
	}
	for _, value := range done.Unopened {
		fmt.Fprintf(&text, "not opened: %s of %s, master key %s: %s\n", value.Kind, value.SubscriptionID, value.KeyID, value.Reason)
	}
	if len(done.RemovableKeyIDs) > 0 {
		fmt.Fprintf(&text, "not needed any more, to be taken out of MAILHOOK_SECRET_KEY: %s\n", strings.Join(done.RemovableKeyIDs, ", "))
	}
	if len(done.UnusedKeyIDs) > 0 && !done.Misplaced() {
		fmt.Fprintf(&text, "has sealed nothing yet: %s\n", strings.Join(done.UnusedKeyIDs, ", "))
	}
	_, err := io.WriteString(out, text.String())
	return err
}
