package main

import (
	"context"
	"errors"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
)

// snapshot holds a transaction's snapshot for minutes: dead rows stay, and nothing may slow down. Within five minutes
// after it all is as before.
func snapshot() scenario {
	var before, held, released time.Time
	return scenario{
		name: "snapshot", what: "a snapshot held for three minutes under load",
		workers: 2, load: usualLoad(),
		run: func(ctx context.Context, f *field) error {
			pause(ctx, 2*time.Second)
			before = time.Now()
			claims, err := f.claimsDuring(ctx, func() { pause(ctx, f.seconds(30)) })
			if err != nil {
				return err
			}
			held = time.Now()
			if err := f.holdSnapshot(ctx, f.seconds(180)); err != nil {
				return err
			}
			released = time.Now()
			return f.recoverTables(ctx, claims)
		},
		verify: func(_ context.Context, f *field, c *checker) error {
			last := released.Add(-f.seconds(30))
			f.compare("the last half minute of the held snapshot", p99(c.lateBetween(before, held)), p99(c.lateBetween(last, released)))
			return nil
		},
	}
}

func (f *field) holdSnapshot(ctx context.Context, d time.Duration) error {
	tx, err := f.pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		return err
	}
	defer tx.Rollback(ctx) //nolint:errcheck // nothing was written
	if _, err := tx.Exec(ctx, "SELECT count(*) FROM host.transactions"); err != nil {
		return err
	}
	pause(ctx, d)
	return nil
}

// deadSQL counts the dead rows that vacuum has yet to take from the tables through which all goes. Their files do not
// shrink (vacuum_truncate is off): the space is used again.
const deadSQL = "SELECT sum(n_dead_tup)::bigint FROM pg_stat_user_tables WHERE schemaname = 'mailhook' AND relname IN ('outbox', 'deliveries')"

// recoverTables waits for vacuum, at most five minutes, and compares the time of a claim with that before.
func (f *field) recoverTables(ctx context.Context, before time.Duration) error {
	most, err := f.count(ctx, deadSQL)
	if err != nil {
		return err
	}
	began := time.Now()
	// Each of them is vacuumed from 5,000 dead rows on.
	err = eventually(ctx, 5*time.Minute, "vacuum has taken the dead rows", func() (bool, error) {
		n, err := f.count(ctx, deadSQL)
		return n <= 2*2*5000, err
	})
	if err != nil {
		f.problem("%v: there were %d", err, most)
	}
	f.note("%d dead rows, taken %.0f s after", most, time.Since(began).Seconds())
	after, err := f.claimsDuring(ctx, func() { pause(ctx, f.seconds(30)) })
	f.note("p99 of a claim: %v, before %v", after, before)
	if after > 2*before {
		f.slow("a claim takes %v (p99), before the snapshot was held %v", after, before)
	}
	size, sizeErr := f.count(ctx, "SELECT pg_total_relation_size('mailhook.outbox') + pg_total_relation_size('mailhook.deliveries')")
	f.note("outbox and deliveries have %d MiB", size>>20)
	return errors.Join(err, sizeErr)
}

// claimsDuring is the p99 of all workers' claims in the meantime, as exact as the buckets of mailhook_claim_seconds.
func (f *field) claimsDuring(ctx context.Context, meanwhile func()) (time.Duration, error) {
	before, err := f.buckets(ctx, "mailhook_claim_seconds_bucket")
	if err != nil {
		return 0, err
	}
	meanwhile()
	after, err := f.buckets(ctx, "mailhook_claim_seconds_bucket")
	if err != nil {
		return 0, err
	}
	for _, bound := range slices.Sorted(maps.Keys(after)) {
		if after[bound]-before[bound] >= 0.99*(after[math.Inf(1)]-before[math.Inf(1)]) {
			return time.Duration(bound * float64(time.Second)), nil
		}
	}
	return 0, errors.New("no claims were made")
}

// buckets adds up a histogram over the workers: what was at most so many seconds.
func (f *field) buckets(ctx context.Context, name string) (map[float64]float64, error) {
	sums := map[float64]float64{}
	pattern := regexp.MustCompile(regexp.QuoteMeta(name) + `\{le="([^"]+)"\} (\S+)`)
	for _, p := range f.living() {
		_, text, err := p.get(ctx, "/metrics")
		if err != nil {
			return nil, err
		}
		for _, match := range pattern.FindAllStringSubmatch(text, -1) {
			bound, err := strconv.ParseFloat(match[1], 64)
			if err != nil {
				return nil, err
			}
			n, err := strconv.ParseFloat(match[2], 64)
			if err != nil {
				return nil, err
			}
			sums[bound] += n
		}
	}
	return sums, nil
}

// million commits a million events of one account at once, among the live traffic of others.
func million() scenario {
	const big = "big"
	var before, began, ended time.Time
	return scenario{
		name: "million", what: "one host transaction of 1,000,000 events among live traffic of other accounts",
		workers: 2, load: load{connections: 4, rate: 100, most: 20}, drain: 20 * time.Minute,
		market: func(ctx context.Context, f *field) error {
			if err := f.populate(ctx); err != nil {
				return err
			}
			_, err := f.subscribe(ctx, &subscription{account: big, types: []string{"*"}, inFlight: 500})
			return err
		},
		run: func(ctx context.Context, f *field) error {
			pause(ctx, 2*time.Second)
			before = time.Now()
			pause(ctx, f.seconds(20))
			if err := f.host.bulk(ctx, big, int64(f.scaled(1_000_000, 1000))); err != nil {
				return err
			}
			began = time.Now()
			pause(ctx, f.seconds(60))
			ended = time.Now()
			return nil
		},
		verify: func(_ context.Context, f *field, c *checker) error {
			f.note("live traffic: p99 %v before, %v beside it; drained after %v", p99(c.lateBetween(before, began)).Round(time.Millisecond),
				p99(c.lateBetween(began, ended)).Round(time.Millisecond), f.drained.Round(time.Second))
			return nil
		},
	}
}
