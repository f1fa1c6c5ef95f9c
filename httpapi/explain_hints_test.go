package httpapi

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// foundIn is each first group of a pattern in a file; none fails the test.
func foundIn(t *testing.T, path, pattern string) (found []string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, match := range regexp.MustCompile(pattern).FindAllStringSubmatch(string(text), -1) {
		found = append(found, match[1])
	}
	if len(found) == 0 {
		t.Fatalf("%s has no %s", path, pattern)
	}
	return found
}

// Every outcome that a worker records has words, and every failure a hint.
func TestEveryOutcomeHasWords(t *testing.T) {
	t.Parallel()
	outcomes := foundIn(t, "../worker/outcome.go", `(?m)^\toutcome\w+ += "(\w+)"`)
	if len(outcomes) < 19 {
		t.Errorf("these are not all outcomes: %s", outcomes)
	}
	for _, outcome := range outcomes {
		for _, channel := range []string{"web", "pushover", "slack", "teams"} {
			if wordsOf(outcome) == outcome || (hintFor(outcome, channel) == "") != (outcome == "ok") {
				t.Errorf("no words for %s on %s", outcome, channel)
			}
			if channel != "web" && strings.Contains(hintFor(outcome, channel), "signature") {
				t.Errorf("%s gets no signature: %s", channel, hintFor(outcome, channel))
			}
		}
	}
}

// Every reason that the tables list for the end of a delivery has words.
func TestEveryEndHasWords(t *testing.T) {
	t.Parallel()
	const tables = "../sql/migrations/00007_create_deliveries.sql"
	listed := append(foundIn(t, tables, `attempts\.ended_reason IS 'Why, where the outcome does not say it: (.*)\.'`), foundIn(t, tables, `dead_letters\.reason IS '(.*)\.'`)...)
	seen := map[string]bool{}
	for _, list := range listed {
		list = regexp.MustCompile(` \([^)]*\)`).ReplaceAllString(list, "")
		for reason := range strings.SplitSeq(strings.ReplaceAll(list, " or ", ", "), ", ") {
			seen[reason] = true
			if words := reasonOf(&reason); words == "as "+reason {
				t.Errorf("no words for %s", reason)
			}
		}
	}
	if len(seen) != 8 || !seen["schedule_ended"] || !seen["permanent"] || !seen["unrecordable"] {
		t.Errorf("these are not the reasons: %v", seen)
	}
}
