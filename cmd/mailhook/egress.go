package main

import (
	"errors"
	"net/netip"
	"strings"

	"github.com/urfave/cli/v2"

	"mailhook/db/egress"
)

// egressFlags say where requests may go. Workers and the API take the same.
func egressFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{
			Name: "allow-insecure-http", EnvVars: []string{"MAILHOOK_ALLOW_INSECURE_HTTP"},
			Usage: "let all subscriptions use http; for one account: PUT /v1/accounts/{id} {\"allow_insecure_http\": true}",
		},
		&cli.StringSliceFlag{
			Name: "allow-cidr", EnvVars: []string{"MAILHOOK_ALLOW_CIDR"},
			Usage: "send to these addresses too, on any port, though they are not public: 127.0.0.0/8; repeatable, or with commas",
		},
		&cli.StringSliceFlag{
			Name: "deny-cidr", EnvVars: []string{"MAILHOOK_DENY_CIDR"},
			Usage: "never send to these addresses, whatever allows them: public ones of your own, for example; repeatable, or with commas",
		},
		&cli.StringSliceFlag{
			Name: "allow-host", EnvVars: []string{"MAILHOOK_ALLOW_HOST"},
			Usage: "let this host name lead to private addresses and this machine: hooks.internal, *.hooks.internal for all below it, hooks.internal:2525 for one port, denied or not; repeatable, or with commas",
		},
		&cli.StringSliceFlag{
			Name: "allow-port", EnvVars: []string{"MAILHOOK_ALLOW_PORT"},
			Usage: "send to this port, though it is one of mail, databases or administration: 9200; repeatable, or with commas",
		},
		&cli.StringSliceFlag{
			Name: "deny-port", EnvVars: []string{"MAILHOOK_DENY_PORT"},
			Usage: "do not send to this port either, except where --allow-cidr opens it: 8080; repeatable, or with commas",
		},
	}
}

func sourceAddressFlag() cli.Flag {
	return &cli.StringSliceFlag{
		Name: "source-address", EnvVars: []string{"MAILHOOK_SOURCE_ADDRESS"},
		Usage: "the address of this machine that requests come from, one of IPv4 and one of IPv6: 203.0.113.7; with one alone, nothing is sent to the other family; repeatable, or with commas",
	}
}

// egressPolicy is the policy of the flags; the source address is a flag of workers only.
func egressPolicy(c *cli.Context) (p egress.Policy, err error) {
	p.AllowInsecureHTTP = c.Bool("allow-insecure-http")
	p.AllowCIDR, err = parseAll(c, "allow-cidr", egress.ParseNetwork)
	if err == nil {
		p.DenyCIDR, err = parseAll(c, "deny-cidr", egress.ParseNetwork)
	}
	if err == nil {
		p.AllowHosts, err = parseAll(c, "allow-host", egress.ParseHostPattern)
	}
	if err == nil {
		p.AllowPorts, err = parseAll(c, "allow-port", egress.ParsePort)
	}
	if err == nil {
		p.DenyPorts, err = parseAll(c, "deny-port", egress.ParsePort)
	}
	if err == nil {
		p.SourceAddresses, err = parseAll(c, "source-address", parseSourceAddress)
	}
	if err != nil {
		return p, err
	}
	if err := p.Validate(); err != nil {
		return p, usageError{err}
	}
	return p, nil
}

// parseAll reads every value of a repeatable flag.
func parseAll[T any](c *cli.Context, flag string, parse func(string) (T, error)) ([]T, error) {
	var values []T
	for _, text := range c.StringSlice(flag) {
		value, err := parse(strings.TrimSpace(text))
		if err != nil {
			return nil, usagef("--%s %q %w", flag, text, err)
		}
		values = append(values, value)
	}
	return values, nil
}

func parseSourceAddress(text string) (netip.Addr, error) {
	addr, err := netip.ParseAddr(text)
	if err != nil || addr.Zone() != "" || addr.Is4In6() || addr.IsUnspecified() {
		return addr, errors.New("is not an address of this machine like 203.0.113.7")
	}
	return addr, nil
}
