package sql_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"mailhook/db/dbtest"
)

var update = flag.Bool("update", false, "write docs/events.md")

const (
	eventsPage   = "../docs/events.md"
	fromCatalog  = "<!-- From here on written by go test ./sql -run TestEventsPage -update -->\n"
	noSuchMarker = "docs/events.md has lost the line after which it is generated"
)

// docs/events.md says what the catalogue says.
func TestEventsPage(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile(eventsPage)
	if err != nil {
		t.Fatal(err)
	}
	head, _, ok := strings.Cut(string(page), fromCatalog)
	if !ok {
		t.Fatal(noSuchMarker)
	}
	want := head + fromCatalog + catalogue(t, dbtest.New(t))
	if *update {
		if err := os.WriteFile(eventsPage, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if string(page) != want {
		t.Error("docs/events.md is not what the catalogue says: run go test ./sql -run TestEventsPage -update")
	}
}

// catalogue is the generated part of the page.
func catalogue(t *testing.T, d *dbtest.DB) string {
	t.Helper()
	rows, _ := d.Pool.Query(t.Context(), `
		SELECT t.name, t.description, t.fields, t.sample::text,
			coalesce((SELECT string_agg(a.word || CASE WHEN a.format <> '' THEN ' (format ' || a.format || ')' ELSE '' END, ' · ' ORDER BY a.format, lower(a.word) COLLATE "C", a.word COLLATE "C")
				FROM mailhook.event_type_aliases AS a WHERE a.event_type = t.name), '') AS words
		FROM mailhook.event_types AS t ORDER BY t.name COLLATE "C"`)
	types, err := pgx.CollectRows(rows, pgx.RowToStructByPos[struct {
		Name, Description string
		Fields            []field
		Sample, Words     string
	}])
	if err != nil {
		t.Fatal(err)
	}
	var page strings.Builder
	page.WriteString("\n## Types\n\n| type | what happened | words for it |\n|---|---|---|\n")
	for _, e := range types {
		fmt.Fprintf(&page, "| [`%s`](#%s) | %s | %s |\n", e.Name, strings.ReplaceAll(e.Name, ".", ""), e.Description, e.Words)
	}
	page.WriteString("\n## Fields\n\n| field | type | what it is |\n|---|---|---|\n")
	var seen []string
	for _, e := range types {
		for _, f := range e.Fields {
			if !slices.Contains(seen, f.Name) {
				seen = append(seen, f.Name)
				fmt.Fprintf(&page, "| `%s` | %s | %s |\n", f.Name, f.Type, f.Description)
			}
		}
	}
	page.WriteString("\n## Samples\n")
	for _, e := range types {
		fmt.Fprintf(&page, "\n### %s\n\n%s", e.Name, e.Description)
		var absent []string
		for _, f := range e.Fields {
			if !strings.Contains(e.Sample, `"`+f.Name+`"`) {
				absent = append(absent, "`"+f.Name+"`")
			}
		}
		if len(absent) > 0 {
			fmt.Fprintf(&page, " It may also have %s.", strings.Join(absent, ", "))
		}
		var sample bytes.Buffer
		if err := json.Compact(&sample, []byte(e.Sample)); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&page, "\n\n```json\n%s\n```\n", &sample)
	}
	return page.String()
}
