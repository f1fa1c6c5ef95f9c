package httpapi

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"mailhook/db/dbtest"
)

func (b *bundle) quarantined(t *testing.T, account string, id int64) (public string) {
	t.Helper()
	return dbtest.QueryOne[string](t, b.DB, `
		INSERT INTO mailhook.quarantine (inserted_at, id, account_id, event_type, recipient, dedicated_ip, data, reason, error_code)
		VALUES (clock_timestamp(), $2, $1, 'email.sent', 'q@example.com', 'not an address', '[1]', 'invalid input syntax for type inet', '22P02')
		RETURNING mailhook.event_id(inserted_at, id)`, account, id)
}

// TestTimesThatNobodyCanWrite has what a host may well write, and dispatch puts into quarantine.
func TestTimesThatNobodyCanWrite(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, at := range []string{"infinity", "-infinity", "20000-01-01", "4000-01-01 BC"} {
		b.Exec(t, `INSERT INTO mailhook.quarantine (inserted_at, id, account_id, event_type, occurred_at, recipient, data, reason, error_code)
			VALUES (now(), nextval('mailhook.outbox_id_seq'), 'acme', repeat('x', 100000), $1::text::timestamptz, repeat('y', 100000), to_json(repeat('z', 400000)), 'x', 'MH004')`, at)
		b.Exec(t, "INSERT INTO mailhook.outbox (account_id, event_type, occurred_at, data) VALUES ('acme', 'email.sent', $1::text::timestamptz, to_json(repeat('z', 400000)))", at)
	}
	listed := b.walk(t, b.acme, "/v1/quarantine", "3")
	if len(listed) != 4 {
		t.Error(listed)
	}
	waiting := dbtest.QueryOne[[]string](t, b.DB, "SELECT array_agg(mailhook.event_id(inserted_at, id)) FROM mailhook.outbox")
	for _, id := range append(listed, waiting...) {
		got := b.must(t, 200, b.acme, "GET", "/v1/events/"+id, nil)
		if got["timestamp"] != got["inserted_at"] {
			t.Error(got["timestamp"])
		}
	}
}

func TestListEvents(t *testing.T) {
	t.Parallel()
	b := setup(t)
	start := time.Now().Add(-time.Hour).Truncate(time.Microsecond)
	var acme, evil, bounced, fourth []string
	for i := range 11 {
		// Two at each time: the order is by id, then.
		id := b.event(t, "acme", []string{"email.sent", "email.bounced.soft"}[i%2], fmt.Sprintf("r%d", i%4), start.Add(time.Duration(i/2)*time.Minute))
		acme = append([]string{id}, acme...)
		if i%2 == 1 {
			bounced = append([]string{id}, bounced...)
		}
		if i%4 == 3 {
			fourth = append([]string{id}, fourth...)
		}
		if i%3 == 0 {
			evil = append([]string{b.event(t, "evil", "email.sent", "r3", start.Add(-time.Duration(10-i)*time.Minute))}, evil...)
		}
	}
	at := func(minutes int) string {
		return start.Add(time.Duration(minutes) * time.Minute).UTC().Format("2006-01-02T15:04:05.999999Z")
	}
	for _, c := range []struct {
		key, query string
		want       []string
	}{
		{b.acme, "", acme},
		{b.evil, "", evil},
		{b.admin, "", append(slices.Clone(acme), evil...)},
		{b.admin, "account_id=evil", evil},
		{b.acme, "event_type=email", acme},
		{b.acme, "event_type=email.bounced", bounced},
		{b.acme, "recipient=r3", fourth},
		{b.admin, "recipient=r3", append(slices.Clone(fourth), evil...)},
		{b.acme, "since=" + at(5), acme[:1]},
		{b.acme, "until=" + at(1), acme[9:]},
		{b.acme, "since=" + at(1) + "&until=" + at(2), acme[7:9]},
	} {
		for _, limit := range []string{"1", "2", "5", "200"} {
			if got := b.walk(t, c.key, "/v1/events?"+c.query, limit); !slices.Equal(got, c.want) {
				t.Errorf("%s limit %s: got %v, want %v", c.query, limit, got, c.want)
			}
		}
	}
	page := b.must(t, 200, b.acme, "GET", "/v1/events?limit=1", nil)
	b.mustFail(t, 422, "cursor", "other_filters", b.acme, "GET", "/v1/events?recipient=x&cursor="+page["next_cursor"].(string), nil)
	b.mustFail(t, 422, "cursor", "other_filters", b.acme, "GET", "/v1/deliveries?cursor="+page["next_cursor"].(string), nil)
}

