package httpapi

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/jackc/pgx/v5/pgconn"

	"mailhook/db"
)

// What a preview may cost: previewScan events, in slices of previewSlice, and previewTime for each slice and, but for one
// slice more, for all.
const (
	previewScan    = 100_000
	previewSlice   = 2000
	previewTime    = 3 * time.Second
	previewSamples = 5
)

// A Preview is what a subscription would have got in the last 24 hours.
type Preview struct {
	Matched       int        `json:"matched" doc:"Events that it would have got."`
	Scanned       int        `json:"scanned" doc:"Events of the account that were looked at, newest first."`
	Complete      bool       `json:"complete" doc:"Whether those are all of the last 24 hours. At most 100,000 are looked at, for a few seconds."`
	Since         Timestamp  `json:"since" doc:"From here on events were looked at: 24 hours ago or, if not complete, the oldest looked at."`
	PeakPerSecond int        `json:"peak_per_second" doc:"The most of them within one second."`
	FirstAt       *Timestamp `json:"first_at" doc:"When the host wrote the oldest of them."`
	LastAt        *Timestamp `json:"last_at" doc:"When the host wrote the newest."`
	Samples       []Event    `json:"samples" nullable:"false" doc:"The newest 5 of them."`
}

type previewRequest struct {
	Body struct {
		AccountID  string                 `json:"account_id,omitempty" doc:"Required with an admin key."`
		EventTypes optional[[]string]     `json:"event_types" maxItems:"50" doc:"As in a subscription."`
		Filters    optional[filtersInput] `json:"filters,omitempty" doc:"As in a subscription."`
		Format     optional[formatName]   `json:"format,omitempty" doc:"As in a subscription: its words for event types are taken, too."`
	} `nameHint:"PreviewBody"`
}

type previewResponse struct{ Body Preview }

func (s *server) addPreview(api huma.API) {
	register(s, api, huma.Operation{
		OperationID: "preview-subscription", Method: http.MethodPost, Path: "/v1/subscriptions/preview", Tags: []string{"subscriptions"},
		Summary:     "Say what a subscription would have got in the last 24 hours",
		Description: "Nothing is stored.",
	}, s.preview)
}

func (s *server) preview(ctx context.Context, who caller, in *previewRequest) (*previewResponse, error) {
	account, err := who.scope(in.Body.AccountID)
	if err != nil {
		return nil, err
	}
	if account == nil {
		return nil, invalid(FieldError{"account_id", "required", "is required with an admin key"})
	}
	like := defaultSubscription()
	var wrong []FieldError
	if in.Body.EventTypes.isValue() {
		format := string(in.Body.Format.pick(formatName(like.Format), formatName(like.Format)))
		if in.Body.EventTypes.value, wrong, err = s.eventTypesOf(ctx, s.queries, "event_types", in.Body.EventTypes.value, format, nil); err != nil {
			return nil, err
		}
	}
	found := append(applyEventTypes(in.Body.EventTypes, &like), wrong...)
	if found = append(found, applyFilters(in.Body.Filters, &like)...); len(found) > 0 {
		return nil, invalid(found...)
	}
	p, err := s.lookBack(ctx, *account, like, 24*time.Hour)
	if err != nil {
		return nil, err
	}
	rows, err := s.queries.ListEventsByKey(ctx, p.keys)
	if err != nil {
		return nil, fmt.Errorf("read events: %w", err)
	}
	for _, row := range rows {
		p.out.Samples = append(p.out.Samples, s.eventOf(row))
	}
	return &previewResponse{p.out}, nil
}

// lookBack counts what a subscription like this one would have got over a time that ends now. It is bounded.
func (s *server) lookBack(ctx context.Context, account string, like db.Subscription, over time.Duration) (*previewer, error) {
	end, err := s.scans.begin(ctx, account)
	if err != nil {
		return nil, err
	}
	defer end()
	filters, err := s.queries.ReadFilters(ctx, db.ReadFiltersParams{
		SendingDomain: orEmpty(like.FilterSendingDomain), DedicatedIP: orEmpty(like.FilterDedicatedIp), FilterConditions: like.FilterConditions, Over: over,
	})
	if err != nil {
		return nil, fmt.Errorf("read filters: %w", err)
	}
	p := &previewer{seconds: map[int64]int{}, out: Preview{Since: Timestamp(filters.Since), Samples: []Event{}}}
	err = s.inTx(ctx, func(q *db.Queries) error {
		return p.scan(ctx, q, db.ScanPreviewParams{
			AccountID: account, EventTypes: like.EventTypes, FilterSendingDomain: filters.SendingDomain, FilterSendingNode: orEmpty(like.FilterSendingNode),
			FilterBridge: orEmpty(like.FilterBridge), FilterDedicatedIp: filters.DedicatedIP, Filter: filters.Filter,
			Since: filters.Since, BeforeAt: farFuture(), BeforeID: math.MaxInt64, MaxRows: previewSlice,
		})
	})
	if err != nil && !isOverTime(err) { // else what was found until then is told
		return nil, fmt.Errorf("look back: %w", err)
	}
	return p, nil
}

// isOverTime says whether the database ended a statement for its time.
func isOverTime(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && pgErr.Code == "57014"
}

// A previewer counts what was looked at.
type previewer struct {
	out     Preview
	seconds map[int64]int
	keys    db.ListEventsByKeyParams
}

// scan looks at slices until nothing is left, or the bound or the time is over.
func (p *previewer) scan(ctx context.Context, q *db.Queries, params db.ScanPreviewParams) error {
	p.keys = db.ListEventsByKeyParams{InsertedAts: []time.Time{}, IDs: []int64{}}
	if err := q.BoundScans(ctx, fmt.Sprint(previewTime.Milliseconds())); err != nil {
		return err
	}
	for started := time.Now(); p.out.Scanned < previewScan && time.Since(started) < previewTime; {
		rows, err := q.ScanPreview(ctx, params)
		if err != nil {
			return err
		}
		for _, row := range rows {
			p.count(row)
			params.BeforeAt, params.BeforeID = row.InsertedAt, row.ID
		}
		if len(rows) < int(params.MaxRows) {
			p.out.Complete, p.out.Since = true, Timestamp(params.Since)
			return nil
		}
		p.out.Since = Timestamp(params.BeforeAt)
	}
	return nil
}

func (p *previewer) count(row db.ScanPreviewRow) {
	p.out.Scanned++
	if !row.IsMatch {
		return
	}
	if p.out.Matched++; p.out.Matched == 1 {
		p.out.LastAt = optionalTimestamp(&row.InsertedAt)
	}
	p.out.FirstAt = optionalTimestamp(&row.InsertedAt)
	second := row.InsertedAt.Unix()
	p.seconds[second]++
	p.out.PeakPerSecond = max(p.out.PeakPerSecond, p.seconds[second])
	if len(p.keys.IDs) < previewSamples {
		p.keys.InsertedAts, p.keys.IDs = append(p.keys.InsertedAts, row.InsertedAt), append(p.keys.IDs, row.ID)
	}
}
