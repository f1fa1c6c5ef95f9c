package sql

import (
	"embed"
	"fmt"
	"path"
	"slices"
	"strings"
)

// The trigger SQL of each host: adapters/HOST.sql, and adapters/HOST_uninstall.sql to remove it.
//
//go:embed adapters/*.sql
var adapters embed.FS

const uninstallSuffix = "_uninstall"

// Adapter is the SQL that an operator runs with psql to put mailhook's triggers on a host's tables, or with uninstall
// to remove them. The error for a host that there is no adapter for names those there are.
func Adapter(host string, uninstall bool) (string, error) {
	if !slices.Contains(Adapters(), host) {
		return "", fmt.Errorf("there is no adapter for %q, only for: %s", host, strings.Join(Adapters(), ", "))
	}
	if uninstall {
		host += uninstallSuffix
	}
	text, err := adapters.ReadFile(path.Join("adapters", host+".sql"))
	if err != nil {
		return "", fmt.Errorf("read adapter: %w", err)
	}
	return string(text), nil
}

// Adapters are the hosts that Adapter knows, in alphabetical order.
func Adapters() []string {
	files, _ := adapters.ReadDir("adapters") // it is embedded: there is no error
	var hosts []string
	for _, f := range files {
		if host := strings.TrimSuffix(f.Name(), ".sql"); !strings.HasSuffix(host, uninstallSuffix) {
			hosts = append(hosts, host)
		}
	}
	return hosts
}
