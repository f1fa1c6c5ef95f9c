package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
)

// A figure is one line of the table.
type figure struct {
	Row    string    `json:"row"`
	What   string    `json:"what"`
	Values []float64 `json:"values"` // one for each round
	Unit   string    `json:"unit"`
	Bar    string    `json:"bar,omitempty"`
	Met    *bool     `json:"met,omitempty"` // by the median
}

// A report collects the figures of a run.
type report struct {
	about   about
	figures []figure
}

func (r *report) add(row, what, unit string, values ...float64) {
	r.put(figure{Row: row, What: what, Unit: unit, Values: values})
}

// atLeast adds a ratio that has a bar, which its median is held against.
func (r *report) atLeast(bar float64, row, what string, values ...float64) {
	met := median(values) >= bar
	r.put(figure{row, what, values, "×", "≥ " + number(bar), &met})
}

// atMost is atLeast for what is better the less it is.
func (r *report) atMost(bar float64, row, what, unit string, values ...float64) {
	met := median(values) <= bar
	r.put(figure{row, what, values, unit, "≤ " + number(bar), &met})
}

func (r *report) put(f figure) {
	r.figures = append(r.figures, f)
	progress("  %s", strings.Join(strings.Fields(strings.Join(f.cells(), " ")), " "))
}

// cells are row, what, median, spread, unit, bar and whether it is met.
func (f figure) cells() []string {
	met := ""
	if f.Met != nil {
		met = map[bool]string{true: "met", false: "MISSED"}[*f.Met]
	}
	spread := ""
	if len(f.Values) > 1 {
		spread = number(slices.Min(f.Values)) + " – " + number(slices.Max(f.Values))
	}
	return []string{f.Row, f.What, number(median(f.Values)), spread, f.Unit, f.Bar, met}
}

func (r *report) print(w io.Writer) {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, strings.Join(headings(), "\t"))
	for _, f := range r.figures {
		fmt.Fprintln(table, strings.Join(f.cells(), "\t"))
	}
	table.Flush() //nolint:errcheck // for people
}

func headings() []string {
	return []string{"row", "what", "median", "min – max", "unit", "bar", ""}
}

// write leaves results.md and results.json in dir.
func (r *report) write(dir string) error {
	raw, err := json.MarshalIndent(struct {
		About   about    `json:"about"`
		Figures []figure `json:"figures"`
	}{r.about, r.figures}, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "results.json"), append(raw, '\n'), 0o644); err != nil { //nolint:gosec // published
		return err
	}
	return os.WriteFile(filepath.Join(dir, "results.md"), r.markdown(), 0o644) //nolint:gosec // published
}

func (r *report) markdown() []byte {
	var out bytes.Buffer
	fmt.Fprintf(&out, "# Measured by `make bench`\n\n")
	r.about.markdown(&out)
	line := func(cells []string) { fmt.Fprintf(&out, "| %s |\n", strings.Join(cells, " | ")) }
	fmt.Fprintln(&out)
	line(headings())
	line([]string{"---", "---", "---:", "---", "---", "---", "---"})
	for _, f := range r.figures {
		line(f.cells())
	}
	return out.Bytes()
}

// median is of the rounds; of an even number the lower.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[(len(sorted)-1)/2]
}

// ratios divides round by round.
func ratios(of, to []float64) []float64 {
	var r []float64
	for i := range min(len(of), len(to)) {
		r = append(r, of[i]/to[i])
	}
	return r
}

// number writes three digits that count, and all of those before the point.
func number(v float64) string {
	switch {
	case v >= 1000:
		text := fmt.Sprintf("%.0f", v)
		for i := len(text) - 3; i > 0; i -= 3 {
			text = text[:i] + "," + text[i:]
		}
		return text
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	case v >= 1:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.3f", v)
}
