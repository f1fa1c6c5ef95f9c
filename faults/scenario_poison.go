package main

import (
	"context"
	"fmt"
	"time"
)

// keylessAccount has a subscription without a secret: each of its attempts fails before it is sent.
const keylessAccount = "keyless"

// unheardOf is the recipient of poison that nothing but a failing statement tells.
const unheardOf = "unheard of"

// mostDelayed is what others may have to wait for poison: each such row costs some dispatches.
const mostDelayed = 5 * time.Second

// poison puts rows at the head of every queue that cannot be processed: outbox rows that a known limit refuses, outbox rows
// whose dispatch fails with a data error, and deliveries that cannot be signed.
func poison() scenario {
	poisoned := 0
	return scenario{
		name: "poison", what: "poison rows at the head of every queue, and more of them each second", ci: true,
		workers: 2, load: usualLoad(),
		market: func(ctx context.Context, f *field) error {
			if err := f.populate(ctx); err != nil {
				return err
			}
			s, err := f.subscribe(ctx, &subscription{account: keylessAccount, types: []string{"*"}, schedule: []time.Duration{time.Second, time.Second}})
			if err != nil {
				return err
			}
			// Its deliveries must come to their end, not be held.
			if err := f.exec(ctx, "UPDATE mailhook.installation SET circuit_failures = 1000000"); err != nil {
				return err
			}
			// What no check of the product knows: the statement fails, and the row is found by halving.
			if err := f.exec(ctx, "ALTER TABLE mailhook.events ADD CONSTRAINT events_poison_check CHECK (recipient <> '"+unheardOf+"')"); err != nil {
				return err
			}
			if err := f.exec(ctx, "DELETE FROM mailhook.subscription_secrets WHERE subscription_id = $1", s.id); err != nil {
				return err
			}
			// Before any worker runs, so that they are the head.
			n, err := f.addPoison(ctx, f.scaled(40, 1))
			poisoned = n
			return err
		},
		run: func(ctx context.Context, f *field) error {
			for range f.scaled(20, 5) {
				n, err := f.addPoison(ctx, f.scaled(4, 1))
				if err != nil || !pause(ctx, time.Second) {
					return err
				}
				poisoned += n
				if err := f.host.bulk(ctx, keylessAccount, 50); err != nil {
					return err
				}
			}
			return nil
		},
		verify: func(ctx context.Context, f *field, c *checker) error {
			kept, err := f.count(ctx, "SELECT count(*) FROM mailhook.quarantine WHERE error_code <> '' AND reason <> ''")
			if err != nil {
				return err
			}
			counted, err := f.sumMetric(ctx, "mailhook_events_quarantined_total")
			if int(kept) != poisoned || int(counted) != poisoned {
				f.problem("%d poison rows written, %d in quarantine with a reason, %.0f counted", poisoned, kept, counted)
			}
			late := p99(c.lateBetween(f.began, time.Now()))
			f.note("%d rows quarantined; p99 of the others %v", kept, late.Round(time.Millisecond))
			if late > mostDelayed {
				f.slow("p99 of the events beside poison is %v, more than %v", late, mostDelayed)
			}
			return err
		},
	}
}

// addPoison commits times × 6 rows that cannot be dispatched, each kind in a transaction with a good neighbour that is no
// event of the ledger.
func (f *field) addPoison(ctx context.Context, times int) (n int, err error) {
	for range times {
		for _, row := range []struct{ eventType, ip, data, recipient string }{
			{"Not A Type", "", `{}`, ""},
			{"email.opened", "", `[1]`, ""},
			{"email.opened", "", `{"x": "\u0000"}`, ""},
			{"email.opened", "not an address", `{}`, ""},
			{"email.bounced", "", `{"bounce_type": "\u0000"}`, ""},
			{"email.opened", "", `{}`, unheardOf},
		} {
			_, err := f.pool.Exec(ctx, "INSERT INTO mailhook.outbox (account_id, event_type, dedicated_ip, data, recipient) VALUES ($1, $2, $3, $4::text::json, $5), ($1, 'email.opened', '', '{\"k\": -1}', '')",
				account(n%accounts), row.eventType, row.ip, row.data, row.recipient)
			if err != nil {
				return n, fmt.Errorf("write poison: %w", err)
			}
			n++
		}
	}
	return n, nil
}