func TestPagesOfEventsAreBoundedInBytes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for range 40 {
		b.event(t, "acme", "email.sent", "r", time.Now())
	}
	b.Exec(t, `UPDATE mailhook.events SET data = json_build_object('x', repeat('y', 250000))`)
	page := b.must(t, 200, b.acme, "GET", "/v1/events?limit=200", nil)
	if n := len(ids(page)); n > 20 || n < 10 || page["next_cursor"] == nil {
		t.Errorf("a page of %d", n)
	}
	if got := b.walk(t, b.acme, "/v1/events", "200"); len(slices.Compact(got)) != 40 {
		t.Errorf("%d in all", len(got))
	}
}

func TestGetEvent(t *testing.T) {
	t.Parallel()
	b := setup(t)
	subscriptions := []string{b.create(t, b.acme, nil), b.create(t, b.acme, nil), b.create(t, b.acme, nil)}
	id := b.event(t, "acme", "email.sent", "r@example.com", time.Now())
	first := b.delivery(t, id, subscriptions[0])
	b.end(t, first, "delivered", "ok", 200)
	second := b.delivery(t, id, subscriptions[1])
	b.attempt(t, second)
	b.end(t, second, "exhausted", "dns", 0)
	third := b.delivery(t, id, subscriptions[2])
	b.delivery(t, b.event(t, "acme", "email.sent", "r", time.Now()), subscriptions[2])

	r := b.send(t, b.acme, "GET", "/v1/events/"+id, nil)
	if !strings.Contains(r.text, `"data":{"recipient":"r@example.com","sending_domain":"Mail.Example.com","dedicated_ip":"2001:DB8::1","reason":"x","n":1.50}`) {
		t.Error(r.text)
	}
	if r.body["state"] != "dispatched" || r.body["deliveries_complete"] != true || r.body["type"] != "email.sent" {
		t.Error(r.text)
	}
	var got []string
	for _, d := range r.body["deliveries"].([]any) {
		got = append(got, d.(object)["id"].(string)+" "+d.(object)["status"].(string))
	}
	if want := []string{third + " pending", second + " exhausted", first + " delivered"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}

	b.Exec(t, `UPDATE mailhook.events SET message_id = 'm-1', data = '{"ip_address": "192.0.2.7"}', occurred_at = '2026-01-02 03:04:05Z' WHERE mailhook.event_id(inserted_at, id) = $1`, id)
	told := b.must(t, 200, b.acme, "GET", "/v1/events/"+id, nil)
	data := told["data"].(object)
	if data["message_id"] != "m-1" || data["ip_address"] != "192.0.2.7" || data["recipient"] != "r@example.com" || told["timestamp"] != "2026-01-02T03:04:05.000Z" {
		t.Error(told)
	}

	b.Exec(t, "UPDATE mailhook.events SET duplicate_of = 'evt_x' WHERE mailhook.event_id(inserted_at, id) = $1", id)
	if got := b.must(t, 200, b.acme, "GET", "/v1/events/"+id, nil); got["state"] != "duplicate" || got["duplicate_of"] != "evt_x" {
		t.Error(got)
	}
	// The exhausted are found however busy the account was; that there may be others is said.
	b.Exec(t, "UPDATE mailhook.events SET duplicate_of = NULL")
	b.Exec(t, `INSERT INTO mailhook.attempts (started_at, id, delivery_id, subscription_id, account_id, event_inserted_at, event_id, event_type, number, outcome, delivery_created_at)
		SELECT now(), mailhook.uuid7(now() - interval '1 minute'), mailhook.uuid7(), mailhook.uuid7(), 'acme', now(), 0, 'email.sent', 1, 'dns', now() FROM generate_series(1, $1)`, scanRows)
	busy := b.must(t, 200, b.acme, "GET", "/v1/events/"+id, nil)
	if busy["deliveries_complete"] != false || len(busy["deliveries"].([]any)) != 2 {
		t.Error(busy["deliveries_complete"], busy["deliveries"])
	}
}

