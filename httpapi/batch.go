package httpapi

import (
	"slices"
	"strings"
	"time"

	"mailhook/db"
	"mailhook/db/format"
)

const (
	maxBatchWait = time.Minute
	// defaultBatchWait is what a batch without max_wait waits.
	defaultBatchWait = time.Second
)

type batchInput struct {
	MaxEvents optional[int32]  `json:"max_events,omitempty" minimum:"1" maximum:"1000" doc:"How many events one request carries at most. Required."`
	MaxWait   optional[string] `json:"max_wait,omitempty" doc:"How long the first event of a request waits for others: 0s to 60s. Default: 1s."`
}

// A Batch says that requests carry several events, in an array.
type Batch struct {
	MaxEvents int32  `json:"max_events"`
	MaxWait   string `json:"max_wait" example:"1s"`
}

// applyBatch puts the batch of an input into a subscription.
func applyBatch(in optional[batchInput], to *db.Subscription) []FieldError {
	if in.null {
		to.BatchMaxEvents, to.BatchMaxWait = nil, nil
		return nil
	}
	found := applyBatchBounds(in.value, to)
	if to.BatchMaxEvents == nil && in.set && len(found) == 0 {
		found = append(found, FieldError{"batch.max_events", "required", "is required, from 1 to 1000"})
	}
	return found
}

func applyBatchBounds(in batchInput, to *db.Subscription) (found []FieldError) {
	switch {
	case in.MaxEvents.null:
		found = append(found, FieldError{"batch.max_events", "required", "is required, from 1 to 1000; set batch to null to have none"})
	case in.MaxEvents.set:
		to.BatchMaxEvents = &in.MaxEvents.value
	}
	if to.BatchMaxEvents == nil {
		return found
	}
	wait := defaultBatchWait
	if to.BatchMaxWait != nil && !in.MaxWait.null {
		wait = *to.BatchMaxWait
	}
	if in.MaxWait.isValue() {
		given, wrong := checkDuration("batch.max_wait", in.MaxWait.value, 0, maxBatchWait)
		wait, found = given, append(found, wrong...)
	}
	to.BatchMaxWait = &wait
	return found
}

// formatsWithArrays names the formats of a channel that can be in batches.
func formatsWithArrays(channel string) string {
	names := slices.DeleteFunc(format.Names(channel), func(name string) bool {
		f, _ := format.Find(name)
		return f.Arrays == format.NoArrays
	})
	if len(names) == 0 {
		return "none of channel " + channel
	}
	return strings.Join(names, ", ")
}

func batchOf(row db.Subscription) *Batch {
	if row.BatchMaxEvents == nil {
		return nil
	}
	return &Batch{*row.BatchMaxEvents, formatSeconds(valueOf(row.BatchMaxWait))}
}
