package main

import (
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"mailhook/db/egress"
)

// policyOf is the policy that arguments make.
func policyOf(t *testing.T, args ...string) (policy egress.Policy, err error) {
	t.Helper()
	app := &cli.App{Flags: append(egressFlags(), sourceAddressFlag()), Action: func(c *cli.Context) error {
		policy, err = egressPolicy(c)
		return nil
	}}
	if err := app.RunContext(t.Context(), append([]string{"mailhook"}, args...)); err != nil {
		t.Fatal(err)
	}
	return policy, err
}

func TestEgressFlags(t *testing.T) {
	t.Parallel()
	got, err := policyOf(t, "--allow-insecure-http", "--allow-cidr", "10.1.2.3/8,fd00::/8", "--allow-cidr", "192.168.1.1", "--deny-cidr", "203.0.113.0/24",
		"--allow-host", "Hooks.internal., *.hooks.internal", "--allow-host", "mx.internal:25", "--allow-port", "9200,25", "--deny-port", "8080", "--source-address", "127.0.0.1")
	want := egress.Policy{
		AllowInsecureHTTP: true,
		AllowCIDR:         []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8"), netip.MustParsePrefix("192.168.1.1/32")},
		DenyCIDR:          []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")},
		AllowHosts:        []egress.HostPattern{{Name: "hooks.internal"}, {Name: "hooks.internal", Below: true}, {Name: "mx.internal", Port: 25}},
		AllowPorts:        []uint16{9200, 25}, DenyPorts: []uint16{8080},
		SourceAddresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v\n got %+v\nwant %+v", err, got, want)
	}
	if got, err := policyOf(t); err != nil || !reflect.DeepEqual(got, egress.Policy{}) {
		t.Errorf("the default is %+v, %v", got, err)
	}
	for flag, values := range map[string][]string{
		"--allow-cidr":     {"10.0.0.0/99", "10.0.0", "::ffff:10.0.0.0/104", "hooks.internal", ""},
		"--deny-cidr":      {"x"},
		"--allow-host":     {"", "*", "*.", "a..b", "10.0.0.1", "a.b:0", "a.b:65536", "a.b:http", "https://a.b", "*.*.b", "[::1]", "bücher.example"},
		"--allow-port":     {"0", "65536", "-1", "http", "80-90"},
		"--deny-port":      {"0", "x"},
		"--source-address": {"0.0.0.0", "::", "::ffff:127.0.0.1", "fe80::1%lo", "eth0", "192.0.2.77"},
	} {
		for _, value := range values {
			if _, err := policyOf(t, flag+"="+value); err == nil || !strings.Contains(err.Error(), flag) {
				t.Errorf("%s=%s: %v", flag, value, err)
			}
		}
	}
	if _, err := policyOf(t, "--allow-port", "9200", "--deny-port", "9200"); err == nil {
		t.Error("a port may be allowed and denied")
	}
}

// The API would take a URL that workers refuse, or refuse one that they would send to, if it had other flags.
func TestTheAPIHasTheEgressFlagsOfWorkers(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"worker", "serve", "api"} {
		command := newApp().Command(name)
		for _, f := range egressFlags() {
			if !slices.ContainsFunc(command.Flags, func(g cli.Flag) bool { return g.Names()[0] == f.Names()[0] }) {
				t.Errorf("%s has no --%s", name, f.Names()[0])
			}
		}
	}
}
