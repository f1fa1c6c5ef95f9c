// Package sql holds the migrations, embedded so that the binary carries its own schema.
// The queries beside them are the input of sqlc; their Go code is package db.
package sql

import "embed"

// Migrations are goose migrations, in the folder "migrations".
//
//go:embed migrations/*.sql
var Migrations embed.FS
