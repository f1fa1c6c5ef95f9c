// Package docs_test holds the pages to the tests that they name.
package docs_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Every row of docs/parity.md names tests that exist.
func TestParity(t *testing.T) {
	t.Parallel()
	rows := 0
	for line := range strings.Lines(page(t, "parity.md")) {
		if !strings.HasPrefix(line, "| ") || strings.HasPrefix(line, "| there") || strings.HasPrefix(line, "| complaint") {
			continue
		}
		rows++
		cells := strings.Split(strings.ReplaceAll(line, `\|`, "\x00"), "|")
		shown := regexp.MustCompile("`([a-z/]+)` `([^` ]+)`").FindAllStringSubmatch(cells[len(cells)-2], -1)
		if len(shown) == 0 {
			t.Errorf("nothing shows %s", line)
		}
		for _, s := range shown {
			checkPattern(t, s[1], strings.ReplaceAll(s[2], "\x00", "|"))
		}
	}
	if rows < 75 {
		t.Errorf("%d rows", rows)
	}
}

// Every go test command of the pages runs tests that exist.
func TestCommands(t *testing.T) {
	t.Parallel()
	pages, err := filepath.Glob("*.md")
	if err != nil {
		t.Fatal(err)
	}
	commands := 0
	for _, name := range append(pages, "../README.md") {
		for _, m := range regexp.MustCompile(`go test \./([a-z/]+) -run '?([^ '`+"`"+`]+)`).FindAllStringSubmatch(page(t, name), -1) {
			commands++
			checkPattern(t, m[1], strings.ReplaceAll(m[2], `\|`, "|"))
		}
	}
	if commands < 15 {
		t.Errorf("%d commands", commands)
	}
}

// checkPattern wants a test of the package for each alternative of a pattern. PACKAGE and PATTERN stand for any.
func checkPattern(t *testing.T, pkg, pattern string) {
	t.Helper()
	files, err := filepath.Glob("../" + pkg + "/*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w*)`).FindAllSubmatch(text, -1) {
			names = append(names, string(m[1]))
		}
	}
	for alternative := range strings.SplitSeq(pattern, "|") {
		wanted, err := regexp.Compile(strings.SplitN(alternative, "/", 2)[0])
		if err != nil {
			t.Errorf("%s of %s: %v", pattern, pkg, err)
			continue
		}
		found := false
		for _, name := range names {
			found = found || wanted.MatchString(name)
		}
		if !found {
			t.Errorf("%s has no test %s", pkg, alternative)
		}
	}
}

func page(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