func TestGetUndispatchedEvent(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := dbtest.QueryOne[string](t, b.DB, `SELECT mailhook.emit('email.sent', account_id => 'acme', recipient => 'r', data => '{"a":1}')`)
	got := b.must(t, 200, b.acme, "GET", "/v1/events/"+id, nil)
	if got["state"] != "undispatched" || fmt.Sprint(got["data"]) != "map[a:1 recipient:r]" || got["type"] != "email.sent" {
		t.Error(got)
	}
	b.mustFail(t, 404, "", "not_found", b.evil, "GET", "/v1/events/"+id, nil)
	subscription := b.create(t, b.acme, nil)
	explained := b.must(t, 200, b.acme, "GET", "/v1/events/"+id+"/explain?subscription_id="+subscription, nil)
	if explained["matched"] != false || !strings.Contains(fmt.Sprint(explained["conditions"]), "undispatched") {
		t.Error(explained)
	}
}

// The data of an event is what receivers get: a leaf fills its field, and what is absent is left out.
func TestTheDataOfAnEventIsThatOfTheBody(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := dbtest.QueryOne[string](t, b.DB, `
		INSERT INTO mailhook.events (inserted_at, id, account_id, event_type, occurred_at, dispatched_at, recipient, data)
		SELECT now(), nextval('mailhook.outbox_id_seq'), 'acme', 'email.bounced.hard', now(), now(), 'r', '{"recipient":"other","bounce_type":"soft","empty":"","none":null,"n":1.50}'
		RETURNING mailhook.event_id(inserted_at, id)`)
	if got := b.must(t, 200, b.acme, "GET", "/v1/events/"+id, nil)["data"]; fmt.Sprint(got) != "map[bounce_type:hard n:1.5 recipient:r]" {
		t.Error(got)
	}
}

func TestQuarantine(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var acme []string
	for i := range 5 {
		acme = append([]string{b.quarantined(t, "acme", int64(1000-i))}, acme...)
	}
	evil := b.quarantined(t, "evil", 5)
	for _, limit := range []string{"1", "2", "5", "50"} {
		if got := b.walk(t, b.acme, "/v1/quarantine", limit); !slices.Equal(got, acme) {
			t.Errorf("got %v, want %v", got, acme)
		}
		if got := b.walk(t, b.admin, "/v1/quarantine", limit); !slices.Equal(got, append([]string{evil}, acme...)) {
			t.Error(got)
		}
	}
	path := "/v1/events/" + acme[0]
	if got := b.must(t, 200, b.acme, "GET", path, nil); got["state"] != "quarantined" || got["error_code"] != "22P02" || fmt.Sprint(got["data"]) != "map[dedicated_ip:not an address recipient:q@example.com]" {
		t.Error(got)
	}
	subscription := b.create(t, b.acme, nil)
	if got := b.must(t, 200, b.acme, "GET", path+"/explain?subscription_id="+subscription, nil); !strings.Contains(fmt.Sprint(got["conditions"]), "quarantined: invalid input") {
		t.Error(got)
	}
	b.mustFail(t, 422, "subscription_id", "required", b.acme, "GET", path+"/explain", nil)
	got := b.must(t, 200, b.acme, "POST", "/v1/quarantine/"+acme[0]+"/release", nil)
	if got["state"] != "undispatched" || got["id"] != acme[0] {
		t.Error(got)
	}
	if id := dbtest.QueryOne[string](t, b.DB, "SELECT mailhook.event_id(inserted_at, id) FROM mailhook.outbox"); id != acme[0] {
		t.Errorf("released as %s", id)
	}
	if got := b.must(t, 200, b.acme, "GET", path, nil); got["state"] != "undispatched" {
		t.Error(got)
	}
	b.mustFail(t, 404, "", "not_found", b.acme, "POST", "/v1/quarantine/"+acme[0]+"/release", nil)
}

// What mailhook tells about a subscription is not sent to that one, and explain says so.
func TestExplainWhatIsAboutItself(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.create(t, b.acme, object{"event_types": []string{"subscription"}})
	event := b.event(t, "acme", "subscription.failing", "r", time.Now().Add(time.Second))
	b.Exec(t, "UPDATE mailhook.events SET data = json_build_object('subscription_id', $1::text)", id)
	got := b.must(t, 200, b.acme, "GET", "/v1/events/"+event+"/explain?subscription_id="+id, nil)
	if text := fmt.Sprint(got["conditions"]); got["matched"] != false || !strings.Contains(text, "condition:about_itself") {
		t.Error(got)
	}
}

