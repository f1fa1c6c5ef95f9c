package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"mailhook/db"
)

// masterKeyIDs is what keys ids answers.
type masterKeyIDs struct {
	// KeyID is the key that the installation seals with; empty: none yet.
	KeyID string        `json:"key_id"`
	Keys  []masterKeyID `json:"keys"`
}

type masterKeyID struct {
	ID string `json:"id"`
	// Position is its place in MAILHOOK_SECRET_KEY, from 1; null: it is not there, and what it has sealed does not open.
	Position *int  `json:"position"`
	IsInUse  bool  `json:"is_in_use"`
	Sealed   int64 `json:"sealed"`
}

func masterKeyIDsCommand() *cli.Command {
	return &cli.Command{
		Name:        "ids",
		Usage:       "the id of each master key in MAILHOOK_SECRET_KEY, which one seals, and how many values each has sealed",
		Description: `Also the ids of keys that are not there and have sealed something, or seal. The key itself is not told.`,
		Flags:       append([]cli.Flag{databaseFlag(), jsonFlag()}, keyringFlags()...),
		Action: func(c *cli.Context) error {
			ring, err := keyring(c)
			if err != nil {
				return err
			}
			pool, err := commandPool(c, commandRole())
			if err != nil {
				return err
			}
			defer pool.Close()
			q := db.New(pool)
			current, err := q.GetMasterKeyID(c.Context)
			if err != nil {
				return fmt.Errorf("read the master key's id: %w", err)
			}
			sealed, err := q.CountSealed(c.Context)
			if err != nil {
				return fmt.Errorf("count what is sealed: %w", err)
			}
			keys := listMasterKeys(ring.IDs(), current, sealed)
			if c.Bool("json") {
				return json.NewEncoder(c.App.Writer).Encode(keys)
			}
			return keys.print(c.App.Writer)
		},
	}
}

func listMasterKeys(ring []string, current string, sealed []db.CountSealedRow) *masterKeyIDs {
	all := &masterKeyIDs{KeyID: current, Keys: []masterKeyID{}}
	add := func(id string) *masterKeyID {
		i := slices.IndexFunc(all.Keys, func(k masterKeyID) bool { return k.ID == id })
		if i < 0 {
			i = len(all.Keys)
			all.Keys = append(all.Keys, masterKeyID{ID: id, IsInUse: id == current})
		}
		return &all.Keys[i]
	}
	for i, id := range ring {
		position := i + 1
		add(id).Position = &position
	}
	if current != "" {
		add(current)
	}
	for _, row := range sealed {
		add(row.KeyID).Sealed = row.N
	}
	return all
}

func (all *masterKeyIDs) print(out io.Writer) error {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "ID\tPLACE\tSEALED\tIN USE")
	for _, k := range all.Keys {
		place, use := "missing", ""
		if k.Position != nil {
			place = fmt.Sprint(*k.Position)
		}
		if k.IsInUse {
			use = "seals"
		}
		fmt.Fprintf(table, "%s\t%s\t%d\t%s\n", cell(k.ID), place, k.Sealed, use)
	}
	return table.Flush()
}
