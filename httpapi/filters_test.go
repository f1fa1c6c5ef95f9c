package httpapi

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"mailhook/db/dbtest"
)

func (b *bundle) storedConditions(t *testing.T, id string) string {
	t.Helper()
	return dbtest.QueryOne[string](t, b.DB, "SELECT filter_conditions::text FROM mailhook.subscriptions WHERE 'sub_' || replace(id::text, '-', '') = $1", id)
}

func TestFiltersOfAnyField(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.create(t, b.acme, object{"filters": object{
		"campaign_id": []any{123, "c-7", "c-7"}, "list_id": []any{7}, "tag": []any{true}, "recipient_domain": []any{"Example.COM"}, "message_class": []any{}, "bridge": []any{"b"},
		"data": object{"plan": "pro", "seats": []any{5, "many", 1e2}, "meta_data.country": object{"prefix": []any{"D", "A"}}, `a\.b.c\\`: object{"any": false}, "none": []any{}},
	}})
	path := "/v1/subscriptions/" + id
	shown := func() string {
		text, err := json.Marshal(b.must(t, 200, b.acme, "GET", path, nil)["filters"])
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	want := `{"bridge":["b"],"campaign_id":["123","c-7"],"data":{"a\\.b.c\\\\":["false"],"meta_data.country":{"prefix":["D","A"]},"plan":["pro"],"seats":["5","many","100"]},` +
		`"dedicated_ip":[],"list_id":["7"],"recipient_domain":["example.com"],"sending_domain":[],"sending_node":[],"tag":["true"]}`
	if got := shown(); got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
	stored := `[{"any": ["123", "c-7"], "field": "campaign_id"}, {"any": ["false"], "path": ["a.b", "c\\"]}, {"path": ["meta_data", "country"], "prefix": ["D", "A"]}, ` +
		`{"any": ["pro"], "path": ["plan"]}, {"any": ["5", "many", "100"], "path": ["seats"]}, {"any": ["7"], "field": "list_id"}, {"any": ["example.com"], "field": "recipient_domain"}, {"any": ["true"], "field": "tag"}]`
	if got := b.storedConditions(t, id); got != stored {
		t.Errorf("stored %s\nwant %s", got, stored)
	}
	// What is answered can be patched, and changes nothing.
	b.must(t, 200, b.acme, "PATCH", path, object{"filters": b.must(t, 200, b.acme, "GET", path, nil)["filters"]})
	if got := b.storedConditions(t, id); got != stored {
		t.Errorf("stored %s\nwant %s", got, stored)
	}
	// A merge patch goes into data; lists are replaced.
	b.must(t, 200, b.acme, "PATCH", path, object{"filters": object{"list_id": nil, "tag": []any{"x"}, "data": object{"plan": nil, "seats": []any{}, "meta_data.country": "DE"}}})
	want = `[{"any": ["123", "c-7"], "field": "campaign_id"}, {"any": ["false"], "path": ["a.b", "c\\"]}, {"any": ["DE"], "path": ["meta_data", "country"]}, ` +
		`{"any": ["example.com"], "field": "recipient_domain"}, {"any": ["x"], "field": "tag"}]`
	if got := b.storedConditions(t, id); got != want {
		t.Errorf("stored %s\nwant %s", got, want)
	}
	b.must(t, 200, b.acme, "PATCH", path, object{"filters": object{"data": nil, "campaign_id": []any{}}})
	if got := b.storedConditions(t, id); strings.Contains(got, "path") || strings.Contains(got, "campaign_id") || !strings.Contains(got, "tag") {
		t.Error(got)
	}
	b.must(t, 200, b.acme, "PATCH", path, object{"filters": object{"message_class": []any{"Newsletter", "TRANSACTIONAL", "newsletter"}}})
	if got := b.storedConditions(t, id); !strings.Contains(got, `{"any": ["newsletter", "transactional"], "field": "message_class"}`) {
		t.Error(got)
	}
	b.must(t, 200, b.acme, "PATCH", path, object{"filters": nil})
	if got := shown(); got != `{"bridge":[],"dedicated_ip":[],"sending_domain":[],"sending_node":[]}` || b.storedConditions(t, id) != "[]" {
		t.Error(got)
	}
}

func TestFiltersThatAreRefused(t *testing.T) {
	t.Parallel()
	b := setup(t)
	long, many := strings.Repeat("x", 1001), slices.Repeat([]any{"x"}, 201)
	data := func(path string, value any) object { return object{"data": object{path: value}} }
	distinct := func(n int) (values []any) {
		for i := range n {
			values = append(values, fmt.Sprint(i))
		}
		return values
	}
	eleven := object{}
	for i := range 11 {
		eleven[fmt.Sprint("f", i)] = "x"
	}
	for _, c := range []struct {
		filters     object
		field, code string
	}{
		{object{"foo": []any{}}, "filters.foo", "unknown_field"},
		{object{"data": []any{}}, "filters.data", "wrong_type"},
		{object{"tag": "x"}, "filters.tag", "wrong_type"},
		{object{"tag": []any{nil}}, "filters.tag[0]", "wrong_type"},
		{object{"list_id": []any{object{}}}, "filters.list_id[0]", "wrong_type"},
		{object{"campaign_id": many}, "filters.campaign_id", "too_many"},
		{object{"campaign_id": []any{long}}, "filters.campaign_id[0]", "too_long"},
		{object{"message_class": []any{"newsletter", "marketing"}}, "filters.message_class[1]", "not_allowed"},
		{object{"message_class": []any{""}}, "filters.message_class[0]", "too_short"},
		{object{"recipient_domain": []any{"a@example.com"}}, "filters.recipient_domain[0]", "invalid_address"},
		{data("plan", many), "filters.data.plan", "too_many"},
		{data("plan", object{"prefix": many}), "filters.data.plan.prefix", "too_many"},
		{data("plan", object{"prefix": ""}), "filters.data.plan.prefix[0]", "too_short"},
		{data("plan", []any{"a", long}), "filters.data.plan[1]", "too_long"},
		{data("plan", []any{"a\x01"}), "filters.data.plan[0]", "invalid"},
		{data("plan", []any{[]any{}}), "filters.data.plan[0]", "wrong_type"},
		{data("plan", object{}), "filters.data.plan", "wrong_type"},
		{data("plan", object{"suffix": "x"}), "filters.data.plan", "wrong_type"},
		{data("plan", object{"any": "x", "prefix": "x"}), "filters.data.plan", "wrong_type"},
		{data("", "x"), "filters.data.", "invalid_path"},
		{data("a..b", "x"), "filters.data.a..b", "invalid_path"},
		{data("a.b.c.d.e.f", "x"), "filters.data.a.b.c.d.e.f", "invalid_path"},
		{data(`a\b`, "x"), `filters.data.a\b`, "invalid_path"},
		{data(strings.Repeat("x", 201), "x"), cutField("filters.data." + strings.Repeat("x", 201)), "invalid_path"},
		{object{"data": eleven}, "filters.data", "too_many"},
		{object{"tag": distinct(101), "list_id": distinct(100)}, "filters", "too_many"},
	} {
		b.mustFail(t, 422, c.field, c.code, b.acme, "POST", "/v1/subscriptions", subscription(object{"filters": c.filters}))
	}
	r := b.send(t, b.acme, "POST", "/v1/subscriptions", subscription(object{"filters": object{"foo": []any{}}}))
	for _, name := range []string{"sending_domain", "sending_node", "bridge", "dedicated_ip", "campaign_id", "list_id", "tag", "recipient_domain", "message_class", "data"} {
		if !strings.Contains(r.text, name) {
			t.Errorf("the answer does not name %s: %s", name, r.text)
		}
	}
	if n := dbtest.QueryOne[int](t, b.DB, "SELECT count(*)::int FROM mailhook.subscriptions"); n != 0 {
		t.Errorf("%d are stored", n)
	}
	// Ten, and ten others in their place by one patch.
	delete(eleven, "f10")
	path := "/v1/subscriptions/" + b.create(t, b.acme, object{"filters": object{"data": eleven}})
	b.mustFail(t, 422, "filters.data", "too_many", b.acme, "PATCH", path, object{"filters": data("one.more", "x")})
	b.must(t, 200, b.acme, "PATCH", path, object{"filters": object{"data": object{"one.more": "x", "f0": nil}}})
}

// FuzzPaths: a path is spelled as it was meant.
func FuzzPaths(f *testing.F) {
	for _, spelled := range []string{"plan", "meta_data.country", `a\.b`, `a\\.b`, `\`, ".", "", `a\\\.b`, "ä.\x00", "a.b.c.d.e"} {
		f.Add(spelled)
	}
	f.Fuzz(func(t *testing.T, spelled string) {
		path, fault := parsePath(spelled)
		if fault != "" {
			return
		}
		again, fault := parsePath(spellPath(path))
		if fault != "" || !slices.Equal(again, path) || len(path) < 1 || len(path) > maxPathNames || slices.Contains(path, "") {
			t.Fatalf("%q is %q, and that %q: %s", spelled, path, again, fault)
		}
	})
}