func TestExplain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.create(t, b.acme, object{"event_types": []string{"email.bounced"}, "filters": object{
		"sending_domain": []string{"MAIL.example.com"}, "dedicated_ip": []string{"2001:db8:0::1"}, "bridge": []string{"b1"},
	}})
	event := b.event(t, "acme", "email.bounced.hard", "r", time.Now().Add(time.Second))
	explain := func(key string) (object, map[string]bool) {
		t.Helper()
		got := b.must(t, 200, key, "GET", "/v1/events/"+event+"/explain?subscription_id="+id, nil)
		passed := map[string]bool{}
		for _, c := range got["conditions"].([]any) {
			passed[c.(object)["condition"].(string)] = c.(object)["passed"].(bool)
		}
		return got, passed
	}
	got, passed := explain(b.acme)
	want := "map[account:true bridge:false created_before:true dedicated_ip:true event_type:true sending_domain:true sending_node:true status:true]"
	if got["matched"] != false || fmt.Sprint(passed) != want || got["delivery"] != nil {
		t.Errorf("got %v, want %s: %v", passed, want, got)
	}
	if text := fmt.Sprint(got["conditions"]); !strings.Contains(text, "map[actual:<nil> condition:bridge expected:[b1] passed:false]") {
		t.Error(text)
	}
	b.must(t, 200, b.acme, "PATCH", "/v1/subscriptions/"+id, object{"filters": object{"bridge": nil}})
	if got, _ := explain(b.acme); got["matched"] != true {
		t.Error(got)
	}
	delivery := b.delivery(t, event, id)
	b.attempt(t, delivery)
	got, _ = explain(b.acme)
	if d := got["delivery"].(object); d["id"] != delivery || d["status"] != "pending" || len(d["attempts"].([]any)) != 1 {
		t.Error(d)
	}
	b.end(t, delivery, "delivered", "ok", 200)
	got, _ = explain(b.acme)
	if d := got["delivery"].(object); d["id"] != delivery || d["status"] != "delivered" {
		t.Error(d)
	}
	b.must(t, 200, b.acme, "PATCH", "/v1/subscriptions/"+id, object{"event_types": []string{"email.sent"}})
	b.must(t, 200, b.acme, "POST", "/v1/subscriptions/"+id+"/deactivate", nil)
	b.Exec(t, "UPDATE mailhook.events SET account_id = 'evil', duplicate_of = ''")
	got, passed = explain(b.admin)
	want = "map[account:false bridge:true created_before:true dedicated_ip:true duplicate:false event_type:false sending_domain:true sending_node:true status:false]"
	if got["matched"] != false || fmt.Sprint(passed) != want {
		t.Errorf("got %v, want %s", passed, want)
	}
	b.mustFail(t, 404, "", "not_found", b.evil, "GET", "/v1/events/"+event+"/explain?subscription_id="+id, nil)
}

