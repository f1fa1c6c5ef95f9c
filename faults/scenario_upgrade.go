package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// nextMigration is one such as a next version may bring: it adds, takes nothing away, and comes to what hosts write to last.
const nextMigration = `-- +goose Up
ALTER TABLE mailhook.deliveries ADD COLUMN fault_note text, ADD COLUMN fault_count integer NOT NULL DEFAULT 0;
ALTER TABLE mailhook.attempts ADD COLUMN fault_note text;
ALTER TABLE mailhook.subscriptions ADD COLUMN fault_note text NOT NULL DEFAULT '';
CREATE INDEX deliveries_fault_count_idx ON mailhook.deliveries (fault_count) WHERE fault_count > 0;
ALTER TABLE mailhook.outbox ADD COLUMN fault_note text;

-- +goose Down
DROP INDEX mailhook.deliveries_fault_count_idx;
ALTER TABLE mailhook.subscriptions DROP COLUMN fault_note;
ALTER TABLE mailhook.attempts DROP COLUMN fault_note;
ALTER TABLE mailhook.deliveries DROP COLUMN fault_note, DROP COLUMN fault_count;
ALTER TABLE mailhook.outbox DROP COLUMN fault_note;
`

// upgrade brings the schema one migration further under load, as docs/operations.md says: migrate up, then the workers one
// by one, so that those of both versions run side by side.
func upgrade() scenario {
	var next string
	return scenario{
		name: "upgrade", what: "migrate up under load, workers of the next version beside those of this one", ci: true,
		workers: 2, load: usualLoad(), recovery: afterFault,
		market: func(ctx context.Context, f *field) (err error) {
			if next, err = f.buildNext(ctx); err != nil {
				return err
			}
			return sluggish(ctx, f)
		},
		run: func(ctx context.Context, f *field) error {
			if !pause(ctx, f.seconds(5)) {
				return ctx.Err()
			}
			old := f.living()
			if err := f.migrate(ctx, next); err != nil {
				return err
			}
			pause(ctx, f.seconds(5)) // those of before alone on the new schema
			if err := f.startWorkers(ctx, len(old)); err != nil {
				return err
			}
			pause(ctx, f.seconds(8)) // side by side
			for _, p := range old {
				p.signal(syscall.SIGTERM)
				if err := p.awaitEnd(stopTime); err != nil {
					f.problem("%s: %v", p.name, err)
				}
				pause(ctx, f.seconds(3))
			}
			pause(ctx, f.seconds(5))
			return f.checkOldRefused(ctx)
		},
	}
}

// buildNext makes the binary of the next version from a copy of the source and one migration more.
func (f *field) buildNext(ctx context.Context) (string, error) {
	tree := filepath.Join(f.dir, "next")
	for _, part := range []string{"cmd", "db", "httpapi", "sql", "worker"} {
		if err := os.CopyFS(filepath.Join(tree, part), os.DirFS(part)); err != nil {
			return "", fmt.Errorf("copy the source, from its root: %w", err)
		}
	}
	for _, name := range []string{"go.mod", "go.sum"} {
		text, err := os.ReadFile(name) //nolint:gosec // two names
		if err != nil {
			return "", err
		}
		if err := os.WriteFile(filepath.Join(tree, name), text, 0o600); err != nil { //nolint:gosec // two names
			return "", err
		}
	}
	if err := os.WriteFile(filepath.Join(tree, "sql/migrations/99999_add_fault_columns.sql"), []byte(nextMigration), 0o600); err != nil {
		return "", err
	}
	binary := filepath.Join(f.dir, "mailhook-next")
	build := exec.CommandContext(ctx, "go", "build", "-o", binary, "./cmd/mailhook") //nolint:gosec // into a directory of ours
	build.Dir = tree
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the next version: %w\n%s", err, out)
	}
	return binary, nil
}

// migrationTime is what migrate up of a change that adds may take under load: its patience with locks, and its work.
const migrationTime = 80 * time.Second

// migrate runs migrate up of the next version; all processes started from now on are of it.
func (f *field) migrate(ctx context.Context, next string) error {
	ctx, cancel := context.WithTimeout(ctx, migrationTime)
	defer cancel()
	x := fault{from: time.Now()}
	f.previous, f.binary = f.binary, next
	err := f.command(ctx, "migrate", "up")
	x.to = time.Now()
	f.faulty(x)
	if ctx.Err() != nil {
		return fmt.Errorf("migrate up beside running workers did not end within %v", migrationTime)
	}
	f.note("migrated within %v", x.to.Sub(x.from).Round(time.Millisecond))
	return err
}

// checkOldRefused: a worker of before that starts now says that it does not fit.
func (f *field) checkOldRefused(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, f.previous, "worker") //nolint:gosec // ours
	cmd.Env = f.environment()
	if out, err := cmd.CombinedOutput(); err == nil || ctx.Err() != nil || !bytes.Contains(out, []byte("schema")) {
		f.problem("a worker of the version before starts on the new schema, or does not say why not: %v\n%s", err, out)
	}
	return nil
}
