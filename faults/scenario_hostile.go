package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// hostileTimeout is that of the hostile endpoints' subscriptions.
const hostileTimeout = 5 * time.Second

// mostOver is how much longer than its timeout a request may hold a slot.
const mostOver = time.Second

// mostGrown is what hostile endpoints may add to a worker's memory.
const mostGrown = 50 << 20

// hostileShare is how many requests a hostile endpoint answers properly: enough that its circuit seldom opens, which would
// spare the workers.
const hostileShare = 0.1

// hostileSchedule is as much of the default schedule as two minutes have: the first retry. With the short one of the other
// scenarios a failed delivery is tried thirteen times within 40 s, and what is compared is the price of retries.
func hostileSchedule() []time.Duration { return []time.Duration{5 * time.Second} }

// hostileEndpoints lets ten endpoints do the worst to whoever calls them, beside ten healthy ones, and compares with calm
// times, in turns.
func hostileEndpoints() scenario {
	var calm, hostile []interval
	var before, during int64
	return scenario{
		name: "hostile", what: "10 hostile endpoints beside 10 healthy ones: endless and dripping answers of all kinds",
		workers: 2, load: usualLoad(), drain: 3 * time.Minute,
		market: func(ctx context.Context, f *field) error {
			for i := range accounts {
				s := &subscription{account: account(i), types: []string{"*"}, healthy: i >= 10}
				if !s.healthy {
					s.timeout = hostileTimeout
					s.schedule = hostileSchedule()
				}
				if _, err := f.subscribe(ctx, s); err != nil {
					return err
				}
			}
			return nil
		},
		run: func(ctx context.Context, f *field) error {
			if err := f.receiver.openFlood(); err != nil {
				return err
			}
			mute, err := f.openMute(ctx)
			if err != nil {
				return err
			}
			rounds := 3
			if f.scale < 1 {
				rounds = 1
			}
			pause(ctx, 2*time.Second)
			for range rounds {
				calm = append(calm, f.lasting(ctx, f.seconds(20)))
				before = max(before, f.residentMemory())
				if err := f.turnHostile(ctx, f.subscriptions[:10], mute); err != nil {
					return err
				}
				watched, stop := context.WithCancel(ctx)
				peak := f.peakMemory(watched)
				hostile = append(hostile, f.lasting(ctx, f.seconds(40)))
				stop()
				during = max(during, <-peak)
				if err := f.turnHealthy(ctx, f.subscriptions[:10]); err != nil {
					return err
				}
				pause(ctx, hostileTimeout+mostOver) // until no request waits for a hostile one
			}
			return nil
		},
		verify: func(ctx context.Context, f *field, c *checker) error {
			f.compare("healthy endpoints beside hostile ones", p99(c.lateDuring(calm)), p99(c.lateDuring(hostile)))
			f.note("memory of a worker %d MiB at most, before %d MiB", during>>20, before>>20)
			if during > before+mostGrown {
				f.problem("hostile endpoints took %d MiB of a worker's memory, more than %d", (during-before)>>20, mostGrown>>20)
			}
			return f.checkSlots(ctx, f.subscriptions[:10])
		},
	}
}

// turnHostile gives each of ten endpoints a manner of its own; the last two leave HTTP altogether.
func (f *field) turnHostile(ctx context.Context, ten []*subscription, mute string) error {
	for i, m := range []manner{endlessHeader, dripping, drippingBody, endlessBody, heldHeader, endlessInterim, endlessStream, endlessTrailers} {
		ten[i].behave(behaviour{manner: m, proper: hostileShare})
	}
	for i, scheme := range []string{"http://", "https://"} {
		if err := f.exec(ctx, "UPDATE mailhook.subscriptions SET url = $2 WHERE id = $1", ten[8+i].id, scheme+mute+"/"); err != nil {
			return err
		}
	}
	return nil
}

func (f *field) turnHealthy(ctx context.Context, ten []*subscription) error {
	for _, s := range ten {
		s.behave(behaviour{})
		if err := f.exec(ctx, "UPDATE mailhook.subscriptions SET url = $2 WHERE id = $1 AND url <> $2", s.id, f.receiver.path(s.number)); err != nil {
			return err
		}
	}
	return nil
}

