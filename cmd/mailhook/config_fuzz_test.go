package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"mailhook/db"
	"mailhook/worker"
)

// FuzzConfig: whatever the flags say, the configuration is one that a worker takes, or there is an error of one line
// that a terminal shows.
func FuzzConfig(f *testing.F) {
	d := worker.DefaultConfig()
	for _, c := range [][5]string{
		{"postgres:///mail", "127.0.0.0/8,::1/128", "336h", "1000", "4096"},
		{"", "10.0.0.0/99", "24h", "0", "65537"},
		{"a", "", "-1h", "1e3", "-1"},
		{"x=y", " 10.1.2.3/8 ,fe80::1%eth0/64", "9999999h", "99999999999999999999", "0x10"},
		{"\x00", "::ffff:10.0.0.0/104", d.Retention.Events.String(), "٣", ""},
	} {
		f.Add(c[0], c[1], c[2], c[3], c[4])
	}
	key := db.NewMasterKey()
	f.Fuzz(func(t *testing.T, url, networks, retention, inFlight, excerpt string) {
		var cfg worker.Config
		app := &cli.App{
			Name: "mailhook", Flags: workerFlags(databasesFlag()), Writer: new(bytes.Buffer), ErrWriter: new(bytes.Buffer), ExitErrHandler: func(*cli.Context, error) {},
			OnUsageError: func(_ *cli.Context, err error, _ bool) error { return usageError{err} },
			Action: func(c *cli.Context) error {
				urls, err := databaseURLs(c)
				if err != nil {
					return err
				}
				if len(urls) != 1 || urls[0] != url {
					t.Fatalf("--database-url %q is read as %q", url, urls)
				}
				cfg, err = workerConfig(c, urls[0])
				return err
			},
		}
		err := app.Run([]string{
			"mailhook", "--secret-key=" + key, "--database-url=" + url, "--allow-cidr=" + networks, "--retain-events=" + retention, "--max-in-flight=" + inFlight, "--excerpt-bytes=" + excerpt,
		})
		if err != nil {
			shownInert(t, "an error", inert(oneLine(err)), 0)
			return
		}
		if err := cfg.Validate(); err != nil {
			t.Fatal(err)
		}
		for _, network := range cfg.AllowCIDR {
			if !network.IsValid() || network != network.Masked() || network.Addr().Zone() != "" {
				t.Fatalf("%q allows %v", networks, network)
			}
		}
	})
}

// FuzzInert: what is written can be shown, and JSON stays JSON with the same values.
func FuzzInert(f *testing.F) {
	for _, text := range hostileTexts() {
		f.Add(text[:min(len(text), 1000)])
	}
	f.Fuzz(func(t *testing.T, text string) {
		shownInert(t, "inert", inert(text), 0)
		shownInert(t, "cell", cell(text), 0)
		quoted, err := json.Marshal(text)
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if _, err := (inertWriter{&out}).Write(append(quoted, '\n')); err != nil {
			t.Fatal(err)
		}
		shownInert(t, "JSON", out.String(), 1)
		var before, after string
		if json.Unmarshal(quoted, &before) != nil || json.Unmarshal(out.Bytes(), &after) != nil || before != after {
			t.Fatalf("%q is written as %q", text, out.String())
		}
		if strings.Contains(text, "\x1b") && !strings.Contains(inert(text), `\u001b`) {
			t.Fatalf("%q is %q", text, inert(text))
		}
	})
}