func TestReplays(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.create(t, b.acme, object{"event_types": []string{"email"}, "filters": object{"sending_domain": []string{"mail.example.com"}}})
	path := "/v1/subscriptions/" + id + "/replay"
	start := time.Now().Add(-time.Hour)
	var events []string
	for i := range 6 {
		events = append(events, b.event(t, "acme", []string{"email.sent", "email.bounced.hard"}[i%2], "r", start.Add(time.Duration(i)*time.Minute)))
	}
	b.event(t, "acme", "form.submitted", "r", start)
	b.event(t, "evil", "email.sent", "r", start)
	b.Exec(t, "UPDATE mailhook.events SET duplicate_of = 'x' WHERE mailhook.event_id(inserted_at, id) = $1", events[5])
	b.delivery(t, events[0], id) // unfinished
	b.end(t, b.delivery(t, events[1], id), "exhausted", "dns", 0)
	b.end(t, b.delivery(t, events[2], id), "delivered", "ok", 200)
	at := func(minutes int) string {
		return start.Add(time.Duration(minutes) * time.Minute).UTC().Format(time.RFC3339Nano)
	}
	for _, c := range []struct {
		body object
		want float64
	}{
		{object{"since": at(-10)}, 1},
		{object{"since": at(-10), "event_types": []string{"email.bounced"}}, 1},
		{object{"since": at(-10), "event_types": []string{"email.sent"}}, 0},
		{object{"since": at(-10), "until": at(-5)}, 0},
		{object{"since": at(-10), "status": "all"}, 4},
		{object{"since": at(2), "status": "all"}, 3},
		{object{"since": at(2), "until": at(4), "status": "all"}, 2},
		{object{"since": at(-10), "until": "2999-01-01T00:00:00+02:00", "status": "all", "event_types": []string{"email.sent", "email.sent"}}, 2},
	} {
		c.body["dry_run"] = true
		got := b.must(t, 200, b.acme, "POST", path, c.body)
		if len(got) != 1 || got["matched"] != c.want {
			t.Errorf("%v: got %v, want %v", c.body, got, c.want)
		}
	}
	if n := dbtest.QueryOne[int](t, b.DB, "SELECT count(*)::int FROM mailhook.replays"); n != 0 {
		t.Error("a dry run has stored something")
	}
	got := b.must(t, 202, b.acme, "POST", path, object{"since": at(-10), "status": "all", "rate_per_second": 7.5})
	if got["state"] != "running" || got["matched"] != 4.0 || got["done"] != 0.0 || got["rate_per_second"] != 7.5 {
		t.Error(got)
	}
	replay := "/v1/replays/" + got["id"].(string)
	if again := b.must(t, 200, b.acme, "GET", replay, nil); fmt.Sprint(again) != fmt.Sprint(got) {
		t.Errorf("got %v, want %v", again, got)
	}
	for range 2 {
		if cancelled := b.must(t, 200, b.acme, "DELETE", replay, nil); cancelled["state"] != "cancelled" {
			t.Error(cancelled)
		}
	}
	b.Exec(t, "UPDATE mailhook.replays SET state = 'done'")
	if done := b.must(t, 200, b.acme, "DELETE", replay, nil); done["state"] != "done" {
		t.Error(done)
	}
	b.mustFail(t, 422, "since", "required", b.acme, "POST", path, object{})
	b.mustFail(t, 422, "since", "wrong_type", b.acme, "POST", path, object{"since": 7})
	b.mustFail(t, 422, "since", "invalid", b.acme, "POST", path, object{"since": "yesterday"})
	b.mustFail(t, 422, "until", "out_of_range", b.acme, "POST", path, object{"since": at(0), "until": at(0)})
	b.mustFail(t, 422, "until", "invalid", b.acme, "POST", path, object{"since": at(0), "until": "x"})
	b.mustFail(t, 422, "status", "not_allowed", b.acme, "POST", path, object{"since": at(0), "status": "delivered"})
	b.mustFail(t, 422, "rate_per_second", "out_of_range", b.acme, "POST", path, object{"since": at(0), "rate_per_second": 0.5})
	b.mustFail(t, 422, "rate_per_second", "out_of_range", b.acme, "POST", path, object{"since": at(0), "rate_per_second": 1001})
	b.mustFail(t, 422, "event_types[0]", "invalid_event_type", b.acme, "POST", path, object{"since": at(0), "event_types": []string{"E"}})
	b.must(t, 200, b.acme, "POST", "/v1/subscriptions/"+id+"/deactivate", nil)
	b.mustFail(t, 409, "", "inactive", b.acme, "POST", path, object{"since": at(0)})
}

func TestTestSend(t *testing.T) {
	t.Parallel()
	b := setup(t, func(c *Config) { c.NoWorkerAfter, c.TestWait = time.Minute, time.Minute })
	// A worker that answers all tests.
	conn, err := b.Pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	if _, err := conn.Exec(t.Context(), "LISTEN mailhook_wakeup"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		types              []string
		body               any
		want, verb, format string
	}{
		{[]string{"email.bounced"}, nil, "email.bounced", "pause", ""},
		{[]string{"email"}, nil, "email.delivered", "deactivate", ""},
		{[]string{"*"}, object{}, "email.delivered", "resume", ""},
		{[]string{"form", "email"}, nil, "form.submitted", "resume", ""},
		{[]string{"my.own"}, nil, "my.own", "resume", ""},
		{[]string{"email"}, object{"event_type": "my.other"}, "my.other", "resume", ""},
		{[]string{"email"}, object{"event_type": "Complained (Spam Report)"}, "email.complained", "resume", ""},
		{[]string{"email"}, object{"format": nil}, "email.delivered", "resume", ""},
		{[]string{"email"}, object{"format": "mailjet"}, "email.delivered", "resume", "mailjet"},
	} {
		path := "/v1/subscriptions/" + b.create(t, b.acme, object{"event_types": c.types, "format": "sendgrid"})
		b.must(t, 200, b.acme, "POST", path+"/"+c.verb, nil)
		answered := make(chan object)
		go func() { answered <- b.must(t, 200, b.acme, "POST", path+"/test", c.body) }()
		notification, err := conn.Conn().WaitForNotification(t.Context())
		if err != nil || notification.Payload != "test" {
			t.Fatal(err, notification)
		}
		got := dbtest.QueryOne[string](t, b.DB, `UPDATE mailhook.test_deliveries SET leased_by = mailhook.uuid7(), ended_at = clock_timestamp(),
			duration_ms = 5, status_code = 503, outcome = 'http_5xx', response_excerpt = 'x\000' WHERE ended_at IS NULL RETURNING event_type || ' ' || format`)
		if want := c.want + " " + cmp.Or(c.format, "sendgrid"); got != want {
			t.Errorf("%v %v: got %s, want %s", c.types, c.body, got, want)
		}
		if got := fmt.Sprint(<-answered); got != "map[duration_ms:5 outcome:http_5xx request:<nil> response_excerpt:x\uFFFD status_code:503]" {
			t.Error(got)
		}
	}
	path := "/v1/subscriptions/" + b.create(t, b.acme, nil) + "/test"
	b.mustFail(t, 422, "event_type", "invalid_event_type", b.acme, "POST", path, object{"event_type": "*"})
	b.mustFail(t, 422, "nope", "unknown_field", b.acme, "POST", path, object{"nope": "*"})
	b.mustFail(t, 422, "format", "not_allowed", b.acme, "POST", path, object{"format": "slack"})
	impatient := b.at(b.another(t, func(c *Config) { c.NoWorkerAfter = 300 * time.Millisecond }))
	impatient.mustFail(t, 504, "", "no_worker", b.acme, "POST", path, nil)
	if n := dbtest.QueryOne[int](t, b.DB, "SELECT count(*)::int FROM mailhook.test_deliveries WHERE ended_at IS NULL"); n != 0 {
		t.Error("what no worker took is still there")
	}
}

