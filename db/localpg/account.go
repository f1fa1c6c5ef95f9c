package localpg

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"time"
)

// account is the user that PostgreSQL runs as when we are root; nil means
// ourselves. All its methods accept nil.
type account struct {
	name     string
	uid, gid uint32
}

// serverAccount returns nil for an ordinary user, else the user to become.
func serverAccount() (*account, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, uidErr := parseID(u.Uid)
		gid, gidErr := parseID(u.Gid)
		return &account{name, uid, gid}, errors.Join(uidErr, gidErr)
	}
	return nil, errors.New("PostgreSQL refuses to run as root and there is no user postgres or nobody: run as an ordinary user")
}

// parseID reads a user or group id, which macOS may show as -2.
func parseID(id string) (uint32, error) {
	n, err := strconv.ParseInt(id, 10, 64)
	return uint32(n), err //nolint:gosec // ids are 32 bits wide
}

// command prepares a program run as the account, in a session of its own (so
// that Ctrl-C in a terminal reaches us only, and we end it in order) and with
// an environment that neither changes PostgreSQL's defaults nor hands it secrets.
func (a *account) command(ctx context.Context, dir, path string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, path, args...) //nolint:gosec // paths we found, arguments we wrote
	cmd.Dir = dir
	cmd.Env = []string{"LC_ALL=C", "TZ=UTC", "PATH=" + os.Getenv("PATH")}
	for _, name := range []string{"LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"} {
		if value, ok := os.LookupEnv(name); ok {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
	}
	cmd.SysProcAttr = processAttr(a)
	cmd.WaitDelay = 5 * time.Second // children that outlive it hold its output open
	return cmd
}

// tempDir creates a temporary directory where the account can reach it, in
// $MAILHOOK_PG_TMP if it is set: root's TMPDIR may be private.
func (a *account) tempDir() (string, error) {
	base := os.TempDir()
	for _, dir := range []string{os.Getenv("MAILHOOK_PG_TMP"), base, "/tmp", "/var/tmp"} {
		if dir != "" && a.mayEnter(dir) == nil {
			base = dir
			break
		}
	}
	return os.MkdirTemp(base, "mailhook-pg-")
}

// own gives an empty directory to the account. A directory with something in it
// stays as it is; initdb refuses it.
func (a *account) own(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) > 0 {
		return err
	}
	return a.take(dir)
}

// take gives a file or directory to the account.
func (a *account) take(path string) error {
	if a == nil {
		return nil
	}
	return os.Chown(path, int(a.uid), int(a.gid))
}

func (a *account) mayRun(path string) error {
	if a.can("-x", path) {
		return nil
	}
	return fmt.Errorf("user %s may not run %s: make its directories readable to others", a.name, path)
}

func (a *account) mayEnter(dir string) error {
	if a.can("-x", dir) {
		return nil
	}
	return fmt.Errorf("user %s cannot reach %s, and PostgreSQL does not run as root: choose a directory that others may enter", a.name, dir)
}

// can asks the system itself, which knows of every parent directory and ACL.
func (a *account) can(flag, path string) bool {
	if a == nil {
		return true
	}
	cmd := a.command(context.Background(), string(filepath.Separator), "/bin/sh", "-c", `test "$0" "$1"`, flag, path)
	_, err := runLocked(cmd)
	return err == nil
}
