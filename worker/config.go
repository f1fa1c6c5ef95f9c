package worker

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"mailhook/db"
	"mailhook/db/egress"
)

// A Config is what one worker needs to know. Take DefaultConfig and change it.
type Config struct {
	// DatabaseURL is a PostgreSQL connection string.
	DatabaseURL string
	// Keyring opens the secrets and headers of subscriptions.
	Keyring *db.Keyring
	// Version is named in User-Agent and in the workers table.
	Version string

	// MaxInFlight bounds the requests under way; about as many more may wait to be recorded.
	MaxInFlight int
	// MaxBodyBytes bounds the event data in memory.
	MaxBodyBytes int64
	// BatchRows bounds the outbox rows of one dispatch.
	BatchRows int
	// Connections is how many sessions work, five of them for dispatch, claim, record, heartbeat and pulse alone, and one for
	// retention; one more listens.
	Connections int

	// PollInterval is the longest a sleeping worker trusts notifications.
	PollInterval time.Duration
	// ClaimInterval is how often a worker looks for due retries.
	ClaimInterval time.Duration
	// Grace is how long a stopping worker lets requests finish.
	Grace time.Duration

	// ExcerptBytes is how much of a receiver's answer is kept.
	ExcerptBytes int
	// Policy says where requests may go.
	egress.Policy

	// Retention says how long history is kept.
	Retention Retention

	Log      *slog.Logger
	Registry prometheus.Registerer
}

// Retention says how long each kind of history is kept.
type Retention struct {
	Events      time.Duration
	Attempts    time.Duration
	DeadLetters time.Duration
	Quarantine  time.Duration
	AuditLog    time.Duration
	// Held is how long a delivery is held (paused, suspended, circuit open) before it becomes a dead letter.
	Held time.Duration
	// MaxHeld is how many deliveries of one subscription are held; beyond it the oldest become dead letters.
	MaxHeld int
}

// longestSchedule is what 50 intervals of 24 h could not be kept for; it is the longest preset (standard, 75 h 35 m)
// with its jitter and an hour of Retry-After for each failure.
const longestSchedule = 100 * time.Hour

// DefaultConfig is a worker as most installations run it; DatabaseURL and Keyring are yet to be set.
func DefaultConfig() Config {
	day := 24 * time.Hour
	return Config{
		Version:       "dev",
		MaxInFlight:   1000,
		MaxBodyBytes:  32 << 20,
		BatchRows:     1000,
		Connections:   8,
		PollInterval:  5 * time.Second,
		ClaimInterval: 200 * time.Millisecond,
		Grace:         20 * time.Second,
		ExcerptBytes:  4096,
		Retention:     Retention{Events: 14 * day, Attempts: 14 * day, DeadLetters: 14 * day, Quarantine: 14 * day, AuditLog: 400 * day, Held: 7 * day, MaxHeld: 1_000_000},
		Log:           slog.Default(),
		Registry:      prometheus.DefaultRegisterer,
	}
}

// Validate says what is wrong with a configuration, by the name of the flag.
func (c Config) Validate() error {
	switch {
	case c.DatabaseURL == "":
		return errors.New("no database: set --database-url or MAILHOOK_DATABASE_URL")
	case c.Keyring == nil:
		return errors.New("no master key: set MAILHOOK_SECRET_KEY to 32 random bytes in base64 (openssl rand -base64 32)")
	case c.MaxInFlight < 1 || c.MaxInFlight > 100_000:
		return errors.New("--max-in-flight must be 1 to 100000")
	case c.BatchRows < 1 || c.BatchRows > 10_000:
		return errors.New("--batch-rows must be 1 to 10000")
	case c.MaxBodyBytes < 1<<20:
		return errors.New("--max-body-bytes must be at least 1 MiB")
	case c.Connections < 7:
		return errors.New("--connections must be at least 7")
	case c.PollInterval < 100*time.Millisecond || c.ClaimInterval < 10*time.Millisecond:
		return errors.New("--poll-interval must be at least 100ms and --claim-interval at least 10ms")
	case c.ExcerptBytes < 0 || c.ExcerptBytes > 64<<10:
		return errors.New("--excerpt-bytes must be 0 to 65536")
	}
	if err := c.Policy.Validate(); err != nil {
		return err
	}
	return c.Retention.validate()
}

// leastAudit is what the table itself keeps, whatever a worker asks.
const leastAudit = 7 * 24 * time.Hour

func (r Retention) validate() error {
	if r.AuditLog < leastAudit {
		return fmt.Errorf("--retain-audit must be at least %s: the audit log keeps its last 7 days", db.FormatDays(leastAudit))
	}
	for _, d := range []time.Duration{r.Events, r.Attempts, r.DeadLetters, r.Quarantine, r.Held} {
		if d < time.Hour {
			return errors.New("every retention must be at least 1h")
		}
	}
	if r.MaxHeld < 1 || r.MaxHeld > 1_000_000_000 {
		return errors.New("--max-held must be 1 to 1000000000")
	}
	if need := r.Held + longestSchedule; r.Events < need {
		return fmt.Errorf("--retain-events %s is shorter than --retain-held %s and the longest retry schedule (%s): events would be dropped before they are delivered; raise it to %s",
			db.FormatDays(r.Events), db.FormatDays(r.Held), db.FormatDays(longestSchedule), db.FormatDays(need))
	}
	return nil
}
