// Package db is how mailhook talks to PostgreSQL: the queries (sqlc's output from sql/queries), the pool
// and its session settings, migrations, and the few things that both the worker and the API need to read
// rows: event ids, sealed secrets.
package db
