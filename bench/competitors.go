package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
)

// runBare posts n events with no database: what the client and the signature cost.
func runBare(ctx context.Context, args []string) error {
	n, err := strconv.ParseInt(args[1], 10, 64)
	if err != nil {
		return err
	}
	p := newPoster()
	var next atomic.Int64
	var group sync.WaitGroup
	for range concurrency {
		group.Go(func() {
			for i := next.Add(1); i <= n && ctx.Err() == nil; i = next.Add(1) {
				if err := p.post(ctx, fmt.Sprintf("%s/ok/%d", args[0], i%accounts), eventID(i), body(i)); err != nil && ctx.Err() == nil {
					fmt.Fprintln(os.Stderr, "bare:", err)
				}
			}
		})
	}
	group.Wait()
	<-ctx.Done() // so that its memory and CPU time can be read
	return nil
}

// A postJob is a delivery that is matched already: its URL, and the body to send.
type postJob struct {
	URL     string `json:"url"`
	EventID string `json:"event_id"`
	Body    string `json:"body"`
}

func (postJob) Kind() string { return "post" }

type postWorker struct {
	river.WorkerDefaults[postJob]
	poster *poster
}

func (w *postWorker) Work(ctx context.Context, job *river.Job[postJob]) error {
	return w.poster.post(ctx, job.Args.URL, job.Args.EventID, []byte(job.Args.Body))
}

// fetchCooldown is as good as any: 1, 20 and 100 ms gave 5.4k, 5.6k and 4.8k deliveries a second.
const fetchCooldown = time.Millisecond

// sameRuntime gives a competitor what mailhook's worker sets for itself, so that the same client is not compared under
// different settings of the collector.
func sameRuntime() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(300)
	}
}

// runRiver works the jobs of a database as fast as River can: as many at one time as mailhook's slots, and the shortest
// pause between fetches that it takes.
func runRiver(ctx context.Context, args []string) error {
	config, err := pgxpool.ParseConfig(args[0])
	if err != nil {
		return err
	}
	config.MaxConns = 10
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return err
	}
	defer pool.Close()
	workers := river.NewWorkers()
	river.AddWorker(workers, &postWorker{poster: newPoster()})
	client, err := river.NewClient(riverpgxv5.New(pool), &river.Config{
		Queues:            map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: concurrency}},
		Workers:           workers,
		FetchCooldown:     fetchCooldown,
		FetchPollInterval: 200 * time.Millisecond,
	})
	if err != nil {
		return err
	}
	if err := client.Start(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	<-ctx.Done()
	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
	defer cancel()
	return client.Stop(stopping)
}

// riverTemplate is a database with River's tables.
func (c *cluster) riverTemplate(ctx context.Context) error {
	return c.template(ctx, "river", func(ctx context.Context, pool *pgxpool.Pool) error {
		migrator, err := rivermigrate.New(riverpgxv5.New(pool), nil)
		if err != nil {
			return err
		}
		_, err = migrator.Migrate(ctx, rivermigrate.DirectionUp, nil)
		return err
	})
}

// insertJobs commits n jobs, spread over the accounts' URLs.
func (d *database) insertJobs(ctx context.Context, receiver string, n int) error {
	client, err := river.NewClient(riverpgxv5.New(d.pool), &river.Config{})
	if err != nil {
		return err
	}
	for from := 1; from <= n; from += 10_000 {
		var jobs []river.InsertManyParams
		for i := from; i <= min(n, from+9_999); i++ {
			jobs = append(jobs, river.InsertManyParams{Args: postJob{
				URL: fmt.Sprintf("%s/ok/%d", receiver, i%accounts), EventID: eventID(int64(i)), Body: string(body(int64(i))),
			}})
		}
		if _, err := client.InsertManyFast(ctx, jobs); err != nil {
			return err
		}
	}
	return d.settle(ctx, "river_job")
}

// jobsDone waits until River has recorded all of its jobs.
func (d *database) jobsDone(ctx context.Context) error {
	for {
		var left bool
		if err := d.pool.QueryRow(ctx, "SELECT EXISTS (SELECT FROM river_job WHERE state <> 'completed')").Scan(&left); err != nil || !left {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// hidden runs a contestant when this command is called as one.
func hidden(args []string) (found bool, err error) {
	run := map[string]func(context.Context, []string) error{"bare": runBare, "river": runRiver, "worker": runProfiled}
	if len(args) == 0 || run[args[0]] == nil {
		return false, nil
	}
	sameRuntime()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	return true, run[args[0]](ctx, args[1:])
}
