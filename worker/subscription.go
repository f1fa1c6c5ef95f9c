package worker

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/url"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/time/rate"

	"mailhook/db"
	"mailhook/db/format"
)

// cacheSize bounds the subscriptions in memory. Beyond it, those not used lately are read again.
const cacheSize = 20_000

// A subscription is what a request needs to know of it. It is replaced, never changed.
type subscription struct {
	version    int64
	url        string
	format     format.Format
	target     *format.Target
	allowsHTTP bool // by its account
	headers    map[string]string
	scope      scope
	hidden     [][]byte // must not come back in excerpts
	keys       [][]byte // newest first; none: no request may be made
	timeout    time.Duration
	mostAtOnce int32     // requests, over all workers
	batch      *batching // nil: one event a request
	only200    bool      // another 2xx is a failure
	mayStart   bool
	pace       *pace // nil: no limit
	reloadAt   time.Time

	parseOnce sync.Once
	parsed    *url.URL
}

// in is the subscription with another format of its channel.
func (s *subscription) in(name string) *subscription {
	f, _ := format.Find(name) // one that is not known renders nothing
	if f.Channel != s.format.Channel {
		f = format.Format{}
	}
	return &subscription{
		version: s.version, url: s.url, format: f, target: s.target, allowsHTTP: s.allowsHTTP, headers: s.headers, scope: s.scope, hidden: s.hidden, keys: s.keys, timeout: s.timeout, batch: s.batch, only200: s.only200,
	}
}

// address is the URL to send to.
func (s *subscription) address() (*url.URL, error) {
	s.parseOnce.Do(func() { s.parsed, _ = url.Parse(s.url) })
	if s.parsed == nil || s.parsed.Host == "" {
		return nil, errors.New("the URL cannot be parsed")
	}
	return s.parsed, nil
}

// subscriptionCache holds subscriptions by id: two generations, so that the unused fall out without bookkeeping on
// every read.
type subscriptionCache struct {
	q       *db.Queries
	keyring *db.Keyring
	log     *slog.Logger

	mu      sync.RWMutex
	workers int32
	young   map[uuid.UUID]*subscription
	old     map[uuid.UUID]*subscription
}

func newSubscriptionCache(q *db.Queries, keyring *db.Keyring, log *slog.Logger) *subscriptionCache {
	return &subscriptionCache{q: q, keyring: keyring, log: log, workers: 1, young: map[uuid.UUID]*subscription{}, old: map[uuid.UUID]*subscription{}}
}

// get is the subscription, or nil when it is not loaded.
func (c *subscriptionCache) get(id uuid.UUID) *subscription {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if s, ok := c.young[id]; ok {
		return s
	}
	return c.old[id]
}

// load reads the subscriptions of deliveries that are not here yet.
func (c *subscriptionCache) load(ctx context.Context, deliveries []*delivery) error {
	missing := map[uuid.UUID]bool{}
	now := time.Now()
	for _, d := range deliveries {
		if s := c.get(d.subscriptionID); s == nil || now.After(s.reloadAt) {
			missing[d.subscriptionID] = true
		}
	}
	return c.read(ctx, missing)
}

// refresh reads again what has changed since a time of the database's clock.
func (c *subscriptionCache) refresh(ctx context.Context, since time.Time) error {
	rows, err := c.q.ListChangedSubscriptions(ctx, since)
	if err != nil {
		return err
	}
	changed := map[uuid.UUID]bool{}
	for _, row := range rows {
		if s := c.get(row.ID); s != nil && (row.ByAccount || s.version != row.Version) {
			changed[row.ID] = true
		}
	}
	return c.read(ctx, changed)
}

func (c *subscriptionCache) read(ctx context.Context, ids map[uuid.UUID]bool) error {
	if len(ids) == 0 {
		return nil
	}
	list := make([]uuid.UUID, 0, len(ids))
	for id := range maps.Keys(ids) {
		list = append(list, id)
	}
	return call(ctx, func(ctx context.Context) error {
		rows, err := c.q.LoadSubscriptions(ctx, list)
		if err != nil {
			return err
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if len(c.young)+len(rows) > cacheSize/2 {
			c.young, c.old = make(map[uuid.UUID]*subscription, len(rows)), c.young
		}
		for _, row := range rows {
			// A slower read must not undo a newer one.
			before := cmp.Or(c.young[row.ID], c.old[row.ID])
			if before == nil || before.version <= row.Version {
				c.young[row.ID] = c.open(row, before)
				delete(c.old, row.ID) // the pace that it had goes on in the new one, and share must find it once
			}
			delete(ids, row.ID)
		}
		for id := range ids { // rows that are gone
			c.young[id] = &subscription{reloadAt: time.Now().Add(time.Hour)}
		}
		return nil
	})
}

// parkedReload is how often a subscription without its secrets is read again: its rows may have been mended by hand.
const parkedReload = time.Minute

// open makes a subscription of its row. Where not all of its secrets and credentials can be opened it gets none: its
// attempts then end as no_secret, on schedule, and no other subscription's do.
func (c *subscriptionCache) open(row db.LoadSubscriptionsRow, before *subscription) *subscription {
	s := &subscription{
		version:    row.Version,
		url:        row.URL,
		allowsHTTP: row.AllowsHTTP,
		timeout:    time.Duration(row.TimeoutMS) * time.Millisecond,
		mostAtOnce: row.MaxInFlight,
		only200:    row.SuccessRule == "200",
		mayStart:   row.MayStart && row.Exists,
		reloadAt:   time.Now().Add(row.ReloadAt.Sub(row.Now)),
	}
	if row.BatchMaxEvents > 0 {
		s.batch = &batching{int(row.BatchMaxEvents), time.Duration(row.BatchMaxWaitMS) * time.Millisecond}
	}
	s.format, _ = format.Find(row.Format) // one that this version does not know renders nothing
	if s.format.Channel != row.ChannelType {
		s.format = format.Format{}
	}
	if err := s.unseal(c.keyring, row); err != nil {
		s.keys, s.headers, s.target = nil, nil, nil
		s.reloadAt = earlier(s.reloadAt, time.Now().Add(parkedReload))
		if row.Exists && (before == nil || before.keys != nil) {
			c.log.Error("a subscription's secrets cannot be opened: its attempts end as no_secret", "subscription_id", db.FormatID(db.SubscriptionPrefix, row.ID), "error", err)
		}
	}
	if row.RateLimitPerSecond != nil {
		limit := rate.Limit(*row.RateLimitPerSecond / float64(c.workers))
		if before != nil && before.pace != nil {
			s.pace = before.pace // it remembers what was spent, and who waits
			s.pace.limiter.SetLimit(limit)
		} else {
			s.pace = &pace{limiter: rate.NewLimiter(limit, 1)}
		}
	}
	return s
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// share sets the number of workers that a rate limit is divided by.
func (c *subscriptionCache) share(workers int32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if workers == c.workers || workers < 1 {
		return
	}
	for _, generation := range []map[uuid.UUID]*subscription{c.young, c.old} {
		for _, s := range generation {
			if s.pace != nil {
				s.pace.limiter.SetLimit(s.pace.limiter.Limit() * rate.Limit(c.workers) / rate.Limit(workers))
			}
		}
	}
	c.workers = workers
}
