package main

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/urfave/cli/v2"

	"mailhook/db"
)

// commandRole is for commands that ask the database a few things and end.
func commandRole() db.Role {
	return db.Role{Name: "mailhook", StatementTimeout: time.Minute, MaxConns: 2}
}

// commandPool opens the one database that a command works on.
func commandPool(c *cli.Context, role db.Role) (*db.Pool, error) {
	url, err := databaseURL(c)
	if err != nil {
		return nil, err
	}
	return db.Open(c.Context, url, role)
}

// inCommandTx runs f in one transaction on the database of a command.
func inCommandTx(c *cli.Context, f func(context.Context, *db.Queries) error) error {
	pool, err := commandPool(c, commandRole())
	if err != nil {
		return err
	}
	defer pool.Close()
	return pgx.BeginFunc(c.Context, pool, func(tx pgx.Tx) error { return f(c.Context, db.New(tx)) })
}
