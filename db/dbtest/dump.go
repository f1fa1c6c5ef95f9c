package dbtest

import (
	"errors"
	"io/fs"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"mailhook/db/localpg"
)

// Dump is all that the database holds, as text, with bytes as they are where they are letters: every row of every table,
// the samples that ANALYZE keeps, and what pg_dump writes, where this machine has it beside its server.
func (d *DB) Dump(t testing.TB) string {
	t.Helper()
	var text strings.Builder
	tables := d.column(t, "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' AND relnamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)")
	for _, table := range append(tables, "pg_stats") {
		text.WriteString(strings.Join(d.column(t, "SELECT x::text FROM "+table+" AS x"), "\n"))
	}
	bin, err := localpg.FindBinaries()
	if err != nil {
		return text.String() // the server is another machine's
	}
	cmd := osexec.CommandContext(t.Context(), filepath.Join(bin, "pg_dump"), d.URL) //nolint:gosec // the binary beside the test server's
	cmd.Env = append(os.Environ(), "PGOPTIONS=-c bytea_output=escape")
	dump, err := cmd.Output()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("pg_dump: %v", err)
	}
	text.Write(dump)
	return text.String()
}

// column is the text of a statement's one column.
func (d *DB) column(t testing.TB, sql string) []string {
	t.Helper()
	tx, err := d.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context()) //nolint:errcheck // it has only read
	if _, err := tx.Exec(t.Context(), "SET LOCAL bytea_output = 'escape'"); err != nil {
		t.Fatal(err)
	}
	rows, _ := tx.Query(t.Context(), sql)
	values, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return values
}
