package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReportIsWritten(t *testing.T) {
	r := report{about: about{Date: "2026-11-21", Cores: 2, Settings: map[string]string{"shared_buffers": "1GB"}}}
	r.add("row", "what", "deliveries/s", 12345, 900, 10000)
	r.atLeast(0.9, "row", "ratio", 0.95, 0.5, 0.91)
	r.atMost(3, "row", "p50", "ms", 3.2)
	dir := t.TempDir()
	if err := r.write(dir); err != nil {
		t.Fatal(err)
	}
	markdown, err := os.ReadFile(filepath.Join(dir, "results.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"| row | what | 10,000 | 900 – 12,345 | deliveries/s |  |  |",
		"| row | ratio | 0.910 | 0.500 – 0.950 | × | ≥ 0.900 | met |",
		"| row | p50 | 3.20 |  | ms | ≤ 3.00 | MISSED |",
	} {
		if !strings.Contains(string(markdown), line) {
			t.Errorf("no line %s in\n%s", line, markdown)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "results.json")); err != nil {
		t.Error(err)
	}
}
