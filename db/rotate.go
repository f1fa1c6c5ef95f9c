package db

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// resealRows is how many sealed values are opened, sealed and stored in one step.
const resealRows = 500

// A Rotation is what came of moving an installation to another master key.
type Rotation struct {
	// KeyID is the key that seals from now on; PreviousKeyID the one before, the same where there was none to leave.
	KeyID         string `json:"key_id"`
	PreviousKeyID string `json:"previous_key_id"`
	// IsFirst: the installation had no key before.
	IsFirst bool `json:"is_first"`
	// Resealed counts the values that were sealed anew; Unopened are those that no key of this ring opens.
	Resealed int64           `json:"resealed"`
	Unopened []UnopenedValue `json:"unopened"`
	// RemovableKeyIDs are keys of the ring that this or an earlier rotation has left, and that nothing is sealed with any more.
	RemovableKeyIDs []string `json:"removable_key_ids"`
	// UnusedKeyIDs are keys of the ring that nothing is sealed with and no rotation is known to have left: new ones, it seems.
	UnusedKeyIDs []string        `json:"unused_key_ids"`
	left         map[string]bool // keys whose values were sealed anew
}

// Misplaced says that nothing was done because the first key is the one in use already, while a new one stands behind it.
func (r *Rotation) Misplaced() bool {
	return r.PreviousKeyID == r.KeyID && !r.IsFirst && r.Resealed == 0 && len(r.UnusedKeyIDs) > 0
}

// An UnopenedValue is left as it was: its key is not in the ring, or it was changed.
type UnopenedValue struct {
	SubscriptionID string `json:"subscription_id"`
	Kind           string `json:"kind"`
	KeyID          string `json:"key_id"`
	Reason         string `json:"reason"`
}

// Rotate makes the first key of the ring the one that seals, and then seals with it, step by step, what others have sealed.
// Workers and API go on meanwhile. Each step stands by itself: after an end in between, run it again. It is refused while a
// live worker lacks the new key. progress is told of every step.
func Rotate(ctx context.Context, pool *Pool, ring *Keyring, progress func(resealed int64)) (*Rotation, error) {
	r := &Rotation{KeyID: ring.First().ID, Unopened: []UnopenedValue{}, RemovableKeyIDs: []string{}, UnusedKeyIDs: []string{}, left: map[string]bool{}}
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) (err error) {
		r.PreviousKeyID, err = moveKey(ctx, New(tx), ring)
		return err
	})
	if err != nil {
		return nil, err
	}
	if r.PreviousKeyID == "" {
		r.PreviousKeyID, r.IsFirst = r.KeyID, true
	}
	q := New(pool)
	for _, kind := range []string{SealedSecret, SealedHeaders, SealedAuth, SealedChannel} {
		if err := r.reseal(ctx, q, ring, kind, progress); err != nil {
			return nil, fmt.Errorf("seal %s anew: %w", kind, err)
		}
	}
	return r, r.judge(ctx, q, ring)
}

// judge tells the keys that may be taken away from those that are still to come.
func (r *Rotation) judge(ctx context.Context, q *Queries, ring *Keyring) error {
	sealed, err := q.CountSealed(ctx)
	if err != nil {
		return fmt.Errorf("count what is sealed: %w", err)
	}
	left, err := q.ListLeftKeys(ctx)
	if err != nil {
		return fmt.Errorf("list keys that rotations have left: %w", err)
	}
	for _, id := range ring.IDs() {
		switch {
		case id == r.KeyID || slices.ContainsFunc(sealed, func(row CountSealedRow) bool { return row.KeyID == id }):
		case r.left[id] || slices.Contains(left, id):
			r.RemovableKeyIDs = append(r.RemovableKeyIDs, id)
		default:
			r.UnusedKeyIDs = append(r.UnusedKeyIDs, id)
		}
	}
	return nil
}