// openMute is an endpoint that takes connections, reads nothing, and drips what might become a TLS handshake.
func (f *field) openMute(ctx context.Context) (address string, err error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	f.atEnd(func() { listener.Close() }) //nolint:errcheck // ours
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()                         //nolint:errcheck // that is the fault
				drip(conn, "\x16\x03\x03\x40\x00", "\x02") // the head of a record of 16 KiB
			}()
		}
	}()
	return listener.Addr().String(), nil
}

// checkSlots asks how long requests took, by what the workers recorded: a slot is free when its request is over.
func (f *field) checkSlots(ctx context.Context, hostile []*subscription) error {
	var ids []string
	for _, s := range hostile {
		ids = append(ids, s.id.String())
	}
	var requests int64
	var longest int64
	var outcomes string
	err := f.pool.QueryRow(ctx, `SELECT coalesce(sum(o.n), 0)::bigint, coalesce(max(o.longest), 0)::bigint, coalesce(string_agg(o.n || ' ' || o.outcome, ', ' ORDER BY o.n DESC), '')
		FROM (SELECT a.outcome, count(*) AS n, max(a.duration_ms) AS longest FROM mailhook.attempts AS a
			WHERE a.subscription_id = ANY ($1::text[]::uuid[]) AND a.outcome <> 'ok' GROUP BY a.outcome) AS o`, ids).Scan(&requests, &longest, &outcomes)
	if err != nil {
		return fmt.Errorf("how long requests took: %w", err)
	}
	took := time.Duration(longest) * time.Millisecond
	f.note("%d requests to hostile endpoints failed (%s), the longest took %v of %v", requests, outcomes, took, hostileTimeout)
	if requests == 0 {
		f.problem("no request to a hostile endpoint failed")
	}
	if took > hostileTimeout+mostOver {
		f.slow("a request held its slot for %v, its timeout is %v", took, hostileTimeout)
	}
	return nil
}

// residentMemory is that of the worker that has most.
func (f *field) residentMemory() (most int64) {
	pattern := regexp.MustCompile(`VmRSS:\s+(\d+) kB`)
	for _, p := range f.living() {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
		match := pattern.FindSubmatch(status)
		if err != nil || match == nil {
			continue
		}
		kilobytes, _ := strconv.ParseInt(string(match[1]), 10, 64) // digits
		most = max(most, kilobytes<<10)
	}
	return most
}

// peakMemory watches until ctx ends, and then tells.
func (f *field) peakMemory(ctx context.Context) <-chan int64 {
	peak := make(chan int64, 1)
	go func() {
		var most int64
		for pause(ctx, 100*time.Millisecond) {
			most = max(most, f.residentMemory())
		}
		peak <- most
	}()
	return peak
}

// answerHostile writes until the sender has enough. None of it is a success.
func answerHostile(conn net.Conn, m manner) {
	const failed = "HTTP/1.1 500 Hostile\r\n"
	switch m {
	case dripping:
		drip(conn, "HTTP/1.1 200 OK\r\nX-Endless: ", "a")
	case drippingBody:
		drip(conn, failed+"\r\n", "a")
	case endlessHeader:
		repeat(conn, failed+"X-Junk: ", "jjjjjjjj")
	case endlessBody:
		repeat(conn, failed+"\r\n", "abcdefgh")
	case heldHeader: // as much as is taken, and then nothing
		io.WriteString(conn, failed+"X-Junk: "+strings.Repeat("j", 15<<10)+"\r\nContent-Length: 10\r\n\r\n") //nolint:errcheck // it may have gone
	case endlessInterim:
		repeat(conn, "", "HTTP/1.1 103 Early Hints\r\nLink: </>\r\n\r\n")
	case endlessStream:
		repeat(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", "streaming")
	case endlessTrailers:
		repeat(conn, failed+"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n", "X-Trailer: tttttttt\r\n")
	case properly, blackholed, resetting:
	}
}

func repeat(conn net.Conn, head, again string) {
	again = strings.Repeat(again, 512)
	for _, err := io.WriteString(conn, head); err == nil; {
		_, err = io.WriteString(conn, again)
	}
}

func drip(conn net.Conn, head, again string) {
	for _, err := io.WriteString(conn, head); err == nil; {
		time.Sleep(200 * time.Millisecond)
		_, err = io.WriteString(conn, again)
	}
}
