package demo

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"mailhook/db"
)

const (
	account    = "mailhook-demo"
	secret     = "whsec_bWFpbGhvb2sgZGVtbyBzZWNyZXQsIDMyIGJ5dGVz" //nolint:gosec // of a demo
	steadyPath = "/steady"
	flakyPath  = "/flaky"

	producers    = 4
	producePause = 60 * time.Millisecond // about 66 transactions a second by all
)

// platform is the small mail platform: it keeps messages in a table of its own.
type platform struct {
	pool   *pgxpool.Pool
	ledger *ledger
}

func (p *platform) install(ctx context.Context) error {
	_, err := p.pool.Exec(ctx, `
		CREATE SCHEMA IF NOT EXISTS mailhook_demo;
		CREATE TABLE IF NOT EXISTS mailhook_demo.messages (id uuid PRIMARY KEY, recipient text NOT NULL, status text NOT NULL)`)
	if err != nil {
		return fmt.Errorf("create the platform's table: %w", err)
	}
	return nil
}

func (p *platform) remove(ctx context.Context) error {
	_, err := p.pool.Exec(ctx, "DROP SCHEMA mailhook_demo CASCADE")
	return err
}

func (p *platform) subscribe(ctx context.Context, keyring *db.Keyring, url string) error {
	id := uuid.Must(uuid.NewV7())
	return pgx.BeginFunc(ctx, p.pool, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `
			INSERT INTO mailhook.subscriptions (id, account_id, name, url, event_types, retry_preset, retry_schedule)
			VALUES ($1, $2, 'demo', $3, '{*}', NULL, array_fill('1 second'::interval, '{20}'))`, id, account, url)
		if err != nil {
			return fmt.Errorf("create subscription: %w", err)
		}
		_, err = tx.Exec(ctx, "INSERT INTO mailhook.subscription_secrets (subscription_id, key_id, sealed) VALUES ($1, $2, $3)",
			id, keyring.First().ID, keyring.First().Seal(db.SealedSecret, id, []byte(secret)))
		return err
	})
}

// produce writes messages and their events until ctx ends.
func (p *platform) produce(ctx context.Context) error {
	var group errgroup.Group
	for range producers {
		group.Go(func() error {
			ticker := time.NewTicker(producePause)
			defer ticker.Stop()
			for {
				select {
				case <-ctx.Done():
					return nil
				case <-ticker.C:
				}
				if err := p.transact(context.WithoutCancel(ctx)); err != nil {
					return err
				}
			}
		})
	}
	return group.Wait()
}

// transact is one transaction of the platform: a few messages change, their events are written beside them, and one
// time in ten all of it is rolled back.
func (p *platform) transact(ctx context.Context) error {
	tx, err := p.pool.Begin(ctx)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	defer tx.Rollback(ctx) //nolint:errcheck // after a commit it does nothing
	var ids []string
	for range 1 + rand.IntN(4) { //nolint:gosec // not a secret
		id, err := p.send(ctx, tx)
		if err != nil {
			return err
		}
		ids = append(ids, id)
	}
	if rand.IntN(10) == 0 { //nolint:gosec // not a secret
		p.ledger.rolledBack(ids)
		return tx.Rollback(ctx)
	}
	p.ledger.committing(ids)
	if err := tx.Commit(ctx); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	p.ledger.committed(ids, time.Now())
	return nil
}

// send records what happened to one message, with its event.
func (p *platform) send(ctx context.Context, tx pgx.Tx) (eventID string, err error) {
	what := []struct{ eventType, data string }{
		{"email.delivered", `{"smtp_code": 250}`},
		{"email.opened", `{"message_class": "newsletter", "user_agent": "Mozilla/5.0"}`},
		{"email.clicked", `{"message_class": "newsletter", "link_url": "https://example.com/offer"}`},
		{"email.bounced", `{"bounce_type": "hard", "smtp_code": 550, "reason": "user unknown"}`},
	}[rand.IntN(4)] //nolint:gosec // not a secret
	id := uuid.New()
	recipient := fmt.Sprintf("user%d@example.com", rand.IntN(1000)) //nolint:gosec // as above
	if _, err := tx.Exec(ctx, "INSERT INTO mailhook_demo.messages VALUES ($1, $2, $3)", id, recipient, what.eventType); err != nil {
		return "", fmt.Errorf("write the message: %w", err)
	}
	err = tx.QueryRow(ctx, "SELECT mailhook.emit($1, account_id => $2, recipient => $3, message_id => $4, data => $5::text)",
		what.eventType, account, recipient, id.String(), what.data).Scan(&eventID)
	if err != nil {
		return "", fmt.Errorf("emit: %w", err)
	}
	return eventID, nil
}
