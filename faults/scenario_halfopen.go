package main

import (
	"context"
	"net/url"
	"time"

	"mailhook/db/localpg"
)

// afterHalfOpen is the bar of recovery when nobody says that a connection is dead.
const afterHalfOpen = 15 * time.Second

// halfOpen makes the network swallow the connections of the workers, first those that listen, then all, without a word to
// either end. The host goes another way.
func halfOpen() scenario {
	var proxy *localpg.Proxy
	var from, to time.Time
	return scenario{
		name: "half-open", what: "the listening connections blackholed, then all connections of the workers", ci: true,
		workers: 2, load: usualLoad(), recovery: afterHalfOpen, market: sluggish,
		place: func(_ context.Context, f *field) (err error) {
			proxy, err = f.standBetween(f.server.Addr())
			if err == nil {
				f.workerURL = f.server.URLVia(proxy, "postgres")
			}
			return err
		},
		run: func(ctx context.Context, f *field) error {
			if !pause(ctx, 2*time.Second) {
				return ctx.Err()
			}
			from = time.Now()
			if err := f.swallow(ctx, proxy, "LISTEN", func(c *localpg.Conn) bool { return c.Sent("LISTEN ") }); err != nil {
				return err
			}
			if err := f.swallow(ctx, proxy, "all", func(*localpg.Conn) bool { return true }); err != nil {
				return err
			}
			to = time.Now()
			// The proxy keeps the server's ends, which no network would: now they end.
			x := fault{from: time.Now(), to: time.Now()}
			proxy.Cut()
			f.faulty(x)
			pause(ctx, 2*time.Second)
			return nil
		},
		verify: func(_ context.Context, f *field, c *checker) error {
			f.boundLateness(c, from, to, afterHalfOpen)
			return nil
		},
	}
}

// standBetween starts a proxy that lasts as long as the field.
func (f *field) standBetween(target string) (*localpg.Proxy, error) {
	proxy, err := localpg.StartProxy(target)
	if err == nil {
		f.atEnd(proxy.Close)
	}
	return proxy, err
}

// via is a connection string that leads to other servers, in their order.
func via(from, addresses string) (string, error) {
	u, err := url.Parse(from)
	if err != nil {
		return "", err
	}
	u.Host = addresses
	return u.String(), nil
}

// swallow makes the connections of this moment half open, and waits until each worker listens again.
func (f *field) swallow(ctx context.Context, proxy *localpg.Proxy, name string, match func(*localpg.Conn) bool) error {
	var now time.Time
	if err := f.pool.QueryRow(ctx, "SELECT clock_timestamp()").Scan(&now); err != nil {
		return err
	}
	x := fault{from: time.Now()}
	hit := proxy.BlackholeWhere(match)
	proxy.Restore()
	x.to = time.Now()
	f.faulty(x)
	if hit == 0 {
		f.problem("%s: no connection was hit: nothing was shown", name)
	}
	err := eventually(ctx, 2*afterHalfOpen, "the workers listen again", func() (bool, error) {
		n, err := f.count(ctx, "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'mailhook listener' AND backend_start > $1", now)
		return int(n) >= len(f.living()), err
	})
	took := time.Since(x.to)
	f.note("%s: %d connections hit, all workers listen again after %.1f s", name, hit, took.Seconds())
	if took-f.stalled(x.to, time.Now()) > afterHalfOpen {
		f.slow("%s: the workers listen again after %v, more than %v", name, took.Round(time.Millisecond), afterHalfOpen)
	}
	return err
}

// boundLateness asks that no event of a healthy endpoint committed in this time came later than that.
func (f *field) boundLateness(c *checker, from, to time.Time, most time.Duration) {
	took := c.lateBetween(from, to)
	if len(took) == 0 {
		f.problem("nothing was committed and delivered during the fault: nothing was shown")
		return
	}
	f.note("committed meanwhile: p99 %v, the latest after %v", p99(took).Round(time.Millisecond), took[len(took)-1].Round(time.Millisecond))
	if latest := took[len(took)-1]; latest > most {
		f.slow("an event came %v after its commit, more than %v", latest.Round(time.Millisecond), most)
	}
}
