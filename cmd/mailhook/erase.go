package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/urfave/cli/v2"

	"mailhook/db"
	"mailhook/worker"
)

// An erasure is what mailhook erase answers with --json: numbers of rows by table.
type erasure struct {
	ID        string           `json:"id"`
	AccountID *string          `json:"account_id"`
	DryRun    bool             `json:"dry_run"`
	State     string           `json:"state"`
	Scanned   int64            `json:"scanned"`
	Matched   map[string]int64 `json:"matched"` // erased, or in a dry run only found
}

func eraseCommand() *cli.Command {
	return &cli.Command{
		Name:  "erase",
		Usage: "forget a person: all that mentions an address and was written before",
		Description: `Works with and without a running worker, says on stderr how far it is, and may be cut off at any point: the next worker goes on,
or the same command once more. What has no address in it stays: events are kept as anonymous counts.`,
		Flags: []cli.Flag{
			databaseFlag(), jsonFlag(),
			&cli.StringFlag{Name: "recipient", EnvVars: []string{"MAILHOOK_ERASE_RECIPIENT"}, Usage: "the address, such as ann@example.com; - reads it from standard input, where no list of processes shows it"},
			&cli.StringFlag{Name: "account", EnvVars: []string{"MAILHOOK_ACCOUNT"}, Usage: "only what belongs to this account; without it, all accounts"},
			&cli.BoolFlag{Name: "dry-run", EnvVars: []string{"MAILHOOK_ERASE_DRY_RUN"}, Usage: "only count"},
		},
		Action: func(c *cli.Context) error {
			pattern, err := recipientPattern(c.String("recipient"), os.Stdin)
			if err != nil {
				return err
			}
			if c.IsSet("account") && c.String("account") == "" {
				return usagef("--account is empty: name an account, or leave it out for all")
			}
			pool, err := commandPool(c, db.Role{Name: "mailhook erase", IndexOnly: true, StatementTimeout: time.Minute, MaxConns: 2})
			if err != nil {
				return err
			}
			defer pool.Close()
			params := db.CreateErasureParams{Pattern: pattern, IsDryRun: c.Bool("dry-run")}
			if account := c.String("account"); account != "" {
				params.AccountID = &account
			}
			done, err := erase(c.Context, pool, params, c.App.ErrWriter)
			if err != nil {
				return err
			}
			if c.Bool("json") {
				return json.NewEncoder(c.App.Writer).Encode(done)
			}
			return done.print(c.App.Writer)
		},
	}
}

// recipientPattern reads the address, or finds it on standard input. Its errors never quote it.
func recipientPattern(given string, stdin io.Reader) (string, error) {
	switch given {
	case "":
		return "", usagef("say whom: --recipient ADDRESS, or --recipient - with the address on standard input")
	case "-":
		line, err := bufio.NewReader(stdin).ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return "", fmt.Errorf("read the address from standard input: %w", err)
		}
		given = strings.TrimSpace(line)
	}
	pattern, err := db.RecipientPattern(given)
	if err != nil {
		return "", usagef("--recipient %w", err)
	}
	return pattern, nil
}

// erase asks for an erasure and sees it through, and those before it: a worker that does the same is no hindrance.
func erase(ctx context.Context, pool *db.Pool, params db.CreateErasureParams, progress io.Writer) (*erasure, error) {
	var id uuid.UUID
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) (err error) {
		q := db.New(tx)
		if id, err = q.CreateErasure(ctx, params); err != nil || params.IsDryRun {
			return err
		}
		return q.Audit(ctx, db.Change{AccountID: params.AccountID, Action: "recipient.erase", ObjectID: db.FormatID(db.ErasurePrefix, id)})
	})
	if err != nil {
		return nil, fmt.Errorf("store erasure: %w", err)
	}
	name := db.FormatID(db.ErasurePrefix, id)
	fmt.Fprintf(progress, "erasure %s\n", name)
	done, err := seeThrough(ctx, pool, id, progress)
	if err != nil {
		return nil, fmt.Errorf("erasure %s has not ended, and goes on with the next worker or mailhook erase: %s", name, db.Message(err))
	}
	return done, nil
}

// stepFailures is how many steps may fail in a row: a locked row, or a database that is away for a moment.
const stepFailures = 30

