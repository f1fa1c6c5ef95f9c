package main

import (
	"context"
	"fmt"
	"os"
)

const throughputEvents = 200_000

func (b *bench) throughput(ctx context.Context) error {
	rounds, contestants := 3, []string{"bare", "mailhook", "river"}
	if only := os.Getenv("ONLY"); only != "" {
		rounds, contestants = 1, []string{only}
	}
	for range rounds {
		for _, name := range contestants {
			r, err := b.contest(ctx, name, throughputEvents)
			if err != nil {
				return err
			}
			per := float64(throughputEvents) / 1000
			fmt.Printf("%s %.0f/s start %v first %.0f last %.0f conns %d mem %dMB | per 1000: pg %.1f ms, own %.1f ms, wal %.0f, xids %.1f, disk %.0f\n", name, r.rate, r.start, r.first, r.last, r.connections, r.memory>>20,
				r.used.postgresCPU.Seconds()*1000/per, r.used.contestantCPU.Seconds()*1000/per, float64(r.used.wal)/per, float64(r.used.xids)/per, float64(r.used.disk)/per)
		}
	}
	return b.cluster.statements(ctx)
}

// contest lets one contestant deliver n events.
func (b *bench) contest(ctx context.Context, name string, n int) (drained, error) {
	switch name {
	case "bare":
		return b.drain(ctx, drain{deliveries: int64(n), workers: func(ctx context.Context) ([]*contestant, error) {
			c, err := startCompetitor(ctx, "bare", b.receiver.url, fmt.Sprint(n))
			return []*contestant{c}, err
		}})
	case "river":
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
		if err := d.settle(ctx, "river_job"); err != nil {
			return drained{}, err
		}
		return b.drain(ctx, drain{deliveries: int64(n), database: d, done: d.jobsDone, workers: func(ctx context.Context) ([]*contestant, error) {
			c, err := startCompetitor(ctx, "river", d.url)
			return []*contestant{c}, err
		}})
	}
	if err := b.cluster.withMailhook(ctx, "mailhook_1000", b.receiver.url+"/ok", accounts, 1); err != nil {
		return drained{}, err
	}
	d, err := b.cluster.clone(ctx, "mailhook_1000")
	if err != nil {
		return drained{}, err
	}
	defer d.drop(ctx)
	if err := d.insertEvents(ctx, n, accounts); err != nil {
		return drained{}, err
	}
	if err := d.settle(ctx, "mailhook.outbox"); err != nil {
		return drained{}, err
	}
	return b.drain(ctx, drain{deliveries: int64(n), database: d, done: d.recorded, workers: func(ctx context.Context) ([]*contestant, error) {
		c, err := startWorker(ctx, []*database{d})
		return []*contestant{c}, err
	}})
}
