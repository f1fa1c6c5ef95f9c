package httpapi

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"mailhook/db"
)

// summaryOfState is for events that were not, or are no more, matched.
func summaryOfState(event EventWithDeliveries) string {
	switch event.State {
	case "quarantined":
		return "The event is in quarantine: " + valueOf(event.Reason) + ". It goes on once it is released."
	}
	return "A person was erased from the event: it is not delivered any more."
}

// standstillOf says why no worker does anything; "" where one does.
func standstillOf(delays db.GetDelaysRow) string {
	switch {
	case !delays.DeliveryEnabled:
		return "delivery is switched off for the whole installation (mailhook delivery on)"
	case !delays.HasWorkers:
		return "no worker has been seen for 15 seconds"
	}
	return ""
}

// delayOf says why a delivery of the subscription may be due and not go out; "" where nothing is known.
func (s *server) delayOf(ctx context.Context, to db.Subscription) (string, error) {
	delays, err := s.queries.GetDelays(ctx, to.ID)
	if err != nil {
		return "", fmt.Errorf("read what delays: %w", err)
	}
	switch {
	case standstillOf(delays) != "":
		return standstillOf(delays), nil
	case delays.IsReleasing:
		return fmt.Sprintf("what had been held goes out again, oldest first, at most %v a second", delays.ReleaseRate), nil
	case delays.Leased > 0:
		limit := fmt.Sprintf("max_in_flight is %d", to.MaxInFlight)
		if to.RateLimitPerSecond != nil {
			limit += fmt.Sprintf(", rate_limit_per_second %v", *to.RateLimitPerSecond)
		}
		return fmt.Sprintf("workers have %d others of the subscription (%s)", delays.Leased, limit), nil
	}
	return "", nil
}

// summary is the reason in a sentence: what became of the delivery or, without one, why there is none, as far as all was read.
func (s *server) summary(ctx context.Context, e Explanation, complete bool, to db.Subscription) (string, error) {
	if e.Delivery != nil {
		return s.summaryOfDelivery(ctx, *e.Delivery, to)
	}
	unread := ""
	if !complete {
		unread = " Not all that was sent to it since was read: GET /v1/deliveries with subscription_id, since and until finds a delivery that there is."
	}
	if to.DeletedAt != nil {
		return "Not delivered: the subscription was deleted at " + at(*to.DeletedAt) + "." + unread, nil
	}
	if failed := firstFailed(e.Conditions); failed != nil {
		return "Not delivered: " + sentenceOf(*failed) + "." + unread, nil
	}
	if !complete {
		return "The subscription matches the event as it is today." + unread, nil
	}
	return "The subscription matches the event as it is today, and there is no delivery: it was another when the event was dispatched, or its attempts are past their retention. A replay sends it.", nil
}

func (s *server) summaryOfDelivery(ctx context.Context, d DeliveryWithAttempts, to db.Subscription) (string, error) {
	tried := "no attempt was made"
	if n := len(d.Attempts); n > 0 {
		last := d.Attempts[n-1]
		tried = fmt.Sprintf("attempt %d ended as %s (%s)", last.Number, last.Outcome, wordsOf(last.Outcome))
	}
	switch d.Status {
	case "delivered":
		return fmt.Sprintf("Delivered at %s: attempt %d was accepted.", at(time.Time(*d.EndedAt)), d.RetryCount+1), nil
	case "exhausted":
		return fmt.Sprintf("Given up at %s, %s: %s. It is a dead letter, and can be replayed.", at(time.Time(*d.EndedAt)), reasonOf(d.EndedReason), tried), nil
	case "cancelled":
		return fmt.Sprintf("Cancelled at %s, %s; %s.", at(time.Time(*d.EndedAt)), reasonOf(d.EndedReason), tried), nil
	case "sending":
		return "A worker has it: its request is under way, or waits for its batch or its turn; before it " + tried + ".", nil
	case "held":
		held, err := s.holdOf(ctx, d.HeldReason, to)
		return "Held, not dropped: " + held + "; " + tried + ".", err
	}
	if d.NextAttemptAt == nil { // waits_for says so
		return "Waiting for an earlier delivery of the same message or recipient; " + tried + ".", nil
	}
	due := "due at " + at(time.Time(*d.NextAttemptAt))
	if time.Time(*d.NextAttemptAt).Before(time.Now()) {
		delay, err := s.delayOf(ctx, to)
		if err != nil {
			return "", err
		}
		if delay != "" {
			due += ", and late: " + delay
		}
	}
	return fmt.Sprintf("Waiting for the next attempt, %s; %s.", due, tried), nil
}

