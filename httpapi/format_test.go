package httpapi

import (
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"

	"mailhook/db/format"
)

// TestFormats: every format of channel web may be chosen and changed, and is listed where one that is not there is refused.
func TestFormats(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.create(t, b.acme, object{})
	names := format.Names("web")
	if len(names) < 8 {
		t.Fatal(names)
	}
	for _, name := range names {
		if got := b.must(t, 200, b.acme, "PATCH", "/v1/subscriptions/"+id, object{"format": name})["format"]; got != name {
			t.Errorf("format %v, want %s", got, name)
		}
	}
	if got := b.must(t, 200, b.acme, "PATCH", "/v1/subscriptions/"+id, object{"format": nil})["format"]; got != "standard" {
		t.Error(got)
	}
	all := append(names, "pushover", "slack", "teams") // of the other channels
	refused := b.send(t, b.acme, "PATCH", "/v1/subscriptions/"+id, object{"format": "mailgun"})
	if want := "format: must be one of " + strings.Join(all, ", "); refused.status != http.StatusUnprocessableEntity || refused.body["detail"] != want {
		t.Errorf("%s, want %s", refused.text, want)
	}
	document := b.must(t, 200, "", "GET", "/openapi.json", nil)
	for _, schema := range []string{"SubscriptionInput", "CreateSubscriptionBody"} {
		listed := document["components"].(object)["schemas"].(object)[schema].(object)["properties"].(object)["format"].(object)["enum"]
		got := []string{}
		for _, name := range listed.([]any) {
			if name != nil {
				got = append(got, name.(string))
			}
		}
		if !slices.Equal(got, all) {
			t.Errorf("%s lists %v", schema, listed)
		}
	}
}

// TestPublicKey: it is that of the newest secret, there whenever the format needs one, also where the format came later.
func TestPublicKey(t *testing.T) {
	t.Parallel()
	b := setup(t)
	created := b.must(t, 201, b.acme, "POST", "/v1/subscriptions", subscription(object{"secret": "0123456789abcdef"}))
	path := "/v1/subscriptions/" + created["id"].(string)
	shown := func() any { return b.must(t, 200, b.acme, "GET", path, nil)["public_key"] }
	if _, ok := created["public_key"]; ok || shown() != nil {
		t.Error("format standard has a public key")
	}
	first, _ := format.PublicKey("0123456789abcdef")
	if got := b.must(t, 200, b.acme, "PATCH", path, object{"format": "sendgrid"})["public_key"]; got != first || shown() != first {
		t.Errorf("%v, want %s", got, first)
	}
	rotated := b.must(t, 200, b.acme, "POST", path+"/rotate-secret", nil)
	second, _ := format.PublicKey(rotated["secret"].(string))
	if rotated["public_key"] != second || shown() != second || first == second {
		t.Errorf("%v, want %s", rotated["public_key"], second)
	}
	direct := b.must(t, 201, b.acme, "POST", "/v1/subscriptions", subscription(object{"format": "sendgrid"}))
	if want, _ := format.PublicKey(direct["secret"].(string)); !reflect.DeepEqual(direct["public_key"], want) {
		t.Errorf("%v, want %s", direct["public_key"], want)
	}
	b.must(t, 200, b.acme, "PATCH", path, object{"format": "xml"})
	if got := shown(); got != nil {
		t.Errorf("format xml has the public key %v", got)
	}
}
