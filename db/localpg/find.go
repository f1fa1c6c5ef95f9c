package localpg

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
)

// FindBinaries returns the directory that holds this machine's initdb and
// postgres: MAILHOOK_PG_BIN if it is set, else the first such directory in
// PATH, else the newest version in the usual places of Debian, Homebrew and
// Red Hat. The error is one line that says what to install. `.ci/postgres`
// searches the same places.
func FindBinaries() (dir string, err error) {
	return findBinaries(os.Getenv, []string{
		"/usr/lib/postgresql/*/bin",
		"/opt/homebrew/opt/postgresql*/bin",
		"/usr/local/opt/postgresql*/bin",
		"/usr/pgsql-*/bin",
	})
}

func findBinaries(getenv func(string) string, globs []string) (string, error) {
	if dir := getenv("MAILHOOK_PG_BIN"); dir != "" {
		if !holdsBinaries(dir) {
			return "", fmt.Errorf("MAILHOOK_PG_BIN=%s does not hold initdb and postgres: name PostgreSQL's bin directory, or unset it", dir)
		}
		return dir, nil
	}
	for _, dir := range filepath.SplitList(getenv("PATH")) {
		if holdsBinaries(dir) {
			return dir, nil
		}
	}
	if dir := newest(globs); dir != "" {
		return dir, nil
	}
	return "", errors.New("PostgreSQL is not installed: run `apt-get install postgresql` (Debian, Ubuntu) or `brew install postgresql@17` (macOS), or set MAILHOOK_PG_BIN to the directory that holds initdb and postgres")
}

// newest returns the directory with the highest version in its path, or "".
func newest(globs []string) string {
	var found []string
	for _, glob := range globs {
		dirs, _ := filepath.Glob(glob) // fails for a malformed pattern only
		found = append(found, dirs...)
	}
	found = slices.DeleteFunc(found, func(dir string) bool { return !holdsBinaries(dir) })
	if len(found) == 0 {
		return ""
	}
	return slices.MaxFunc(found, func(a, b string) int { return cmp.Compare(pathVersion(a), pathVersion(b)) })
}

// pathVersion reads the version from a path such as …/postgresql/15/bin,
// …/postgresql@17/bin or …/pgsql-9.6/bin; 0 when there is none.
func pathVersion(dir string) float64 {
	m := regexp.MustCompile(`(\d+(?:\.\d+)?)/bin$`).FindStringSubmatch(filepath.ToSlash(dir))
	if m == nil {
		return 0
	}
	v, _ := strconv.ParseFloat(m[1], 64) // the pattern admits numbers only
	return v
}

func holdsBinaries(dir string) bool {
	return dir != "" && executable(filepath.Join(dir, "initdb")) && executable(filepath.Join(dir, "postgres"))
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0
}