// summaryAhead is for an event that all conditions let pass.
func (s *server) summaryAhead(ctx context.Context, event db.Event, to db.Subscription) (string, error) {
	health, err := s.healthOf(ctx, to)
	if err != nil {
		return "", err
	}
	account, err := s.queries.GetAccount(ctx, to.AccountID)
	if err != nil {
		return "", fmt.Errorf("read account: %w", err)
	}
	var reason string
	switch {
	case to.Status != "active":
		reason = to.Status
	case account.Status == "suspended":
		reason = "account"
	case health.OpenedAt != nil, health.WaitUntil != nil && health.WaitUntil.After(time.Now()):
		reason = "circuit"
	default:
		return "The event would be delivered, as " + event.EventType + ".", nil
	}
	held, err := s.holdOf(ctx, reason, to)
	return "The event would be held: " + held + ".", err
}

// holdOf says why and since when deliveries are held.
func (s *server) holdOf(ctx context.Context, reason string, to db.Subscription) (string, error) {
	health, err := s.healthOf(ctx, to)
	if err != nil {
		return "", err
	}
	switch reason {
	case "paused":
		return fmt.Sprintf("the subscription is paused (%s) since %s; resume it", valueOf(to.StatusReason), at(to.StatusChangedAt)), nil
	case "suspended":
		return fmt.Sprintf("the subscription is suspended (%s) since %s; mend the endpoint and resume it", valueOf(to.StatusReason), at(to.StatusChangedAt)), nil
	case "account":
		account, err := s.queries.GetAccount(ctx, to.AccountID)
		if err != nil {
			return "", fmt.Errorf("read account: %w", err)
		}
		if account.StatusChangedAt == nil { // its settings are gone by now
			return "the account was suspended", nil
		}
		return "the account is suspended since " + at(*account.StatusChangedAt), nil
	}
	if health.OpenedAt != nil {
		return fmt.Sprintf("the endpoint fails (%s), so its circuit is open since %s; the next probe is due at %s", valueOf(health.LastOutcome), at(*health.OpenedAt), at(*health.OpenUntil)), nil
	}
	if health.WaitUntil != nil {
		if health.LastFailedAt == nil {
			return "the endpoint has asked for a pause until " + at(*health.WaitUntil), nil
		}
		return fmt.Sprintf("the endpoint has asked for a pause at %s, until %s", at(*health.LastFailedAt), at(*health.WaitUntil)), nil
	}
	return "it goes out in a moment", nil
}

// sentenceOf says how a condition failed, with what was wanted and what was there.
func sentenceOf(c Condition) string {
	switch c.Condition {
	case "status":
		return "the subscription is inactive: resume it"
	case "event_type":
		return fmt.Sprintf("the type %v is not selected (event_types is %s)", c.Actual, shown(c.Expected))
	case "created_before":
		return fmt.Sprintf("the subscription was created at %s, after the event was written; a replay or backfill sends it", strings.Trim(shown(c.Expected), `"`))
	case "duplicate":
		return fmt.Sprintf("it repeats the dedupe key of %v, which was delivered in its place", c.Actual)
	case "about_itself":
		return "it tells of this subscription itself"
	case "account":
		return "it belongs to another account"
	case "deleted":
		return "the subscription was deleted at " + strings.Trim(shown(c.Actual), `"`)
	}
	if c.Actual == nil {
		return fmt.Sprintf("the filter %s asks for %s, and the event has none", c.Condition, shown(c.Expected))
	}
	return fmt.Sprintf("the filter %s asks for %s, and the event has %s", c.Condition, shown(c.Expected), shown(c.Actual))
}

// shown is a value in a sentence, cut where it is long.
func shown(value any) string {
	text, err := json.Marshal(value)
	if err != nil {
		return "something else"
	}
	return cutField(string(text))
}

func at(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

func reasonOf(ended *string) string {
	switch reason := valueOf(ended); reason {
	case "", "schedule_ended":
		return "when its schedule ended"
	case "deactivated":
		return "because the subscription was deactivated"
	case "deleted":
		return "because the subscription was deleted"
	case "erased":
		return "because a person was erased from the event"
	case "expired":
		return "because it had been held for too long"
	case "overflow":
		return "because too many were held"
	case "permanent":
		return "because what the channel sends to will never take it"
	case "unrecordable":
		return "because its outcome could not be written"
	default:
		return "as " + reason
	}
}
