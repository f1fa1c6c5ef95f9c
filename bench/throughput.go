package main

import (
	"context"
	"fmt"
	"os"
)

const throughputEvents = 200_000

// throughput lets mailhook, River and a bare loop of the same requests deliver the same, one after the other, three times.
// The events are committed before the clock starts, and it runs from the first receipt to the last.
func (b *bench) throughput(ctx context.Context) error {
	if only := os.Getenv("ONLY"); only != "" {
		return b.throughputOf(ctx, only)
	}
	for range rounds {
		for _, name := range []string{"bare", "mailhook", "river"} {
			if err := b.contest(ctx, name); err != nil {
				return err
			}
		}
	}
	ours, rivers, bares := b.rates("mailhook"), b.rates("river"), b.rates("bare")
	b.report.add("throughput", "mailhook", "deliveries/s", ours...)
	b.report.add("throughput", "River", "deliveries/s", rivers...)
	b.report.add("throughput", "bare POST, no database", "deliveries/s", bares...)
	b.report.atLeast(2.2, "throughput", "mailhook : River", ratios(ours, rivers)...)
	b.report.atLeast(0.45, "throughput", "mailhook : bare POST", ratios(ours, bares)...)
	return nil
}

// throughputOf measures one contestant once, to work on it.
func (b *bench) throughputOf(ctx context.Context, name string) error {
	if err := b.contest(ctx, name); err != nil {
		return err
	}
	b.report.add("throughput", name, "deliveries/s", b.rates(name)...)
	b.costOf(name)
	return nil
}

func (b *bench) rates(name string) (rates []float64) {
	for _, c := range b.contests[name] {
		rates = append(rates, c.rate)
	}
	return rates
}

// contest lets one contestant deliver the events of the throughput row.
func (b *bench) contest(ctx context.Context, name string) error {
	run := map[string]func(context.Context, int) (drained, error){"bare": b.contestBare, "river": b.contestRiver, "mailhook": b.contestMailhook}[name]
	if run == nil {
		return fmt.Errorf("there is no contestant %q: bare, mailhook or river", name)
	}
	r, err := run(ctx, b.scaled(throughputEvents))
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	progress("  %s: %.0f deliveries/s, %.0f in the first fifth, %.0f in the last; first after %v; %d connections", name, r.rate, r.first, r.last, r.start, r.connections)
	b.contests[name] = append(b.contests[name], r)
	return nil
}

func (b *bench) contestBare(ctx context.Context, n int) (drained, error) {
	return b.drain(ctx, drain{deliveries: int64(n), done: func(context.Context) error { return nil }, workers: func(ctx context.Context) ([]*contestant, error) {
		return startCompetitor(ctx, "bare", b.receiver.url, fmt.Sprint(n))
	}})
}

func (b *bench) contestRiver(ctx context.Context, n int) (drained, error) {
	if err := b.cluster.riverTemplate(ctx); err != nil {
		return drained{}, err
	}
	d, err := b.cluster.clone(ctx, "river")
	if err != nil {
		return drained{}, err
	}
	defer d.drop(ctx)
	if err := d.insertJobs(ctx, b.receiver.url, n); err != nil {
		return drained{}, err
	}
	return b.drain(ctx, drain{deliveries: int64(n), database: d, done: d.jobsDone, workers: func(ctx context.Context) ([]*contestant, error) {
		return startCompetitor(ctx, "river", d.url)
	}})
}

func (b *bench) contestMailhook(ctx context.Context, n int) (drained, error) {
	return b.contestOf(ctx, "accounts_1000", n, b.accepting(accounts, 1))
}

// contestOf lets one worker deliver n events to the first of some markets; the others match nothing. Databases of one
// name have the same markets.
func (b *bench) contestOf(ctx context.Context, name string, n int, markets ...market) (drained, error) {
	d, err := b.cluster.installed(ctx, name, markets...)
	if err != nil {
		return drained{}, err
	}
	defer d.drop(ctx)
	m := markets[0]
	if err := d.insertEvents(ctx, n, m.accounts); err != nil {
		return drained{}, err
	}
	r, err := b.drain(ctx, drain{deliveries: int64(n * m.each), database: d, done: d.recorded, workers: aWorker(d)})
	if err != nil {
		return r, fmt.Errorf("%s: %w", name, err)
	}
	progress("  %s: %.0f deliveries/s", name, r.rate)
	return r, nil
}

// cost is what the contestants of the throughput row used, for 1,000 deliveries.
func (b *bench) cost(ctx context.Context) error {
	for _, name := range []string{"mailhook", "river"} {
		if len(b.contests[name]) == 0 {
			if err := b.contest(ctx, name); err != nil {
				return err
			}
		}
		b.costOf(name)
	}
	return nil
}

func (b *bench) costOf(name string) {
	thousands := float64(b.scaled(throughputEvents)) / 1000
	add := func(what, unit string, of func(drained) float64) {
		var values []float64
		for _, r := range b.contests[name] {
			values = append(values, of(r))
		}
		b.report.add("cost", name+": "+what, unit, values...)
	}
	add("CPU of PostgreSQL", "ms per 1,000", func(r drained) float64 { return r.used.postgresCPU.Seconds() * 1000 / thousands })
	add("CPU of the worker", "ms per 1,000", func(r drained) float64 { return r.used.contestantCPU.Seconds() * 1000 / thousands })
	add("WAL", "KB per 1,000", func(r drained) float64 { return float64(r.used.wal) / 1024 / thousands })
	add("transaction ids", "per 1,000", func(r drained) float64 { return float64(r.used.xids) / thousands })
	add("transactions", "per 1,000", func(r drained) float64 { return float64(r.used.transactions) / thousands })
	add("growth of the database", "KB per 1,000", func(r drained) float64 { return float64(r.used.disk) / 1024 / thousands })
	add("memory of the worker, most", "MB", func(r drained) float64 { return megabytes(r.memory) })
}
