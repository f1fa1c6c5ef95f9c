package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"mailhook/db"
	"mailhook/worker"
)

// workers are those of one process: one for each database, which share nothing but the process.
type workers []databaseWorker

// A databaseWorker is a worker and the name of its database: none when it is the only one.
type databaseWorker struct {
	database string
	*worker.Worker
}

// newWorkers makes a worker for each database, or fails and says for which it could not.
func newWorkers(ctx context.Context, cfg worker.Config, urls []string) (workers, error) {
	if len(urls) == 1 {
		cfg.DatabaseURL = urls[0]
		w, err := worker.New(ctx, cfg)
		if err != nil {
			return nil, err
		}
		return workers{{"", w}}, nil
	}
	names, err := databaseNames(urls)
	if err != nil {
		return nil, err
	}
	var all workers
	seen := map[string]string{}
	for i, url := range urls {
		w := databaseWorker{database: names[i]}
		id, err := identify(ctx, url)
		if err == nil && seen[id] != "" {
			err = usagef("this is %s once more: give each database once", seen[id])
		}
		if err == nil {
			seen[id] = w.database
			own := cfg
			own.DatabaseURL, own.Log = url, cfg.Log.With("database", w.database)
			own.Registry = prometheus.WrapRegistererWith(prometheus.Labels{"database": w.database}, cfg.Registry)
			w.Worker, err = worker.New(ctx, own)
		}
		if err != nil {
			all.close()
			return nil, w.named(err)
		}
		all = append(all, w)
	}
	return all, nil
}

func (all workers) close() {
	for _, w := range all {
		w.Close()
	}
}

func (all workers) ready() error   { return all.ask((*worker.Worker).Ready) }
func (all workers) healthy() error { return all.ask((*worker.Worker).Healthy) }

// ask is nil where each of them answers so, or says which do not.
func (all workers) ask(question func(*worker.Worker) error) error {
	var errs []error
	for _, w := range all {
		errs = append(errs, w.named(question(w.Worker)))
	}
	return errors.Join(errs...)
}

// run works on one database until ctx ends.
func (w databaseWorker) run(ctx context.Context) error { return w.named(w.Run(ctx)) }

func (w databaseWorker) named(err error) error {
	if err == nil || w.database == "" {
		return err
	}
	return fmt.Errorf("database %s: %w", w.database, err)
}

// databaseNames are what logs, metrics and errors call the databases, each different: the name of the database, with
// the host and port where two have the same. No user, no password.
func databaseNames(urls []string) ([]string, error) {
	var names, addresses []string
	named, given := map[string]int{}, map[string]bool{}
	for i, url := range urls {
		config, err := pgxpool.ParseConfig(url)
		if err != nil {
			// Not err: what it quotes of a broken URL may be the password.
			return nil, usagef("--database-url %d of %d cannot be parsed (mailhook migrate status with it alone says more)", i+1, len(urls))
		}
		at := config.ConnConfig
		name := cmp.Or(at.Database, at.User) // PostgreSQL's own default
		address := net.JoinHostPort(at.Host, strconv.Itoa(int(at.Port))) + "/" + name
		if given[address] {
			return nil, usagef("--database-url: %s is given twice", address)
		}
		given[address] = true
		named[name]++
		names, addresses = append(names, name), append(addresses, address)
	}
	for i, name := range names {
		if named[name] > 1 {
			names[i] = addresses[i]
		}
	}
	return names, nil
}

// identify tells databases apart by what they are, not by how they are reached. Not by their installation code: a
// copy of a database (CREATE DATABASE … TEMPLATE, a restored dump) has the code of the original.
func identify(ctx context.Context, url string) (id string, err error) {
	pool, err := db.Open(ctx, url, commandRole())
	if err != nil {
		return "", err
	}
	defer pool.Close()
	err = pool.QueryRow(ctx, `SELECT pg_postmaster_start_time()::text || ' ' || d.oid::text FROM pg_database AS d WHERE d.datname = current_database()`).Scan(&id)
	if err != nil {
		return "", fmt.Errorf("identify the database: %w", err)
	}
	return id, nil
}
