// Command bench measures mailhook on this machine, beside what it is compared with: a private PostgreSQL with fsync on,
// worker, receiver and host in one place. make bench runs every row, make bench ROW=throughput one of them.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

func main() {
	found, err := hidden(os.Args[1:])
	if !found {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
		defer stop()
		err = run(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// accounts is how many customers the rows have, unless they say otherwise.
const accounts = 1000

// A bench is one run: its server, its receiver, and what it has found.
type bench struct {
	cluster  *cluster
	receiver *receiver
	report   report
}

func run(ctx context.Context) error {
	b := &bench{}
	var err error
	if b.receiver, err = newReceiver(); err != nil {
		return err
	}
	if b.cluster, err = startCluster(ctx); err != nil {
		return err
	}
	defer b.cluster.stop()
	for _, row := range b.rows() {
		if only := os.Getenv("ROW"); only != "" && !strings.Contains(","+only+",", ","+row.name+",") {
			continue
		}
		fmt.Fprintf(os.Stderr, "%s: %s\n", row.name, row.what)
		if err := row.measure(ctx); err != nil {
			return fmt.Errorf("%s: %w", row.name, err)
		}
	}
	return nil
}

// A row is one measurement, by name.
type row struct {
	name, what string
	measure    func(context.Context) error
}

func (b *bench) rows() []row {
	return []row{
		{"throughput", "200,000 events of 1,000 accounts, 1 match each, beside River and the bare POST", b.throughput},
	}
}
