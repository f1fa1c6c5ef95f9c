package httpapi

import (
	"fmt"
	"strings"
	"testing"

	"mailhook/db"
	"mailhook/db/format"
)

func TestBatchSettings(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.create(t, b.acme, nil)
	path := "/v1/subscriptions/" + id
	for _, c := range []struct {
		patch any
		want  string
	}{
		{object{"name": "none"}, "<nil>"},
		{object{"batch": object{"max_events": 100}}, "map[max_events:100 max_wait:1s]"},
		{object{"batch": object{"max_wait": "1500ms"}}, "map[max_events:100 max_wait:1500ms]"},
		{object{"batch": object{"max_events": 1000, "max_wait": "60s"}}, "map[max_events:1000 max_wait:60s]"},
		{object{"batch": object{"max_events": 1, "max_wait": "0s"}}, "map[max_events:1 max_wait:0s]"},
		{object{"batch": object{"max_wait": nil}}, "map[max_events:1 max_wait:1s]"},
		{object{"name": "other"}, "map[max_events:1 max_wait:1s]"},
		{object{"batch": object{}}, "map[max_events:1 max_wait:1s]"},
		{object{"batch": nil}, "<nil>"},
	} {
		if got := b.must(t, 200, b.acme, "PATCH", path, c.patch); fmt.Sprint(got["batch"]) != c.want {
			t.Errorf("%v: %v, want %s", c.patch, got["batch"], c.want)
		}
	}
	for _, c := range []struct {
		batch       any
		field, code string
	}{
		{object{}, "batch.max_events", "required"},
		{object{"max_wait": "1s"}, "batch.max_events", "required"},
		{object{"max_events": nil}, "batch.max_events", "required"},
		{object{"max_events": 0}, "batch.max_events", "out_of_range"},
		{object{"max_events": 1001}, "batch.max_events", "out_of_range"},
		{object{"max_events": 10, "max_wait": "61s"}, "batch.max_wait", "out_of_range"},
		{object{"max_events": 10, "max_wait": "soon"}, "batch.max_wait", "invalid_duration"},
		{object{"max_events": 10, "size": 1}, "batch.size", "unknown_field"},
	} {
		b.mustFail(t, 422, c.field, c.code, b.acme, "PATCH", path, object{"batch": c.batch})
		b.mustFail(t, 422, c.field, c.code, b.acme, "POST", "/v1/subscriptions", subscription(object{"batch": c.batch}))
	}
}

// Batches need arrays and have no order; the answer names what can be chosen.
func TestWhereBatchesAreRefused(t *testing.T) {
	t.Parallel()
	ten := int32(10)
	of := optional[batchInput]{set: true, value: batchInput{MaxEvents: optional[int32]{set: true, value: ten}}}
	for _, channel := range []string{"web", "pushover", "slack", "teams"} {
		for _, name := range format.Names(channel) {
			f, _ := format.Find(name)
			row := db.Subscription{ChannelType: channel, Format: name, Ordering: "none", SuccessRule: "2xx"}
			found := append(applyBatch(of, &row), checkTogether(&row)...)
			if refused := f.Arrays == format.NoArrays; refused != (len(found) == 1) {
				t.Errorf("%s: %v", name, found)
			}
			if len(found) == 1 && (found[0].Field != "batch" || channel == "web" && !strings.Contains(found[0].Message, "standard")) {
				t.Errorf("%s: %v", name, found)
			}
			// A change of the format under a batch is refused as well.
			row.BatchMaxEvents = &ten
			if again := append(applyBatch(optional[batchInput]{}, &row), checkTogether(&row)...); len(again) != len(found) {
				t.Errorf("%s under a batch: %v", name, again)
			}
		}
	}
	for _, ordering := range []string{"message", "recipient"} {
		row := db.Subscription{ChannelType: "web", Format: "standard", Ordering: ordering, SuccessRule: "2xx"}
		if found := append(applyBatch(of, &row), checkTogether(&row)...); len(found) != 1 || found[0].Field != "ordering" || !strings.Contains(found[0].Message, "batch") {
			t.Errorf("ordering %s: %v", ordering, found)
		}
	}
}
