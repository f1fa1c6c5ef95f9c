package main

import (
	"context"
	"fmt"
)

// fanOut is events that ten subscriptions match, by the delivery, beside those of the throughput row that one matches.
func (b *bench) fanOut(ctx context.Context) error {
	if len(b.contests["mailhook"]) == 0 {
		if err := b.contest(ctx, "mailhook"); err != nil {
			return err
		}
	}
	ten, err := b.contestOf(ctx, "accounts_1000_each_10", b.scaled(50_000), b.accepting(accounts, 10))
	if err != nil {
		return err
	}
	one := median(b.rates("mailhook"))
	b.report.add("fan-out", "1 match each (the throughput row)", "deliveries/s", one)
	b.report.add("fan-out", "50,000 events × 10 matches", "deliveries/s", ten.rate)
	b.report.atLeast(1.1, "fan-out", "10 matches : 1 match, per delivery", ten.rate/one)
	return nil
}

// subscriptions is what subscriptions cost that do not match: those of other accounts, and others of the same account.
func (b *bench) subscriptions(ctx context.Context) error {
	n := b.scaled(100_000)
	few, err := b.contestOf(ctx, "accounts_1000", n, b.accepting(accounts, 1))
	if err != nil {
		return err
	}
	many, err := b.contestOf(ctx, fmt.Sprintf("accounts_%d", n), n, b.accepting(n, 1))
	if err != nil {
		return err
	}
	b.report.add("subscriptions", "1,000 of 1,000 accounts", "deliveries/s", few.rate)
	b.report.add("subscriptions", number(float64(n))+" of as many accounts", "deliveries/s", many.rate)
	b.report.atLeast(0.85, "subscriptions", "many accounts : 1,000 accounts", many.rate/few.rate)

	// One account: with the default of 32 in flight for each subscription, the caps would be measured.
	matching := b.accepting(1, 3)
	matching.maxInFlight = 1000
	others := b.accepting(1, 997)
	others.eventType = "email.bounced"
	three, err := b.contestOf(ctx, "matching_3_of_3", n*3/10, matching)
	if err != nil {
		return err
	}
	thousand, err := b.contestOf(ctx, "matching_3_of_1000", n*3/10, matching, others)
	if err != nil {
		return err
	}
	b.report.add("subscriptions", "one account, 3 of 3 match", "deliveries/s", three.rate)
	b.report.add("subscriptions", "one account, 3 of 1,000 match", "deliveries/s", thousand.rate)
	b.report.atLeast(0.8, "subscriptions", "3 of 1,000 : 3 of 3, per delivery", thousand.rate/three.rate)
	return nil
}
