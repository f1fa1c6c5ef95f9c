package httpapi

import (
	"context"
	"fmt"
	"math"
	"time"

	"mailhook/db"
)

// countReplay fills in how many there are to deliver, and whether there may be more: counting is bounded as a preview is.
func (s *server) countReplay(ctx context.Context, p *db.CreateReplayParams) error {
	end, err := s.scans.begin(ctx, p.AccountID)
	if err != nil {
		return err
	}
	defer end()
	p.MatchedAtLeast = true
	err = s.inTx(ctx, func(q *db.Queries) error { return countEvents(ctx, q, p) })
	if err != nil && !isOverTime(err) {
		return fmt.Errorf("count what to replay: %w", err)
	}
	return nil
}

// countEvents looks at slices of the account's events, or of those with dead letters, newest first: an event may be dispatched long after it was written,
// so there is no end to this but the bound, the time, or the first event.
func countEvents(ctx context.Context, q *db.Queries, p *db.CreateReplayParams) error {
	if err := q.BoundScans(ctx, fmt.Sprint(previewTime.Milliseconds())); err != nil {
		return err
	}
	slice := db.ScanReplayParams{
		SubscriptionID: p.SubscriptionID, Source: p.Source, Since: p.Since, Until: p.Until, EventTypes: p.EventTypes,
		BeforeAt: farFuture(), BeforeID: math.MaxInt64, MaxRows: previewSlice,
	}
	started := time.Now()
	for scanned := int64(0); scanned < previewScan && time.Since(started) < previewTime; {
		row, err := q.ScanReplay(ctx, slice)
		if err != nil {
			return err
		}
		p.Matched += row.Matched
		scanned += row.Scanned
		slice.BeforeAt, slice.BeforeID = row.BeforeAt, row.BeforeID
		if row.Scanned < int64(slice.MaxRows) {
			p.MatchedAtLeast = false
			return nil
		}
	}
	return nil
}

// retentionNote says kindly that a replay asks for more than there is; empty where it does not.
func (s *server) retentionNote(ctx context.Context, p db.CreateReplayParams) (string, error) {
	kept, err := s.queries.GetEventsKeptSince(ctx)
	if err != nil {
		return "", fmt.Errorf("read what is kept: %w", err)
	}
	if !p.Since.Before(kept) {
		return "", nil
	}
	return fmt.Sprintf("events are kept since %s: what was before is past its retention", kept.UTC().Format(time.DateOnly)), nil
}
