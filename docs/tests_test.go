// Package docs_test holds the pages to the tests that they name.
package docs_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Every row of docs/parity.md names tests that exist.
func TestParity(t *testing.T) {
	t.Parallel()
	rows, names := 0, testNames(t)
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
			for name := range strings.SplitSeq(s[2], "\x00") {
				if !slices.Contains(names(s[1]), name) {
					t.Errorf("%s has no test %s", s[1], name)
				}
			}
		}
	}
	if rows < 79 {
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
	commands, names := 0, testNames(t)
	for _, name := range append(pages, "../README.md") {
		for _, m := range regexp.MustCompile(`go test \./([a-z/]+) -run '?([^ '`+"`"+`]+)`).FindAllStringSubmatch(page(t, name), -1) {
			commands++
			checkPattern(t, names, m[1], strings.ReplaceAll(m[2], `\|`, "|"))
		}
	}
	if commands < 15 {
		t.Errorf("%d commands", commands)
	}
}

// checkPattern wants a test of the package for each alternative of a pattern. PACKAGE and PATTERN stand for any.
func checkPattern(t *testing.T, names func(pkg string) []string, pkg, pattern string) {
	t.Helper()
	for alternative := range strings.SplitSeq(pattern, "|") {
		wanted, err := regexp.Compile(strings.SplitN(alternative, "/", 2)[0])
		if err != nil {
			t.Errorf("%s of %s: %v", pattern, pkg, err)
			continue
		}
		if !slices.ContainsFunc(names(pkg), wanted.MatchString) {
			t.Errorf("%s has no test %s", pkg, alternative)
		}
	}
}

// testNames answers the names of the tests of a package, which it reads once.
func testNames(t *testing.T) func(pkg string) []string {
	t.Helper()
	byPackage := map[string][]string{}
	return func(pkg string) []string {
		if names, ok := byPackage[pkg]; ok {
			return names
		}
		files, err := filepath.Glob("../" + pkg + "/*_test.go")
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			for _, m := range regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w*)`).FindAllStringSubmatch(page(t, file), -1) {
				byPackage[pkg] = append(byPackage[pkg], m[1])
			}
		}
		return byPackage[pkg]
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
