package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"mailhook/db/localpg"
)

func (h *haunt) statements(t *testing.T) string {
	t.Helper()
	if !h.has(t, "SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'pg_stat_statements')") {
		t.Log("this PostgreSQL has no pg_stat_statements")
		return ""
	}
	var text string
	if err := h.conn.QueryRow(t.Context(), "SELECT string_agg(query, E'\n') FROM pg_stat_statements").Scan(&text); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(text, "INSERT INTO mailhook.subscription_secrets") {
		t.Error("pg_stat_statements has not seen our statements")
	}
	return text
}

func (h *haunt) dump(t *testing.T) string {
	t.Helper()
	bin, err := localpg.FindBinaries()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(bin, "pg_dump")); err != nil {
		t.Log("this PostgreSQL has no pg_dump: the data of the tables must do")
		return h.copies(t)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "pg_dump"), h.server.URL("postgres"))
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatal(err, errs.String())
	}
	return out.String()
}

// copies is the data of a dump: what COPY writes of each table.
func (h *haunt) copies(t *testing.T) string {
	t.Helper()
	rows, _ := h.conn.Query(t.Context(), "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname = 'mailhook'")
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	for _, table := range tables {
		if _, err := h.conn.PgConn().CopyTo(t.Context(), &out, "COPY (SELECT * FROM "+table+") TO STDOUT"); err != nil {
			t.Fatal(table, err)
		}
	}
	return out.String()
}
