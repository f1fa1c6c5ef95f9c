package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"mailhook/db"
)

// A status is what mailhook status answers with --json.
type status struct {
	DeliveryEnabled           bool    `json:"delivery_enabled"`
	Undispatched              int64   `json:"undispatched"`
	OldestUndispatchedSeconds float64 `json:"oldest_undispatched_seconds"`
	Due                       int64   `json:"due"`
	// Waiting are the deliveries whose next attempt is still to come.
	Waiting            int64          `json:"waiting"`
	Sending            int64          `json:"sending"`
	Held               int64          `json:"held"`
	OpenCircuits       int64          `json:"open_circuits"`
	Dead               int64          `json:"dead"`
	Quarantined        int64          `json:"quarantined"`
	EmitFailures       int64          `json:"emit_failures"`
	Workers            []workerStatus `json:"workers"`
	WorstSubscriptions []worstStatus  `json:"worst_subscriptions"`
}

type workerStatus struct {
	ID        string    `json:"id"`
	Hostname  string    `json:"hostname"`
	PID       int32     `json:"pid"`
	Version   string    `json:"version"`
	StartedAt time.Time `json:"started_at"`
	SeenAt    time.Time `json:"seen_at"`
}

type worstStatus struct {
	ID                  string `json:"id"`
	AccountID           string `json:"account_id"`
	Name                string `json:"name"`
	Status              string `json:"status"`
	ConsecutiveFailures int32  `json:"consecutive_failures"`
	LastOutcome         string `json:"last_outcome"`
	// OpenedAt is since when its circuit is open.
	OpenedAt *time.Time `json:"opened_at"`
}

func statusCommand() *cli.Command {
	return &cli.Command{
		Name:  "status",
		Usage: "what waits, what is held, what is dead, which workers live, which subscriptions fail most",
		Flags: []cli.Flag{databaseFlag(), jsonFlag()},
		Action: func(c *cli.Context) error {
			pool, err := commandPool(c, commandRole())
			if err != nil {
				return err
			}
			defer pool.Close()
			s, err := readStatus(c.Context, db.New(pool))
			if err != nil {
				return err
			}
			if c.Bool("json") {
				return json.NewEncoder(c.App.Writer).Encode(s)
			}
			return s.print(c.App.Writer)
		},
	}
}

func readStatus(ctx context.Context, q *db.Queries) (*status, error) {
	row, err := q.Status(ctx)
	if err != nil {
		return nil, fmt.Errorf("read status: %w", err)
	}
	s := &status{
		DeliveryEnabled: row.DeliveryEnabled, Undispatched: row.Undispatched, OldestUndispatchedSeconds: row.OldestUndispatchedSeconds,
		Due: row.Due, Waiting: row.Waiting, Sending: row.Sending, Held: row.Held, OpenCircuits: row.OpenCircuits, Dead: row.Dead, Quarantined: row.Quarantined, EmitFailures: row.EmitFailures,
		Workers: []workerStatus{}, WorstSubscriptions: []worstStatus{},
	}
	workers, err := q.ListWorkers(ctx)
	if err != nil {
		return nil, fmt.Errorf("list workers: %w", err)
	}
	for _, w := range workers {
		s.Workers = append(s.Workers, workerStatus{w.ID.String(), w.Hostname, w.Pid, w.Version, w.StartedAt.UTC(), w.SeenAt.UTC()})
	}
	worst, err := q.ListWorstSubscriptions(ctx, 10)
	if err != nil {
		return nil, fmt.Errorf("list worst subscriptions: %w", err)
	}
	for _, x := range worst {
		w := worstStatus{ID: db.FormatID(db.SubscriptionPrefix, x.ID), AccountID: x.AccountID, Name: x.Name, Status: x.Status, ConsecutiveFailures: x.ConsecutiveFailures, OpenedAt: x.OpenedAt}
		if x.LastOutcome != nil {
			w.LastOutcome = *x.LastOutcome
		}
		s.WorstSubscriptions = append(s.WorstSubscriptions, w)
	}
	return s, nil
}

func (s *status) print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	delivery := "on"
	if !s.DeliveryEnabled {
		delivery = "OFF (mailhook delivery on)"
	}
	fmt.Fprintf(w, "delivery\t%s\n", delivery)
	fmt.Fprintf(w, "undispatched\t%d\toldest %v\n", s.Undispatched, time.Duration(s.OldestUndispatchedSeconds*float64(time.Second)).Round(time.Millisecond))
	for _, line := range []struct {
		name  string
		value int64
	}{{"due", s.Due}, {"waiting for a retry", s.Waiting}, {"sending", s.Sending}, {"held", s.Held}, {"open circuits", s.OpenCircuits}, {"dead", s.Dead}, {"quarantined", s.Quarantined}, {"emit failures", s.EmitFailures}} {
		fmt.Fprintf(w, "%s\t%d\n", line.name, line.value)
	}
	fmt.Fprintf(w, "workers\t%d\n", len(s.Workers))
	for _, x := range s.Workers {
		fmt.Fprintf(w, "  %s\tpid %d\t%s\tseen %s\n", cell(x.Hostname), x.PID, cell(x.Version), x.SeenAt.Format(time.RFC3339))
	}
	if len(s.WorstSubscriptions) > 0 {
		fmt.Fprintf(w, "failing most\n")
	}
	for _, x := range s.WorstSubscriptions {
		circuit, failures := "", "failures"
		if x.ConsecutiveFailures == 1 {
			failures = "failure"
		}
		if x.OpenedAt != nil {
			circuit = "circuit open since " + x.OpenedAt.UTC().Format(time.RFC3339)
		}
		fmt.Fprintf(w, "  %s\t%s\t%s\t%d %s\t%s\t%s\n", x.ID, cell(x.AccountID), x.Status, x.ConsecutiveFailures, failures, x.LastOutcome, circuit)
	}
	return w.Flush()
}
