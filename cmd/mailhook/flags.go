package main

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/urfave/cli/v2"

	"mailhook/db"
)

// Flags that several commands take. Every flag has an environment name.

func databaseFlag() cli.Flag {
	return urlFlag("the host's PostgreSQL; without it the PG* variables count (PGHOST, PGUSER, …)", "MAILHOOK_DATABASE_URL", "DATABASE_URL")
}

func databasesFlag() cli.Flag {
	return urlFlag("the host's PostgreSQL; repeat it for several databases, each of which gets a worker of its own in this process; without it the PG* variables count (PGHOST, PGUSER, …)",
		"MAILHOOK_DATABASE_URL", "DATABASE_URL")
}

// A databaseURLFlag notes every --database-url, so that none is silently the last. It is not the library's slice flag:
// that one splits at commas, and a connection string may have several hosts.
type databaseURLFlag struct{ *cli.GenericFlag }

func urlFlag(usage string, environment ...string) cli.Flag {
	return databaseURLFlag{&cli.GenericFlag{Name: "database-url", EnvVars: environment, Value: &urlList{}, Usage: usage}}
}

// Apply reads the environment, which holds one URL; any flag takes its place.
func (f databaseURLFlag) Apply(set *flag.FlagSet) error {
	err := f.GenericFlag.Apply(set)
	f.Value.(*urlList).replaceable = true
	return err
}

type urlList struct {
	urls        []string
	replaceable bool
}

func (l *urlList) Set(url string) error {
	if l.replaceable {
		l.urls, l.replaceable = nil, false
	}
	l.urls = append(l.urls, url)
	return nil
}

// String is empty: the library quotes it in its messages.
func (l *urlList) String() string { return "" }

// givenURLs are the connection strings of the flag, or the one of the environment.
func givenURLs(c *cli.Context) []string { return c.Generic("database-url").(*urlList).urls }

// givenURL is the only one of them, if any.
func givenURL(c *cli.Context) (string, error) {
	switch urls := givenURLs(c); len(urls) {
	case 0:
		return "", nil
	case 1:
		return urls[0], nil
	default:
		return "", usagef("%s works on one database, but --database-url is given %d times: only mailhook worker takes several", c.Command.HelpName, len(urls))
	}
}

// databaseURLs are the connection strings given, or one that makes pgx read the PG* variables.
func databaseURLs(c *cli.Context) ([]string, error) {
	urls := givenURLs(c)
	if len(urls) > 1 && slices.Contains(urls, "") {
		return nil, usagef("one of %d --database-url is empty", len(urls))
	}
	if len(urls) > 0 && urls[0] != "" {
		return urls, nil
	}
	for _, name := range []string{"PGHOST", "PGSERVICE", "PGDATABASE", "PGUSER"} {
		if os.Getenv(name) != "" {
			return []string{"application_name=mailhook"}, nil
		}
	}
	return nil, usagef("no database: set --database-url, MAILHOOK_DATABASE_URL, DATABASE_URL or the PG* variables")
}

// databaseURL is for the commands that work on one database.
func databaseURL(c *cli.Context) (string, error) {
	if _, err := givenURL(c); err != nil {
		return "", err
	}
	urls, err := databaseURLs(c)
	if err != nil {
		return "", err
	}
	return urls[0], nil
}

func keyringFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{
			Name: "secret-key", EnvVars: []string{"MAILHOOK_SECRET_KEY"}, DefaultText: "none",
			Usage: "the master key that seals customers' secrets: 32 bytes in base64 (openssl rand -base64 32); several with commas, of which the first is the newest. A flag shows in the list of processes: use the environment or a file",
		},
		&cli.StringFlag{Name: "secret-key-file", EnvVars: []string{"MAILHOOK_SECRET_KEY_FILE"}, Usage: "a file with the master keys, one a line"},
	}
}

func keyring(c *cli.Context) (*db.Keyring, error) {
	keys, file, source := c.String("secret-key"), c.String("secret-key-file"), "MAILHOOK_SECRET_KEY"
	switch {
	case keys != "" && file != "":
		return nil, usagef("MAILHOOK_SECRET_KEY and MAILHOOK_SECRET_KEY_FILE are both set: choose one")
	case file != "":
		text, err := os.ReadFile(file) //nolint:gosec // the operator names it
		if err != nil {
			return nil, usageError{fmt.Errorf("MAILHOOK_SECRET_KEY_FILE: %w", err)}
		}
		keys, source = string(text), "MAILHOOK_SECRET_KEY_FILE"
	case keys == "":
		return nil, usagef("no master key: set MAILHOOK_SECRET_KEY to 32 random bytes in base64 (openssl rand -base64 32), or MAILHOOK_SECRET_KEY_FILE to a file that holds them")
	}
	ring, err := db.NewKeyring(keys)
	if err != nil {
		return nil, usageError{fmt.Errorf("%s: %w", source, err)}
	}
	return ring, nil
}

// durationFlag takes what the API takes: 30s, 12h, 14d.
func durationFlag(name, environment string, value time.Duration, usage string) cli.Flag {
	d := duration(value)
	return &cli.GenericFlag{Name: name, EnvVars: []string{environment}, Value: &d, Usage: usage}
}

type duration time.Duration

func (d *duration) Set(text string) error {
	parsed, err := db.ParseDuration(text)
	*d = duration(parsed)
	return err
}

func (d *duration) String() string { return db.FormatDays(time.Duration(*d)) }

// givenDuration is what a flag of durationFlag says.
func givenDuration(c *cli.Context, name string) time.Duration {
	return time.Duration(*c.Generic(name).(*duration))
}

func jsonFlag() cli.Flag {
	return &cli.BoolFlag{Name: "json", EnvVars: []string{"MAILHOOK_JSON"}, Usage: "answer in JSON"}
}
