package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"
)

// A result is what one scenario has shown.
type result struct {
	Scenario   string   `json:"scenario"`
	What       string   `json:"what"`
	Seed       uint64   `json:"seed"`
	Events     int      `json:"events"`
	Receipts   int      `json:"receipts"`
	Lost       int      `json:"lost"`
	Duplicates int      `json:"duplicates"`
	Allowed    int      `json:"allowed_duplicates"` // in flight when something crashed
	Recovery   float64  `json:"recovery_seconds"`
	PeakRSS    int64    `json:"peak_rss_bytes"`
	Seconds    float64  `json:"seconds"`
	Notes      []string `json:"notes,omitempty"`
	Problems   []string `json:"problems,omitempty"` // none: green, if it has run
	NotRun     string   `json:"not_run,omitempty"`  // why
	Directory  string   `json:"directory,omitempty"`
	Again      string   `json:"again"` // the command that repeats it
	Of         string   `json:"of"`    // what it was made of: date, commit, machine
}

func (r result) verdict() string {
	switch {
	case r.NotRun != "":
		return "not run"
	case len(r.Problems) > 0:
		return "RED"
	}
	return "green"
}

// line is a scenario for people.
func (r result) line() string {
	if r.NotRun != "" {
		return fmt.Sprintf("%-18s %s: %s", r.Scenario, r.verdict(), r.NotRun)
	}
	text := fmt.Sprintf("%-18s %-5s %7d events %8d receipts %3d lost %4d duplicates (≤ %d) recovery %.1f s peak %d MiB, took %.0f s",
		r.Scenario, r.verdict(), r.Events, r.Receipts, r.Lost, r.Duplicates, r.Allowed, r.Recovery, r.PeakRSS>>20, r.Seconds)
	if len(r.Notes) > 0 {
		text += "; " + strings.Join(r.Notes, "; ")
	}
	for _, p := range r.Problems {
		text += "\n    " + p
	}
	if r.Directory != "" {
		text += "\n    ledgers and logs: " + r.Directory
	}
	return text
}

// markdown is docs/reliability.md.
func markdown(results []result) []byte {
	var out bytes.Buffer
	fmt.Fprint(&out, `# Measured by `+"`make faults`"+`

Each scenario has a PostgreSQL of its own with fsync on and stock durability, workers that are the real binary, a host whose
ledger is on disk before each COMMIT, and receivers whose ledger is written before each answer. After the fault all is drained,
and the ledgers are joined with the database (`+"`faults/checker.go`"+`, which has the invariants).

- lost: pairs of a committed event and a subscription that matches it which reached no end.
- lost, where a standby was promoted: asked of the new primary; what the old one had acknowledged and taken along stands below
  the table.
- not run: the machine lacks something, which is named below the table.
- duplicates: receipts after an acknowledged 2xx of the same pair; in brackets how many were in flight at the crashes, which
  is the most there may be.
- recovery: from the end of a fault to the end of the last delivery that it had held up, healthy endpoints only; after a SIGKILL
  or SIGSTOP from there to the recorded end of what the worker had leased.
- hostile: the endpoints write from a process of their own, which gets a tenth of a share of a busy processor: in the world they have
  machines of their own. Their deliveries are tried twice, as by default within two minutes.

`)
	row := func(cells ...string) { fmt.Fprintf(&out, "| %s |\n", strings.Join(cells, " | ")) }
	row("scenario", "what", "events", "receipts", "lost", "duplicates", "recovery", "peak memory of a worker", "", "again")
	row("---", "---", "---:", "---:", "---:", "---:", "---:", "---:", "---", "---")
	for _, r := range results {
		row(r.Scenario, r.What, fmt.Sprint(r.Events), fmt.Sprint(r.Receipts), fmt.Sprint(r.Lost), fmt.Sprintf("%d (≤ %d)", r.Duplicates, r.Allowed),
			fmt.Sprintf("%.1f s", r.Recovery), fmt.Sprintf("%d MiB", r.PeakRSS>>20), r.verdict(), "`"+r.Again+"`")
	}
	fmt.Fprint(&out, "\n## Beside the table\n\n")
	of := map[string][]string{}
	for _, r := range results {
		if r.NotRun != "" {
			fmt.Fprintf(&out, "- %s: not run: %s\n", r.Scenario, r.NotRun)
		}
		for _, text := range append(append([]string(nil), r.Notes...), r.Problems...) {
			fmt.Fprintf(&out, "- %s: %s\n", r.Scenario, text)
		}
		of[r.Of] = append(of[r.Of], r.Scenario)
	}
	fmt.Fprint(&out, "\n## Measured when, and on what\n\n")
	for _, text := range slices.Sorted(maps.Keys(of)) {
		fmt.Fprintf(&out, "- %s %s\n", text, strings.Join(of[text], ", "))
	}
	return out.Bytes()
}

// writeReport leaves docs/reliability.md, and reliability.json beside it. Scenarios that did not run this time keep
// their rows.
func writeReport(path string, results []result) error {
	rows := map[string]result{}
	store := strings.TrimSuffix(path, ".md") + ".json"
	if old, err := os.ReadFile(store); err == nil { //nolint:gosec // a path of ours
		var kept []result
		if err := json.Unmarshal(old, &kept); err != nil {
			return fmt.Errorf("%s: %w", store, err)
		}
		for _, r := range kept {
			rows[r.Scenario] = r
		}
	}
	for _, r := range results {
		r.Directory = ""
		rows[r.Scenario] = r
	}
	var ordered []result
	for _, s := range scenarios() {
		if r, ok := rows[s.name]; ok {
			ordered = append(ordered, r)
		}
	}
	text, err := json.MarshalIndent(ordered, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(store, append(text, '\n'), 0o644); err != nil { //nolint:gosec // published
		return err
	}
	return os.WriteFile(path, markdown(ordered), 0o644) //nolint:gosec // published
}

func printJSON(results []result) error {
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetIndent("", "  ")
	return encoder.Encode(results)
}

// progress says on stderr what is going on.
func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, time.Now().Format("15:04:05 ")+format+"\n", args...)
}
