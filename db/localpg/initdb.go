package localpg

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// initDir makes dir a data directory unless it is one already.
func (s *Server) initDir(ctx context.Context) error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	if err := s.account.mayEnter(filepath.Dir(s.dir)); err != nil {
		return err
	}
	_, err := os.Stat(filepath.Join(s.dir, "PG_VERSION"))
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := s.account.own(s.dir); err != nil {
		return err
	}
	return s.fill(ctx)
}

func (s *Server) initdb(ctx context.Context) error {
	cmd := s.account.command(ctx, s.dir, filepath.Join(s.bin, "initdb"),
		"--pgdata="+s.dir, "--username=postgres", "--auth=trust",
		"--encoding=UTF8", "--locale=C",
		"--no-sync", // a crash of the machine while initialising costs nothing
	)
	out, err := runLocked(cmd)
	if err != nil {
		return fmt.Errorf("initdb: %w:\n%s", err, strings.TrimSpace(string(out)))
	}
	return nil
}