func seeThrough(ctx context.Context, pool *db.Pool, id uuid.UUID, progress io.Writer) (*erasure, error) {
	q, eraser := db.New(pool), worker.NewEraser(pool)
	failures, phase, told := 0, "", time.Now()
	for ctx.Err() == nil {
		n, err := eraser.Step(ctx)
		if failures++; err == nil {
			failures = 0
		}
		if failures > stepFailures {
			return nil, err
		}
		row, getErr := q.GetErasure(ctx, db.GetErasureParams{ID: id})
		if getErr == nil && row.State == "done" {
			return erasureOf(row), nil
		}
		if getErr == nil && (row.Phase != phase || time.Since(told) > 5*time.Second) {
			phase, told = row.Phase, time.Now()
			fmt.Fprintln(progress, progressOf(row, waitsOf(ctx, q)))
		}
		if err != nil || n == (worker.Erased{}) { // a worker is at it, or a transaction of the host is waited for
			select {
			case <-ctx.Done():
			case <-time.After(200 * time.Millisecond):
			}
		}
	}
	return nil, ctx.Err()
}

// progressOf says which table an erasure is in, and what it has come to until now.
func progressOf(row db.GetErasureRow, waits string) string {
	switch {
	case row.Phase == "new" && waits == "":
		return "waiting for its turn"
	case row.Phase == "new":
		return "waiting for its turn: the one before it waits for " + waits
	case row.Phase == "waiting" && waits == "":
		return "looking for open transactions of the host"
	case row.Phase == "waiting":
		return "waiting for " + waits
	}
	return fmt.Sprintf("at %s; so far %d rows looked at, %d events %s", row.Phase, row.ScannedCount, row.OutboxCount+row.EventCount, verbOf(row.IsDryRun))
}

// waitsOf says for which transactions the erasure waits whose turn it is; nothing where it does not.
func waitsOf(ctx context.Context, q *db.Queries) string {
	row, err := q.ErasureWaits(ctx)
	if err != nil { // none, or it cannot be told
		return ""
	}
	text := "a transaction of the host that was open at the start,"
	if row.Transactions > 1 {
		text = fmt.Sprintf("%d transactions of the host that were open at the start, the oldest", row.Transactions)
	}
	if row.Since != "" {
		text += " since " + row.Since
	} else {
		text = strings.TrimSuffix(text, ",")
	}
	if row.Gid != "" {
		return fmt.Sprintf("%s (prepared as %q)", text, row.Gid)
	}
	return fmt.Sprintf("%s (pid %d)", text, row.Pid)
}

func verbOf(isDryRun bool) string {
	if isDryRun {
		return "would be erased"
	}
	return "erased"
}

func erasureOf(row db.GetErasureRow) *erasure {
	return &erasure{
		ID: db.FormatID(db.ErasurePrefix, row.ID), AccountID: row.AccountID, DryRun: row.IsDryRun, State: row.State, Scanned: row.ScannedCount,
		Matched: map[string]int64{
			"outbox": row.OutboxCount, "events": row.EventCount, "deliveries": row.DeliveryCount, "attempts": row.AttemptCount, "dead_letters": row.DeadLetterCount,
			"quarantine": row.QuarantineCount, "dedupe_keys": row.DedupeKeyCount, "test_deliveries": row.TestDeliveryCount,
		},
	}
}

func (e *erasure) print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "%s\t%s\t%d rows looked at\n", e.ID, e.State, e.Scanned)
	nothing := true
	for _, n := range e.Matched {
		nothing = nothing && n == 0
	}
	if nothing {
		of := ""
		if e.AccountID != nil {
			of = fmt.Sprintf(" of account %q", *e.AccountID)
		}
		fmt.Fprintf(w, "nothing found%s\n", of)
		return w.Flush()
	}
	for _, line := range []struct{ table, what string }{
		{"outbox", "undispatched events, kept as counts"}, {"events", "events, kept as counts"}, {"deliveries", "unfinished deliveries, cancelled"},
		{"attempts", "excerpts of answers, wiped"}, {"dead_letters", "removed"}, {"quarantine", "removed"}, {"dedupe_keys", "removed"},
		{"test_deliveries", "excerpts of answers, wiped"},
	} {
		fmt.Fprintf(w, "  %s\t%d %s\t%s\n", line.table, e.Matched[line.table], verbOf(e.DryRun), line.what)
	}
	return w.Flush()
}
