package main

import (
	"context"
	"fmt"
)

const (
	orderedEvents     = 200_000
	orderedRecipients = 100_000
	// oneRecipient is the events of a single recipient, which go one after another.
	oneRecipient = 2_000
)

// ordering is what it costs to send to each recipient in order: the same events, of 100,000 recipients at random, with and
// without, in turns.
func (b *bench) ordering(ctx context.Context) error {
	rates := map[string][]float64{}
	for range rounds {
		for _, ordering := range []string{"none", "recipient"} {
			rate, err := b.inOrder(ctx, ordering, accounts, b.scaled(orderedEvents), b.scaled(orderedRecipients))
			if err != nil {
				return err
			}
			rates[ordering] = append(rates[ordering], rate)
		}
	}
	one, err := b.inOrder(ctx, "recipient", 1, b.scaled(oneRecipient), 1)
	if err != nil {
		return err
	}
	b.report.add("ordering", "100,000 recipients, in no order", "deliveries/s", rates["none"]...)
	b.report.add("ordering", "the same, each recipient's in order", "deliveries/s", rates["recipient"]...)
	b.report.add("ordering", "all of one recipient, in order", "deliveries/s", one)
	b.report.atLeast(0.75, "ordering", "in order : in no order", ratios(rates["recipient"], rates["none"])...)
	return nil
}

// inOrder delivers n events to subscriptions with an ordering; a recipient is one of one account.
func (b *bench) inOrder(ctx context.Context, ordering string, accounts, n, recipients int) (float64, error) {
	m := b.accepting(accounts, 1)
	m.ordering = ordering
	d, err := b.cluster.installed(ctx, fmt.Sprintf("ordering_%s_%d", ordering, accounts), m)
	if err != nil {
		return 0, err
	}
	defer d.drop(ctx)
	err = d.exec(ctx, `INSERT INTO mailhook.outbox (account_id, event_type, recipient, message_id, data)
		SELECT 'a' || r % $3::int, 'email.delivered', 'user' || r || '@example.com', 'message-' || n, ('{"n":' || n || ',`+eventDetails+`}')::json
		FROM (SELECT n, abs(hashint8(n)::bigint) % $2::int AS r FROM generate_series(1, $1::int) AS n) AS numbered`, n, recipients, accounts)
	if err != nil {
		return 0, err
	}
	if err := d.settle(ctx, "mailhook.outbox"); err != nil {
		return 0, err
	}
	r, err := b.drain(ctx, drain{deliveries: int64(n), database: d, done: d.recorded, workers: aWorker(d)})
	if err != nil {
		return 0, fmt.Errorf("ordering %s: %w", ordering, err)
	}
	progress("  %s, %d recipients: %.0f deliveries/s, CPU-ms per 1,000: PostgreSQL %.0f, worker %.0f", ordering, recipients, r.rate,
		r.used.postgresCPU.Seconds()*1e6/float64(n), r.used.contestantCPU.Seconds()*1e6/float64(n))
	return r.rate, nil
}
