package egress

import (
	"errors"
	"strings"
	"testing"
)

func TestHostPatterns(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		pattern, name string
		port          uint16
		want          bool
	}{
		{"hooks.test", "hooks.test", 443, true},
		{"HOOKS.test.", "hooks.test", 443, true},
		{"hooks.test", "a.hooks.test", 443, false},
		{"hooks.test", "hooks.test.evil", 443, false},
		{"*.hooks.test", "a.hooks.test", 443, true},
		{"*.hooks.test", "a.b.hooks.test", 443, true},
		{"*.hooks.test", "hooks.test", 443, false},
		{"*.hooks.test", "evilhooks.test", 443, false},
		{"*.hooks.test:8443", "a.hooks.test", 8443, true},
		{"*.hooks.test:8443", "a.hooks.test", 443, false},
	} {
		h, err := ParseHostPattern(c.pattern)
		if err != nil || h.matches(c.name, c.port) != c.want {
			t.Errorf("%s with %s:%d: %v, %v", c.pattern, c.name, c.port, h, err)
		}
	}
}

// What a URL is refused with is answered and logged: none of its parts may be in it.
func TestErrorsDoNotHoldTheURL(t *testing.T) {
	t.Parallel()
	for _, url := range []string{
		"https://s3cret@example.com/", "https://example.com/s3cret#s3cret", "s3cret://example.com/", "s3cret", "https://s3cret:x/", "https://s3cret\x00/", "https://s3cret_ö/",
		"https://example.com/%zz?s3cret", "https://[s3cret]/", "https://s3cret.local/", "https://s3cret.example:25/", "https://example.com/" + strings.Repeat("s3cret", 1000), "http://s3cret/", "https:s3cret",
	} {
		if err := (Policy{}).CheckURL(url, false); err == nil || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%q: %v", url, err)
		}
	}
}

func TestDialErrorsNameNoAddress(t *testing.T) {
	t.Parallel()
	d := NewDialer(Policy{})
	if !d.Base.Resolver.PreferGo {
		t.Error("names are resolved by libc in a build with cgo")
	}
	for _, address := range []string{"10.1.2.3:443", "[fd00::1:2:3]:443", "169.254.169.254:80", "8.8.8.8:25", "8.8.8.8", "localhost:80"} {
		if _, err := d.DialContext(t.Context(), "tcp", address); !errors.Is(err, ErrBlocked) || err.Error() != ErrBlocked.Error() {
			t.Errorf("%s: %v", address, err)
		}
	}
}
