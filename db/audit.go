package db

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/google/uuid"
)

// A Change is one line of the audit log: who did what to which thing.
type Change struct {
	// KeyID is api_keys.id of the key that made the change; nil: a command did.
	KeyID *uuid.UUID
	// AccountID is whose thing it is; nil: the whole installation's.
	AccountID *string
	// Action is the kind of thing and the verb: subscription.update.
	Action string
	// ObjectID is the public id of the thing; empty where there is none.
	ObjectID string
	// Before and After are what changed, written as JSON; nil where there is nothing to show. No secrets, no values of headers,
	// no recipients, and of a URL
	// scheme, host and path only.
	Before, After any
}

// Audit writes a line of the audit log. Call it in the transaction of the change, so that there is no change without
// its line, and no line without its change.
func (q *Queries) Audit(ctx context.Context, c Change) error {
	params := InsertAuditParams{Actor: "command", ActorKeyID: c.KeyID, AccountID: c.AccountID, Action: c.Action}
	if c.KeyID != nil {
		params.Actor = "key"
	}
	if c.ObjectID != "" {
		params.ObjectID = &c.ObjectID
	}
	var err error
	if params.Before, err = auditJSON(c.Before); err != nil {
		return err
	}
	if params.After, err = auditJSON(c.After); err != nil {
		return err
	}
	if err := q.InsertAudit(ctx, params); err != nil {
		return fmt.Errorf("write audit log: %w", err)
	}
	return nil
}

func auditJSON(value any) ([]byte, error) {
	if value == nil {
		return nil, nil
	}
	text, err := json.Marshal(value)
	if err != nil {
		return nil, fmt.Errorf("write audit log: %w", err)
	}
	return text, nil
}