func TestAccounts(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.create(t, b.acme, nil)
	b.create(t, b.acme, nil)
	for _, key := range []string{b.acme, b.admin} {
		if got := fmt.Sprint(b.must(t, 200, key, "GET", "/v1/accounts/acme", nil)); got != "map[allow_insecure_http:false id:acme limit:<nil> status:active usage:map[limit:100 subscriptions:2]]" {
			t.Error(got)
		}
	}
	for range 2 {
		if got := fmt.Sprint(b.must(t, 200, b.admin, "PUT", "/v1/accounts/acme", object{"limit": 7, "status": "suspended"})); got != "map[allow_insecure_http:false id:acme limit:7 status:suspended usage:map[limit:7 subscriptions:2]]" {
			t.Error(got)
		}
	}
	if got := fmt.Sprint(b.must(t, 200, b.admin, "PUT", "/v1/accounts/acme", object{"limit": nil})); got != "map[allow_insecure_http:false id:acme limit:<nil> status:suspended usage:map[limit:100 subscriptions:2]]" {
		t.Error(got)
	}
	if got := fmt.Sprint(b.must(t, 200, b.admin, "PUT", "/v1/accounts/acme", object{"status": nil})); got != "map[allow_insecure_http:false id:acme limit:<nil> status:active usage:map[limit:100 subscriptions:2]]" {
		t.Error(got)
	}
	b.mustFail(t, 422, "limit", "out_of_range", b.admin, "PUT", "/v1/accounts/acme", object{"limit": -1})
	b.mustFail(t, 422, "limit", "out_of_range", b.admin, "PUT", "/v1/accounts/acme", object{"limit": 1e12})
	b.mustFail(t, 422, "status", "not_allowed", b.admin, "PUT", "/v1/accounts/acme", object{"status": "deleted"})
	b.mustFail(t, 403, "", "forbidden", b.acme, "PUT", "/v1/accounts/acme", object{"limit": 1000})
	b.mustFail(t, 403, "", "forbidden", b.acme, "DELETE", "/v1/accounts/acme", nil)
	b.must(t, 204, b.admin, "DELETE", "/v1/accounts/acme", nil)
	b.mustFail(t, 401, "", "unauthorized", b.acme, "GET", "/v1/subscriptions", nil)
	b.mustFail(t, 404, "", "not_found", b.admin, "DELETE", "/v1/accounts/acme", nil)
	if n := len(ids(b.must(t, 200, b.admin, "GET", "/v1/subscriptions?account_id=acme", nil))); n != 0 {
		t.Errorf("%d subscriptions left", n)
	}
	if n := dbtest.QueryOne[int](t, b.DB, "SELECT count(*)::int FROM mailhook.subscription_secrets"); n != 0 {
		t.Error("secrets are left")
	}
	b.must(t, 200, b.evil, "GET", "/v1/subscriptions", nil)
}
