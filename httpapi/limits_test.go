package httpapi

import (
	"fmt"
	"slices"
	"sync"
	"testing"

	"mailhook/db/dbtest"
)

func (b *bundle) usage(t *testing.T, want string) {
	t.Helper()
	list := b.must(t, 200, b.acme, "GET", "/v1/subscriptions?limit=1", nil)
	account := b.must(t, 200, b.acme, "GET", "/v1/accounts/acme", nil)
	if got := fmt.Sprint(list["usage"]); got != want || got != fmt.Sprint(account["usage"]) {
		t.Errorf("usage %s and %v, want %s", got, account["usage"], want)
	}
}

func (b *bundle) limit(t *testing.T, limit any) {
	t.Helper()
	b.must(t, 200, b.admin, "PUT", "/v1/accounts/acme", object{"limit": limit})
}

func (b *bundle) full(t *testing.T, says string) {
	t.Helper()
	r := b.send(t, b.acme, "POST", "/v1/subscriptions", subscription(nil))
	if r.status != 409 || r.body["type"] != "urn:mailhook:limit_reached" || r.body["detail"] != says {
		t.Errorf("got %d %s, want %q", r.status, r.text, says)
	}
}

// Twenty at once at a limit of ten: ten.
func TestLimitHoldsUnderConcurrency(t *testing.T) {
	t.Parallel()
	b := setup(t, func(c *Config) { c.DefaultSubscriptionLimit = 10 })
	statuses := make([]int, 20)
	var group sync.WaitGroup
	for i := range statuses {
		group.Go(func() { statuses[i] = b.send(t, b.acme, "POST", "/v1/subscriptions", subscription(nil)).status })
	}
	group.Wait()
	slices.Sort(statuses)
	if !slices.Equal(statuses, append(slices.Repeat([]int{201}, 10), slices.Repeat([]int{409}, 10)...)) {
		t.Fatal(statuses)
	}
	b.usage(t, "map[limit:10 subscriptions:10]")
	b.full(t, "10 of 10 subscriptions are in use: delete one, or ask for a larger plan")
	b.create(t, b.evil, nil) // another account's is another limit
}

// The plan of an account: raised, it counts at once; lowered, what is there stays and can be changed; deleting frees a place at
// once; a plan without webhooks refuses the first one; null is the default.
func TestLimitsByPlan(t *testing.T) {
	t.Parallel()
	b := setup(t, func(c *Config) { c.DefaultSubscriptionLimit = 2 })
	b.usage(t, "map[limit:2 subscriptions:0]")
	b.limit(t, 0)
	b.usage(t, "map[limit:0 subscriptions:0]")
	b.full(t, "the plan has no webhooks: ask for one that has")
	b.limit(t, 3)
	first, second := b.create(t, b.acme, nil), b.create(t, b.acme, object{"status": "paused"})
	b.create(t, b.acme, nil)
	b.usage(t, "map[limit:3 subscriptions:3]")
	b.full(t, "3 of 3 subscriptions are in use: delete one, or ask for a larger plan")

	b.limit(t, 1)
	b.usage(t, "map[limit:1 subscriptions:3]")
	b.full(t, "3 of 1 subscriptions are in use: delete one, or ask for a larger plan")
	path := "/v1/subscriptions/" + first
	b.must(t, 200, b.acme, "PATCH", path, object{"name": "still mine"})
	for _, verb := range []string{"pause", "resume", "rotate-secret"} {
		b.must(t, 200, b.acme, "POST", path+"/"+verb, nil)
	}
	if n := dbtest.QueryOne[int](t, b.DB, "SELECT count(*)::int FROM mailhook.subscription_event_types"); n != 3 {
		t.Errorf("%d of 3 subscriptions match", n)
	}
	b.limit(t, 0)
	b.full(t, "the plan has no webhooks: ask for one that has")
	b.must(t, 200, b.acme, "PATCH", path, object{"name": "yet mine"})

	b.limit(t, nil) // 2
	b.must(t, 200, b.acme, "POST", "/v1/subscriptions/"+second+"/deactivate", nil)
	b.usage(t, "map[limit:2 subscriptions:3]") // whatever its status
	b.must(t, 204, b.acme, "DELETE", "/v1/subscriptions/"+second, nil)
	b.full(t, "2 of 2 subscriptions are in use: delete one, or ask for a larger plan")
	b.must(t, 204, b.acme, "DELETE", path, nil)
	b.usage(t, "map[limit:2 subscriptions:1]")
	b.create(t, b.acme, nil)
	b.limit(t, 4)
	b.create(t, b.acme, nil)
	b.usage(t, "map[limit:4 subscriptions:3]")
}

// What is wrong with a request is told before the plan is.
func TestWhatIsWrongComesBeforeTheLimit(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.limit(t, 0)
	b.mustFail(t, 422, "timeout", "out_of_range", b.acme, "POST", "/v1/subscriptions", subscription(object{"timeout": "61s"}))
	b.mustFail(t, 422, "account_id", "invalid", b.admin, "POST", "/v1/subscriptions", subscription(object{"account_id": "a\x00b"}))
	b.mustFail(t, 409, "", "limit_reached", b.admin, "POST", "/v1/subscriptions", subscription(object{"account_id": "acme"}))
}
