package worker

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"mailhook/db"
	"mailhook/db/format"
)

// testSend serves the test sends that people ask for through the API: ahead of all others, outside the slots, in any
// status of the subscription, never retried, not counted. A stop breaks them off: somebody sits before them.
func (w *Worker) testSend(ctx context.Context) {
	var sends sync.WaitGroup
	defer sends.Wait()
	for ctx.Err() == nil {
		var rows []db.ClaimTestDeliveriesRow
		err := call(ctx, func(ctx context.Context) (err error) {
			rows, err = w.q.ClaimTestDeliveries(ctx, w.identity.get())
			return err
		})
		w.complain(ctx, "claim test deliveries", err)
		for _, row := range rows {
			sends.Go(func() { w.sendTest(ctx, row) })
		}
		if len(rows) > 0 {
			continue
		}
		select {
		case <-ctx.Done():
		case <-w.tests:
		}
	}
}

func (w *Worker) sendTest(ctx context.Context, row db.ClaimTestDeliveriesRow) {
	o, request := w.attemptTest(ctx, row)
	finished := db.FinishTestDeliveryParams{
		ID: row.ID, ResponseExcerpt: o.excerpt, RequestHeaders: request.headers, ContentType: request.contentType, RequestBody: request.body,
	}
	if o.word != "" {
		finished.Outcome = &o.word
	}
	if !row.IsPreview {
		duration := int32(o.duration.Milliseconds()) //nolint:gosec // bounded by the timeout
		finished.DurationMS = &duration
	}
	if code := int16(o.statusCode); code != 0 { //nolint:gosec // bounded by HTTP
		finished.StatusCode = &code
	}
	err := w.persist(ctx, "record test delivery", func(ctx context.Context) error { return w.q.FinishTestDelivery(ctx, finished) })
	w.complain(ctx, "record test delivery", err)
}

// attemptTest sends, or for a preview only makes the request: its outcome is then empty unless that fails.
func (w *Worker) attemptTest(ctx context.Context, row db.ClaimTestDeliveriesRow) (o outcome, request shownRequest) {
	d := &delivery{id: row.ID, subscriptionID: row.SubscriptionID}
	failed := outcome{delivery: d, word: outcomeRenderFailed}
	var err error
	if d.event, err = w.testEvent(ctx, row); err != nil {
		w.complain(ctx, "read sample", err)
		return failed, request
	}
	// Read anew: the test is often the first thing after a change.
	if err := w.cache.read(ctx, map[uuid.UUID]bool{row.SubscriptionID: true}); err != nil {
		w.complain(ctx, "load subscriptions", err)
		return failed, request
	}
	s := w.cache.get(row.SubscriptionID)
	if s == nil || s.url == "" {
		return failed, request
	}
	s = s.in(row.Format)
	sender := w.client.newSender(ctx)
	defer sender.close()
	sender.show = func(r *http.Request) { request = show(r, s) }
	if !row.IsPreview {
		o = sender.attempt(s, d)
		return o, request
	}
	m, err := s.message(d)
	if err != nil {
		failed.word = requestOutcome(err)
		return failed, request
	}
	made, err := sender.request(s, m, time.Now())
	if err != nil {
		failed.word = requestOutcome(err)
		return failed, request
	}
	sender.show(made)
	return outcome{delivery: d}, request
}

// testEvent is a sample of a type, empty where there is none. Its id has the form of an event's, and is that of none: id 0 is
// never given out by the outbox.
func (w *Worker) testEvent(ctx context.Context, row db.ClaimTestDeliveriesRow) (*event, error) {
	var sample db.EventTypeSampleRow
	err := call(ctx, func(ctx context.Context) (err error) {
		sample, err = w.q.EventTypeSample(ctx, row.EventType)
		return err
	})
	if errors.Is(err, pgx.ErrNoRows) {
		sample, err = db.EventTypeSampleRow{EventType: row.EventType, Sample: []byte("{}")}, nil
	}
	return &event{
		id: db.EventID{InsertedAt: row.CreatedAt.Truncate(time.Microsecond), ID: 0, Installation: w.installation},
		Event: format.Event{
			Type: sample.EventType, OccurredAt: row.CreatedAt, Recipient: sample.Recipient, MessageID: sample.MessageID, CampaignID: sample.CampaignID,
			SendingDomain: sample.SendingDomain, SendingNode: sample.SendingNode, Bridge: sample.Bridge, DedicatedIP: sample.DedicatedIP, Data: sample.Sample, IsTest: true,
		},
	}, err
}

// A shownRequest is what people may see of a request.
type shownRequest struct {
	headers           json.RawMessage
	contentType, body *string
}

// show takes the credentials out: the values of the headers that the customer set, and what a channel keeps secret.
func show(r *http.Request, s *subscription) (shown shownRequest) {
	headers := map[string]string{}
	for name := range r.Header {
		if value := r.Header.Get(name); value != "" && name != "Content-Type" {
			headers[name] = value
		}
	}
	for name := range s.headers {
		headers[http.CanonicalHeaderKey(name)] = hidden
	}
	reader, err := r.GetBody()
	if err != nil {
		return shown
	}
	body, err := io.ReadAll(reader)
	if err != nil {
		return shown // bytes in memory: it does not happen
	}
	if s.target != nil {
		body = hide(body, s.hidden)
	}
	text, contentType := strings.ToValidUTF8(string(body), "\uFFFD"), r.Header.Get("Content-Type")
	if shown.headers, err = json.Marshal(headers); err == nil {
		shown.contentType, shown.body = &contentType, &text
	}
	return shown
}
