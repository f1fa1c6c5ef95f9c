package main

import (
	"context"
	"os"
)

const batchEvents = 400_000

// batch is events of one subscription that takes a thousand at a time, beside those of the throughput row, which come one by
// one: in turns, in one run.
func (b *bench) batch(ctx context.Context) error {
	var batched []float64
	b.contests["mailhook"] = nil
	m := b.accepting(1, 1)
	m.maxEvents = 1000
	if os.Getenv("ONLY") == "mailhook" {
		r, err := b.contestOf(ctx, "batches_of_1000", b.scaled(batchEvents), m)
		thousands := float64(b.scaled(batchEvents)) / 1000
		b.report.add("batch", "CPU of PostgreSQL", "ms per 1,000", r.used.postgresCPU.Seconds()*1000/thousands)
		b.report.add("batch", "CPU of the worker", "ms per 1,000", r.used.contestantCPU.Seconds()*1000/thousands)
		return err
	}
	for range rounds {
		if err := b.contest(ctx, "mailhook"); err != nil {
			return err
		}
		r, err := b.contestOf(ctx, "batches_of_1000", b.scaled(batchEvents), m)
		if err != nil {
			return err
		}
		batched = append(batched, r.rate)
	}
	single := b.rates("mailhook")
	b.report.add("batch", "one event a request (the throughput row)", "events/s", single...)
	b.report.add("batch", "up to 1,000 events a request", "events/s", batched...)
	b.report.atLeast(3, "batch", "batches : single events", ratios(batched, single)...)
	return nil
}
