package localpg

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFindBinaries(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	bin := func(parts ...string) string {
		dir := filepath.Join(append([]string{root}, parts...)...)
		for _, name := range []string{"initdb", "postgres"} {
			writeExecutable(t, filepath.Join(dir, name))
		}
		return dir
	}
	set, inPath := bin("set"), bin("path")
	old, newer := bin("pgsql-9.6", "bin"), bin("postgresql", "15", "bin")
	newest := bin("postgresql@18", "bin")
	half := filepath.Join(root, "postgresql", "19", "bin")
	writeExecutable(t, filepath.Join(half, "initdb"))
	all := []string{root + "/pgsql-*/bin", root + "/postgresql*/bin", root + "/postgresql/*/bin"}

	for _, c := range []struct {
		name  string
		env   map[string]string
		globs []string
		want  string
	}{
		{"MAILHOOK_PG_BIN first", map[string]string{"MAILHOOK_PG_BIN": set, "PATH": inPath}, all, set},
		{"then PATH", map[string]string{"PATH": half + string(filepath.ListSeparator) + inPath}, all, inPath},
		{"then the newest", map[string]string{"PATH": half}, all, newest},
		{"15 above 9.6", nil, []string{all[0], all[2]}, newer},
		{"the only one", nil, all[:1], old},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			got, err := findBinaries(func(name string) string { return c.env[name] }, c.globs)
			if got != c.want || err != nil {
				t.Errorf("findBinaries = %q, %v, want %q", got, err, c.want)
			}
		})
	}
}

func TestMissingBinariesAreOneLine(t *testing.T) {
	t.Parallel()
	empty := t.TempDir()
	for _, c := range []struct {
		name string
		env  map[string]string
		want []string
	}{
		{"nothing installed", map[string]string{"PATH": empty}, []string{"apt-get install", "brew install", "MAILHOOK_PG_BIN"}},
		{"wrong directory", map[string]string{"MAILHOOK_PG_BIN": empty}, []string{"MAILHOOK_PG_BIN=" + empty, "initdb and postgres"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			_, err := findBinaries(func(name string) string { return c.env[name] }, []string{empty + "/*/bin"})
			if err == nil {
				t.Fatal("found something")
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("more than one line: %v", err)
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q lacks %q", err, want)
				}
			}
		})
	}
}

func writeExecutable(t *testing.T, path string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o755); err != nil {
		t.Fatal(err)
	}
}
