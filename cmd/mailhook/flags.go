package main

import (
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"mailhook/db"
)

// Flags that several commands take. Every flag has an environment name.

func databaseFlag() cli.Flag {
	return &cli.StringFlag{
		Name: "database-url", EnvVars: []string{"MAILHOOK_DATABASE_URL", "DATABASE_URL"},
		Usage: "the host's PostgreSQL; without it the PG* variables count (PGHOST, PGUSER, …)",
	}
}

// databaseURL is the connection string of the flag, or an empty one that makes pgx read the PG* variables.
func databaseURL(c *cli.Context) (string, error) {
	if url := c.String("database-url"); url != "" {
		return url, nil
	}
	for _, name := range []string{"PGHOST", "PGSERVICE", "PGDATABASE", "PGUSER"} {
		if os.Getenv(name) != "" {
			return "application_name=mailhook", nil
		}
	}
	return "", usagef("no database: set --database-url, MAILHOOK_DATABASE_URL, DATABASE_URL or the PG* variables")
}

func keyringFlag() cli.Flag {
	return &cli.StringFlag{
		Name: "secret-key", EnvVars: []string{"MAILHOOK_SECRET_KEY"},
		Usage: "the master key that seals customers' secrets: 32 bytes in base64 (openssl rand -base64 32)",
	}
}

func keyring(c *cli.Context) (*db.Keyring, error) {
	if c.String("secret-key") == "" {
		return nil, usagef("no master key: set MAILHOOK_SECRET_KEY to 32 random bytes in base64 (openssl rand -base64 32)")
	}
	ring, err := db.NewKeyring(c.String("secret-key"))
	if err != nil {
		return nil, usageError{fmt.Errorf("MAILHOOK_SECRET_KEY: %w", err)}
	}
	return ring, nil
}

func egressFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{
			Name: "allow-insecure-http", EnvVars: []string{"MAILHOOK_ALLOW_INSECURE_HTTP"},
			Usage: "let subscriptions use http",
		},
		&cli.StringSliceFlag{
			Name: "allow-cidr", EnvVars: []string{"MAILHOOK_ALLOW_CIDR"},
			Usage: "send to these addresses too, though they are not public: 127.0.0.0/8; repeatable, or with commas",
		},
	}
}

func allowCIDR(c *cli.Context) ([]netip.Prefix, error) {
	var prefixes []netip.Prefix
	for _, s := range c.StringSlice("allow-cidr") {
		p, err := netip.ParsePrefix(strings.TrimSpace(s))
		if err != nil {
			return nil, usagef("--allow-cidr %q is not a network like 10.0.0.0/8", s)
		}
		prefixes = append(prefixes, p.Masked())
	}
	return prefixes, nil
}

func jsonFlag() cli.Flag {
	return &cli.BoolFlag{Name: "json", EnvVars: []string{"MAILHOOK_JSON"}, Usage: "answer in JSON"}
}