// moveKey makes the first key of the ring the installation's, and answers which was before, if any. Its lock comes after all transactions that seal with the key
// before and all workers that register by it, and before all others.
func moveKey(ctx context.Context, q *Queries, ring *Keyring) (previous string, err error) {
	next := ring.First().ID
	if previous, err = q.LockMasterKey(ctx); err != nil {
		return "", fmt.Errorf("lock the master key: %w", err)
	}
	if previous != "" && ring.Find(previous) == nil {
		return "", ring.lacks(previous)
	}
	// Also where a rotation before this one has set it: what that one left is sealed now.
	workers, err := q.ListWorkersWithoutKey(ctx, next)
	if err != nil {
		return "", fmt.Errorf("list workers: %w", err)
	}
	if len(workers) > 0 {
		names := make([]string, len(workers))
		for i, w := range workers {
			names[i] = fmt.Sprintf("%s (pid %d)", w.Hostname, w.Pid)
		}
		return "", fmt.Errorf("the master key %s is not at every worker: restart %s with it first, and every API process", next, strings.Join(names, ", "))
	}
	if err := q.SetMasterKey(ctx, next); err != nil {
		return "", fmt.Errorf("set the master key: %w", err)
	}
	if previous == "" || previous == next {
		return previous, nil
	}
	return previous, q.Audit(ctx, Change{Action: "master_key.rotate", Before: map[string]any{"key_id": previous}, After: map[string]any{"key_id": next}})
}

// reseal walks over the values of a kind until none is left but those that cannot be opened. A walk leaves out what is locked.
func (r *Rotation) reseal(ctx context.Context, q *Queries, ring *Keyring, kind string, progress func(int64)) error {
	for {
		var left bool
		var unopened []UnopenedValue
		for after := (uuid.UUID{}); ; {
			if current, err := q.GetMasterKeyID(ctx); err != nil || current != r.KeyID {
				return cmp.Or(err, fmt.Errorf("another rotation has gone on to the master key %s", current))
			}
			rows, err := q.ListSealed(ctx, ListSealedParams{Kind: kind, KeyID: r.KeyID, AfterID: after, MaxRows: resealRows})
			if err != nil {
				return err
			}
			if len(rows) == 0 {
				break
			}
			after = rows[len(rows)-1].ID
			opened, refused := sealAnew(ring, kind, rows)
			unopened = append(unopened, refused...)
			stored, err := opened.store(ctx, q, r.KeyID, kind)
			if err != nil {
				return err
			}
			left = left || stored < int64(len(opened.ids))
			r.Resealed += stored
			for _, id := range opened.oldKeyIDs {
				r.left[id] = true
			}
			progress(r.Resealed)
		}
		if !left {
			r.Unopened = append(r.Unopened, unopened...)
			return nil
		}
		select { // for those who hold the locks
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// resealed are values sealed anew, and the keys that had sealed them.
type resealed struct {
	ids       []uuid.UUID
	oldKeyIDs []string
	sealed    [][]byte
}

func sealAnew(ring *Keyring, kind string, rows []ListSealedRow) (opened resealed, refused []UnopenedValue) {
	for _, row := range rows {
		plain, err := ring.Open(kind, row.SubscriptionID, row.KeyID, row.Sealed)
		if err != nil {
			refused = append(refused, UnopenedValue{FormatID(SubscriptionPrefix, row.SubscriptionID), kind, row.KeyID, err.Error()})
			continue
		}
		opened.ids = append(opened.ids, row.ID)
		opened.oldKeyIDs = append(opened.oldKeyIDs, row.KeyID)
		opened.sealed = append(opened.sealed, ring.First().Seal(kind, row.SubscriptionID, plain))
	}
	return opened, refused
}

func (o resealed) store(ctx context.Context, q *Queries, keyID, kind string) (stored int64, err error) {
	if len(o.ids) == 0 {
		return 0, nil
	}
	if kind == SealedSecret {
		return q.ResealSecrets(ctx, ResealSecretsParams{KeyID: keyID, IDs: o.ids, OldKeyIDs: o.oldKeyIDs, Sealed: o.sealed})
	}
	return q.ResealCredentials(ctx, ResealCredentialsParams{KeyID: keyID, Kind: kind, IDs: o.ids, OldKeyIDs: o.oldKeyIDs, Sealed: o.sealed})
}
