package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// A neighbour is accounts whose endpoint is dead, beside those that are measured: it accepts, and never answers.
type neighbour struct {
	what      string
	endpoints int
	waiting   int // deliveries, in all
	due       string
}

// neighbourhood is how the others fare.
type neighbourhood struct{ rate, p99 float64 }

// deadNeighbour is accounts whose deliveries have failed once and wait. The live ones: 50,000 events to drain, then 500
// events/s.
func (b *bench) deadNeighbour(ctx context.Context) error {
	var rates, p99s []float64
	million, hundred := b.scaled(1_000_000), b.scaled(100_000)
	for _, n := range []neighbour{
		{number(float64(million)) + " of one endpoint, due", 1, million, "now() - interval '1 hour'"},
		{number(float64(million)) + " of one endpoint, in an hour", 1, million, "now() + interval '1 hour'"},
		{number(float64(hundred)) + " endpoints, one each in an hour", hundred, hundred, "now() + interval '1 hour'"},
	} {
		// Just before each: the machine is not the same from minute to minute.
		alone, err := b.beside(ctx, neighbour{})
		if err != nil {
			return err
		}
		rates, p99s = append(rates, alone.rate), append(p99s, alone.p99)
		found, err := b.beside(ctx, n)
		if err != nil {
			return fmt.Errorf("%s: %w", n.what, err)
		}
		b.report.add("dead-neighbour", n.what+": live", "deliveries/s", found.rate)
		b.report.atLeast(0.9, "dead-neighbour", n.what+": live : none", found.rate/alone.rate)
		b.report.add("dead-neighbour", n.what+": live p99", "ms", found.p99)
		b.report.atMost(1.5, "dead-neighbour", n.what+": live p99 : none", "×", found.p99/alone.p99)
	}
	b.report.add("dead-neighbour", "none: live", "deliveries/s", rates...)
	b.report.add("dead-neighbour", "none: live p99", "ms", p99s...)
	return nil
}

// beside measures live traffic beside a neighbour.
func (b *bench) beside(ctx context.Context, n neighbour) (found neighbourhood, err error) {
	markets := []market{b.accepting(accounts, 1)}
	if n.endpoints > 0 {
		markets = append(markets, market{prefix: "dead", accounts: n.endpoints, each: 1, eventType: "email.delivered",
			url: func(i int) string { return fmt.Sprintf("%s/never/%d", b.silent.url, i) }})
	}
	d, err := b.cluster.installed(ctx, fmt.Sprintf("neighbours_%d", n.endpoints), markets...)
	if err != nil {
		return found, err
	}
	defer d.drop(ctx)
	if err := errors.Join(d.insertWaiting(ctx, n), d.settle(ctx, "mailhook.deliveries", "mailhook.events")); err != nil {
		return found, err
	}
	live := b.scaled(50_000)
	if err := d.insertEvents(ctx, live, accounts); err != nil {
		return found, err
	}
	b.silent.reset(0)
	r, err := b.drain(ctx, drain{deliveries: int64(live), workers: aWorker(d), done: d.recorded, kill: true, then: func(ctx context.Context) error {
		took, err := b.live(ctx, d, traffic{rate: 500, lasts: b.seconds(15), from: int64(live) + 1}, nil)
		found.p99 = milliseconds(quantile(took, 0.99))
		return err
	}})
	found.rate = r.rate
	progress("  %.0f deliveries/s, p99 %.1f ms; %d requests to the dead", r.rate, found.p99, b.silent.tally().never)
	return found, err
}

// insertWaiting inserts deliveries that have failed once, spread over the dead, about one event of each.
func (d *database) insertWaiting(ctx context.Context, n neighbour) error {
	if n.endpoints == 0 {
		return nil
	}
	return errors.Join(
		d.exec(ctx, `INSERT INTO mailhook.events (inserted_at, id, account_id, event_type, occurred_at, dispatched_at, recipient, data)
			SELECT date_trunc('second', now()), 1000000000000 + row_number() OVER (), s.account_id, 'email.delivered', now(), now(), 'dead@example.com', '{"n":0}'
			FROM mailhook.subscriptions AS s WHERE s.account_id LIKE 'dead%'`),
		d.exec(ctx, `INSERT INTO mailhook.deliveries (subscription_id, account_id, event_inserted_at, event_id, event_type, attempt, next_attempt_at, last_outcome, created_at)
			SELECT s.id, s.account_id, e.inserted_at, e.id, e.event_type, 1, `+n.due+` + i * interval '1 millisecond', 'response_timeout', now()
			FROM mailhook.subscriptions AS s
			JOIN mailhook.events AS e ON e.account_id = s.account_id
			CROSS JOIN generate_series(1, $1::int) AS i
			WHERE s.account_id LIKE 'dead%'`, n.waiting/n.endpoints))
}

// slowNeighbours is a fifth of the accounts at endpoints that answer after 5 s.
func (b *bench) slowNeighbours(ctx context.Context) error {
	healthy := func(n int64) bool { return n%5 != 0 }
	measure := func(name string, m market) (time.Duration, error) {
		var p99 time.Duration
		err := b.withWorker(ctx, name, m, func(ctx context.Context, d *database) error {
			took, err := b.live(ctx, d, traffic{rate: 500, lasts: b.seconds(20)}, healthy)
			p99 = quantile(took, 0.99)
			return err
		})
		return p99, err
	}
	all := b.accepting(accounts, 1)
	without, err := measure("accounts_1000", all)
	if err != nil {
		return err
	}
	mixed := all
	mixed.url = func(i int) string {
		if healthy(int64(i)) {
			return all.url(i)
		}
		return fmt.Sprintf("%s/slow/%d", b.receiver.url, i)
	}
	with, err := measure("slow_neighbours", mixed)
	if err != nil {
		return err
	}
	b.report.add("slow-neighbours", "500 events/s, all answer at once: p99", "ms", milliseconds(without))
	b.report.add("slow-neighbours", "a fifth answers after 5 s: p99 of the others", "ms", milliseconds(with))
	b.report.atMost(2, "slow-neighbours", "with slow ones : without", "×", with.Seconds()/without.Seconds())
	return nil
}
