package httpapi

import (
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"mailhook/db"
	"mailhook/db/dbtest"
)

func TestEraseIsAskedFor(t *testing.T) {
	t.Parallel()
	b := setup(t)
	of := func(id string) (account *string, pattern string) {
		t.Helper()
		key, err := db.ParseID(db.ErasurePrefix, id)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Pool.QueryRow(t.Context(), "SELECT account_id, pattern FROM mailhook.erasures WHERE id = $1", key).Scan(&account, &pattern); err != nil {
			t.Fatal(err)
		}
		return account, pattern
	}
	mine := b.must(t, 202, b.acme, "POST", "/v1/recipients/erase", object{"recipient": "ann@example.com"})
	if account, pattern := of(mine["id"].(string)); account == nil || *account != "acme" || !dbtest.QueryOne[bool](t, b.DB, "SELECT 'to: ANN@example.com' ~ $1", pattern) {
		t.Errorf("%v, %s", account, pattern)
	}
	if mine["state"] != "running" || mine["account_id"] != "acme" || mine["matched"].(object)["events"] != 0.0 || mine["ended_at"] != nil {
		t.Errorf("%v", mine)
	}
	one := b.must(t, 202, b.admin, "POST", "/v1/recipients/erase", object{"recipient": "ann@example.com", "account_id": "evil"})
	all := b.must(t, 202, b.admin, "POST", "/v1/recipients/erase", object{"recipient": "ann@example.com"})
	if one["account_id"] != "evil" || all["account_id"] != nil {
		t.Errorf("%v\n%v", one, all)
	}
	erasures := dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.erasures")
	for _, key := range []string{b.admin, b.acme} {
		b.mustFail(t, 422, "account_id", "too_short", key, "POST", "/v1/recipients/erase", object{"recipient": "ann@example.com", "account_id": ""})
	}
	if n := dbtest.QueryOne[int64](t, b.DB, "SELECT count(*) FROM mailhook.erasures"); n != erasures {
		t.Errorf("%d erasures for no account in particular", n-erasures)
	}
	path := "/v1/erasures/"
	b.must(t, 200, b.acme, "GET", path+mine["id"].(string), nil)
	b.must(t, 200, b.evil, "GET", path+one["id"].(string), nil)
	b.must(t, 200, b.admin, "GET", path+mine["id"].(string), nil)
	b.must(t, 404, b.evil, "GET", path+mine["id"].(string), nil)
	b.must(t, 404, b.acme, "GET", path+all["id"].(string), nil)
	b.must(t, 404, b.acme, "POST", "/v1/recipients/erase", object{"recipient": "ann@example.com", "account_id": "evil"})
	for _, bad := range []object{{"recipient": "canary"}, {"recipient": "canary@example.com\u0000"}, {"recipient": ""}, {}, {"recipient": "Canary <canary@example.com>"}} {
		answer := b.send(t, b.acme, "POST", "/v1/recipients/erase", bad)
		if answer.status != 422 || !strings.Contains(answer.text, `"field":"recipient"`) || strings.Contains(strings.ToLower(answer.text), "canary") {
			t.Errorf("%v: %d %s", bad, answer.status, answer.text)
		}
	}
	if strings.Contains(strings.ToLower(b.logs.String()), "ann@example") {
		t.Errorf("in the log: %s", b.logs.String())
	}
}

// An account may have ten waiting, also when it asks for many at one moment; others have their own ten.
func TestErasuresAreLimited(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var wg sync.WaitGroup
	var accepted, refused atomic.Int64
	for range 3 * maxRunningErasures {
		wg.Go(func() {
			switch answer := b.send(t, b.acme, "POST", "/v1/recipients/erase", object{"recipient": "ann@example.com"}); answer.status {
			case 202:
				accepted.Add(1)
			case 409:
				refused.Add(1)
			default:
				t.Errorf("%d %s", answer.status, answer.text)
			}
		})
	}
	wg.Wait()
	if accepted.Load() != 10 || refused.Load() != 20 {
		t.Errorf("%d are running, %d were refused", accepted.Load(), refused.Load())
	}
	b.must(t, 202, b.evil, "POST", "/v1/recipients/erase", object{"recipient": "ann@example.com"})
	for range maxRunningErasures + 1 {
		b.must(t, 202, b.admin, "POST", "/v1/recipients/erase", object{"recipient": "ann@example.com"})
	}
}

// What was erased is shown as that, and neither replayed nor retried; and nothing leaves quarantine past a running erasure.
func TestErasedEventsStayErased(t *testing.T) {
	t.Parallel()
	b := setup(t)
	subscription := b.create(t, b.acme, nil)
	event := b.event(t, "acme", "email.bounced", "ann@example.com", time.Now())
	delivery := b.delivery(t, event, subscription)
	b.end(t, delivery, "exhausted", "http_5xx", 500)
	b.Exec(t, "UPDATE mailhook.events SET erased_at = now(), recipient = NULL, data = NULL, sending_domain = NULL, dedicated_ip = NULL")
	got := b.must(t, 200, b.acme, "GET", "/v1/events/"+event, nil)
	if got["state"] != "erased" || len(got["data"].(object)) != 0 || len(got["deliveries"].([]any)) != 1 {
		t.Errorf("%v", got)
	}
	b.must(t, 409, b.acme, "POST", "/v1/deliveries/"+delivery+"/retry", nil)
	count := b.must(t, 200, b.acme, "POST", "/v1/subscriptions/"+subscription+"/replay", object{"since": "2000-01-01T00:00:00Z", "status": "all", "dry_run": true})
	if count["matched"] != 0.0 {
		t.Errorf("%v", count)
	}
	if why := b.must(t, 200, b.acme, "GET", "/v1/events/"+event+"/explain?subscription_id="+subscription, nil); why["matched"] != false {
		t.Errorf("%v", why)
	}

	quarantined := dbtest.QueryOne[string](t, b.DB, `
		INSERT INTO mailhook.quarantine (inserted_at, id, account_id, event_type, recipient, reason, error_code) VALUES (now(), 999, 'acme', 'email.sent', 'ann@example.com', 'x', 'MH001')
		RETURNING mailhook.event_id(inserted_at, id)`)
	b.must(t, 202, b.evil, "POST", "/v1/recipients/erase", object{"recipient": "ann@example.com"})
	b.must(t, 202, b.acme, "POST", "/v1/recipients/erase", object{"recipient": "ann@example.com"})
	b.must(t, 409, b.acme, "POST", "/v1/quarantine/"+quarantined+"/release", nil)
	b.Exec(t, "UPDATE mailhook.erasures SET state = 'done', pattern = NULL, ended_at = now() WHERE account_id = 'acme'")
	b.must(t, 200, b.acme, "POST", "/v1/quarantine/"+quarantined+"/release", nil)
}
