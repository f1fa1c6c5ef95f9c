package format

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestDocs: docs/receivers.md has a row for each type that another platform has a word for, and its samples are in golden
// files.
func TestDocs(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/receivers.md")
	if err != nil {
		t.Fatal(err)
	}
	text := string(page)
	for _, e := range samples(t) {
		row, words := "| `"+e.Type+"` |", 0
		for _, word := range []func(string) string{mumaraWord, mumaraOneWord, mumaraClassicWord, mailjetWord, sendGridWord} {
			event, isWord := spelling(word, e.Type)
			if !isWord {
				row += " – |"
				continue
			}
			words++
			row += " `" + event + "` |"
		}
		if words > 0 && !strings.Contains(text, "\n"+row+"\n") {
			t.Errorf("docs/receivers.md lacks the row\n%s", row)
		}
	}
	var golden strings.Builder
	files, _ := filepath.Glob("testdata/*.golden")
	for _, path := range files {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		golden.Write(content)
	}
	_, formats, ok := strings.Cut(text, "\n## Formats of other platforms\n")
	formats, _, _ = strings.Cut(formats, "\n## ")
	shown := 0
	for line := range strings.SplitSeq(formats, "\n") {
		if line != "" && strings.Contains("{[<", line[:1]) && line[0] != '|' {
			shown++
			if !strings.Contains(golden.String(), "\n"+line+"\n") {
				t.Errorf("this sample is in no golden file:\n%s", line)
			}
		}
	}
	if !ok || shown < 7 {
		t.Errorf("%d samples in the section of formats", shown)
	}
	for _, name := range Names("web") {
		if !strings.Contains(text, "\n### `"+name+"`\n") && name != "standard" {
			t.Errorf("docs/receivers.md has no section %s", name)
		}
	}
}
