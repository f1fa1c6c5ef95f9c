package httpapi

import (
	"context"
	"fmt"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"mailhook/db"
)

// How many erasures of an account, or of admins for all accounts, may wait for their turn: each reads whole tables.
const (
	maxRunningErasures         = 10
	maxRunningErasuresOfAdmins = 100
)

// An Erasure forgets a person. It does not say whom.
type Erasure struct {
	ID        string       `json:"id" example:"ers_0190a1b2c3d47e5f8a9b0c1d2e3f4a5b"`
	AccountID *string      `json:"account_id" doc:"Only what belongs to this account; null is all accounts."`
	DryRun    bool         `json:"dry_run" doc:"Only counted: made by mailhook erase --dry-run."`
	State     string       `json:"state" enum:"running,done"`
	Phase     string       `json:"phase" doc:"new, waiting (for transactions of the host that were open at the start), the table it is in, or done."`
	Scanned   int64        `json:"scanned" doc:"How many rows have been looked at."`
	Matched   ErasedCounts `json:"matched" doc:"What was erased; in a dry run, what would be."`
	CreatedAt Timestamp    `json:"created_at"`
	EndedAt   *Timestamp   `json:"ended_at"`
}

// ErasedCounts are numbers of rows.
type ErasedCounts struct {
	Outbox         int64 `json:"outbox" doc:"Undispatched events: never sent, kept as anonymous counts."`
	Events         int64 `json:"events" doc:"Dispatched events: kept as anonymous counts."`
	Deliveries     int64 `json:"deliveries" doc:"Unfinished deliveries: cancelled."`
	Attempts       int64 `json:"attempts" doc:"Attempts whose response_excerpt was wiped."`
	DeadLetters    int64 `json:"dead_letters" doc:"Exhausted deliveries that can no longer be retried: cancelled."`
	Quarantine     int64 `json:"quarantine" doc:"Events in quarantine: removed."`
	DedupeKeys     int64 `json:"dedupe_keys"`
	TestDeliveries int64 `json:"test_deliveries" doc:"Test sends whose response_excerpt was wiped."`
}

type eraseRequest struct {
	Body struct {
		Recipient string           `json:"recipient" doc:"One address, such as ann@example.com: found in any case, as the recipient and anywhere in data."`
		AccountID optional[string] `json:"account_id,omitempty" doc:"For admin keys: only what belongs to this account. Default: all accounts."`
	} `nameHint:"EraseBody"`
}

type erasureParams struct {
	ID string `path:"id" doc:"ers_…"`
}

type erasureResponse struct{ Body Erasure }

func (s *server) addErasures(api huma.API) {
	tags := []string{"erasures"}
	register(s, api, huma.Operation{
		OperationID: "erase-recipient", Method: http.MethodPost, Path: "/v1/recipients/erase", Tags: tags, Summary: "Forget a person",
		Description: "Everything that mentions the address and was written before: events, undispatched ones too, are kept as anonymous counts, " +
			"unfinished deliveries are cancelled, what receivers answered is wiped. A request that is under way may finish. " +
			"Events that the host writes later are not concerned. The address itself is forgotten at the end.",
		DefaultStatus: http.StatusAccepted, Errors: []int{http.StatusConflict},
	}, s.eraseRecipient)
	register(s, api, huma.Operation{
		OperationID: "get-erasure", Method: http.MethodGet, Path: "/v1/erasures/{id}", Tags: tags, Summary: "Read how far an erasure is",
	}, s.getErasure)
}

func (s *server) eraseRecipient(ctx context.Context, who caller, in *eraseRequest) (out *erasureResponse, err error) {
	if in.Body.AccountID.isValue() && in.Body.AccountID.value == "" { // a variable that a script has not set must not mean all
		return nil, invalid(FieldError{"account_id", "too_short", "must not be empty: leave it out for all accounts"})
	}
	account, err := who.scope(in.Body.AccountID.value)
	if err != nil {
		return nil, err
	}
	if found := checkText("account_id", in.Body.AccountID.value, maxAccountIDBytes); len(found) > 0 {
		return nil, invalid(found...)
	}
	pattern, err := db.RecipientPattern(in.Body.Recipient)
	if err != nil {
		return nil, invalid(FieldError{"recipient", "invalid", err.Error()})
	}
	limit, lock := int64(maxRunningErasuresOfAdmins), "" // no account has an empty name
	if account != nil {
		limit, lock = maxRunningErasures, *account
	}
	err = s.inTx(ctx, func(q *db.Queries) error {
		if err := q.LockAccount(ctx, lock); err != nil {
			return fmt.Errorf("lock account: %w", err)
		}
		running, err := q.CountRunningErasures(ctx, account)
		switch {
		case err != nil:
			return fmt.Errorf("count erasures: %w", err)
		case running >= limit:
			return fail(codeLimitReached, fmt.Sprintf("%d erasures are running: wait for one to end", running))
		}
		id, err := q.CreateErasure(ctx, db.CreateErasureParams{AccountID: account, Pattern: pattern})
		if err != nil {
			return fmt.Errorf("store erasure: %w", err)
		}
		row, err := q.GetErasure(ctx, db.GetErasureParams{ID: id, AccountID: account})
		if err != nil {
			return fmt.Errorf("read erasure: %w", err)
		}
		out = &erasureResponse{erasureOf(row)}
		// Of nobody: an erasure would otherwise leave a note of whom it was about.
		return q.Audit(ctx, db.Change{KeyID: &who.keyID, AccountID: account, Action: "recipient.erase", ObjectID: out.Body.ID})
	})
	return out, err
}

func (s *server) getErasure(ctx context.Context, who caller, in *erasureParams) (*erasureResponse, error) {
	id, err := db.ParseID(db.ErasurePrefix, in.ID)
	if err != nil {
		return nil, notFound()
	}
	row, err := s.queries.GetErasure(ctx, db.GetErasureParams{ID: id, AccountID: who.account})
	if err != nil {
		return nil, fmt.Errorf("read erasure: %w", err)
	}
	return &erasureResponse{erasureOf(row)}, nil
}

func erasureOf(row db.GetErasureRow) Erasure {
	return Erasure{
		ID: db.FormatID(db.ErasurePrefix, row.ID), AccountID: row.AccountID, DryRun: row.IsDryRun, State: row.State, Phase: row.Phase, Scanned: row.ScannedCount,
		Matched: ErasedCounts{
			Outbox: row.OutboxCount, Events: row.EventCount, Deliveries: row.DeliveryCount, Attempts: row.AttemptCount, DeadLetters: row.DeadLetterCount,
			Quarantine: row.QuarantineCount, DedupeKeys: row.DedupeKeyCount, TestDeliveries: row.TestDeliveryCount,
		},
		CreatedAt: Timestamp(row.CreatedAt), EndedAt: optionalTimestamp(row.EndedAt),
	}
}
