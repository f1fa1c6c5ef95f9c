package main

import (
	"context"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"mailhook/db"
	"mailhook/db/localpg"
)

// A field is all that one scenario has to itself: a PostgreSQL, a host, workers, receivers, and their ledgers.
type field struct {
	scenario scenario
	scale    float64
	seed     uint64
	lasts    time.Duration // DURATION; 0 is the scenario's own
	dir      string        // ledgers and logs
	binary   string
	previous string // binary, before an upgrade
	plots    string // where they go: beside the report

	server       *localpg.Server
	pool         *pgxpool.Pool  // the harness's own
	clock        *localpg.Clock // of the server; nil is the machine's
	url, hostURL string
	workerURL    string // url, unless something stands between
	key          string // master key, base64
	ring         *db.Keyring
	installation string
	began        time.Time // the ledgers count microseconds from here

	subscriptions []*subscription
	receiver      *receivers
	host          *host

	mu       sync.Mutex
	workers  []*process
	faults   []fault
	stalls   []interval // of the machine
	allowed  int        // duplicates, the sum of what was in flight at each crash
	problems []string
	notes    []string
	peakRSS  int64
	drained  time.Duration // how long after the host had stopped
	closing  []func()      // when all processes have ended, the last first
}

// A fault is a time in which something was broken on purpose.
type fault struct {
	from, to time.Time
	outage   bool // the database could not be reached: the host's errors are ours to excuse
	// forgets is from when on the database may have lost what workers recorded; zero is the usual moment before an outage.
	forgets time.Time
	// stranded is what a killed worker held; recovery is then measured of these alone.
	stranded map[pair]bool
	// everybody: no worker was left to see the others' heartbeats stand still, so a rescue begins anew.
	everybody bool
}

// A pair is an event, by its key, and a subscription, by its number.
type pair struct {
	subscription int
	key          int64
}

// installField starts a PostgreSQL with fsync and stock durability, and installs mailhook by the real binary.
func installField(ctx context.Context, s scenario, o options) (_ *field, err error) {
	f := &field{scenario: s, scale: o.scale, seed: o.seed, lasts: o.duration, binary: o.binary, plots: filepath.Dir(o.report), key: db.NewMasterKey(), began: time.Now()}
	if f.dir, err = os.MkdirTemp("", "mailhook-faults-"+s.name+"-"); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(f.dir, "postgres.log"))
	if err != nil {
		return nil, err
	}
	settings := map[string]string{"max_wal_size": "1GB", "shared_buffers": "128MB", "max_connections": "120"}
	if os.Getenv("EXPLAIN") != "" {
		settings["session_preload_libraries"], settings["auto_explain.log_min_duration"] = "auto_explain", "1s"
	}
	for name, value := range s.settings {
		settings[name] = value
	}
	ground := localpg.Options{Settings: settings, Log: log}
	if s.ground != nil {
		if err := s.ground(f, &ground); err != nil {
			return f, err
		}
	}
	f.clock = ground.Clock
	if f.server, err = localpg.Start(ctx, ground); err != nil {
		return f, err
	}
	f.url = f.server.URL("postgres")
	f.workerURL = f.url
	f.hostURL = strings.Replace(f.url, "postgres@", "host_app@", 1) // a role that may only produce
	if f.ring, err = db.NewKeyring(f.key); err != nil {
		return f, err
	}
	if f.pool, err = pgxpool.New(ctx, f.url); err != nil {
		return f, err
	}
	if err := f.command(ctx, "migrate", "up"); err != nil {
		return f, err
	}
	// The host's own record of a transaction, in its own table: what says later whether one committed whose answer was lost.
	if err := f.exec(ctx, `CREATE ROLE host_app LOGIN IN ROLE mailhook_producer; CREATE SCHEMA host; CREATE TABLE host.transactions (number bigint PRIMARY KEY); CREATE TABLE host.bystanders (at timestamptz);
		GRANT USAGE ON SCHEMA host TO host_app; GRANT INSERT ON host.transactions, host.bystanders TO host_app`); err != nil {
		return f, err
	}
	if err := f.exec(ctx, historySQL); err != nil {
		return f, err
	}
	if err := f.pool.QueryRow(ctx, "SELECT mailhook.installation_code()").Scan(&f.installation); err != nil {
		return f, err
	}
	if f.receiver, err = newReceivers(f); err != nil {
		return f, err
	}
	if f.host, err = newHost(f); err != nil || s.place == nil {
		return f, err
	}
	return f, s.place(ctx, f)
}

// atEnd has something closed when all processes have ended.
func (f *field) atEnd(end func()) { f.closing = append(f.closing, end) }

// close ends all processes. The directory stays where something is wrong.
func (f *field) close(keep bool) {
	for _, w := range f.processes() {
		w.kill()
	}
	if f.receiver != nil {
		f.receiver.close()
	}
	if f.pool != nil {
		f.pool.Close()
	}
	if f.server != nil {
		f.server.Stop() //nolint:errcheck // a scenario may have ended it
	}
	for _, end := range slices.Backward(f.closing) {
		end()
	}
	if !keep {
		os.RemoveAll(f.dir) //nolint:errcheck // in a temporary directory
	}
}

// random is a source for one part of a scenario; the same seed gives the same.
func (f *field) random(part string) *rand.Rand {
	h := fnv.New64a()
	fmt.Fprint(h, f.scenario.name, "/", part)
	return rand.New(rand.NewPCG(f.seed, h.Sum64())) //nolint:gosec // to be repeated, not to be secret
}

// at is a moment in the ledgers' time: microseconds since the field began.
func (f *field) at(t time.Time) int64 { return t.Sub(f.began).Microseconds() }

func (f *field) exec(ctx context.Context, sql string, args ...any) error {
	_, err := f.pool.Exec(ctx, sql, args...)
	if err != nil {
		return fmt.Errorf("%.60s: %w", sql, err)
	}
	return nil
}

func (f *field) count(ctx context.Context, sql string, args ...any) (n int64, err error) {
	if err = f.pool.QueryRow(ctx, sql, args...).Scan(&n); err != nil {
		err = fmt.Errorf("%.60s: %w", sql, err)
	}
	return n, err
}

// problem notes a broken invariant: the scenario goes on, and is red at its end.
func (f *field) problem(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.problems = append(f.problems, fmt.Sprintf(format, args...))
}

// slow is problem for what took too long. Where the gate runs, several scenarios share a machine of which nothing is known:
// there it is told, and breaks nothing.
func (f *field) slow(format string, args ...any) {
	if f.scale < 1 {
		f.note("slow: "+format, args...)
	} else {
		f.problem(format, args...)
	}
}

// note adds a figure to the scenario's line.
func (f *field) note(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.notes = append(f.notes, fmt.Sprintf(format, args...))
}

// allow adds duplicates that a crash explains.
func (f *field) allow(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.allowed += n
}

// faulty notes a fault that has ended.
func (f *field) faulty(x fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults = append(f.faults, x)
}

// excused says whether the host may fail in this time: the database could not be reached. A second more, for the host
// finds out late.
func (f *field) excused(from, to time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, x := range f.faults {
		if x.outage && from.Before(x.to.Add(time.Second)) && to.After(x.from) {
			return true
		}
	}
	return false
}

// seconds is a time of a scenario, shorter in a small run.
func (f *field) seconds(n float64) time.Duration {
	return time.Duration(n * f.scale * float64(time.Second))
}

// duration is how long a scenario without an end of its own goes on.
func (f *field) duration(usual time.Duration) time.Duration {
	if f.lasts > 0 {
		return f.lasts
	}
	return time.Duration(float64(usual) * f.scale)
}

// scaled is n, or less in a small run, and at least least.
func (f *field) scaled(n, least int) int { return max(least, int(float64(n)*f.scale)) }

// A subscription as the oracle knows it.
type subscription struct {
	number  int
	id      uuid.UUID
	account string
	types   []string // exact, or *
	// healthy: all of its events are delivered, and soon.
	healthy bool
	// churned: deleted, paused or changed in the course of the scenario; what matches it is not known beforehand.
	churned  bool
	schedule []time.Duration
	inFlight int
	rate     float64 // 0: none
	timeout  time.Duration

	mu        sync.Mutex
	secrets   []string
	behaviour behaviour
	closed    []interval // paused or deleted, acknowledged
	deleted   atomic.Bool
}

// An interval is a time, such as one in which a subscription should get nothing; to is zero while it lasts.
type interval struct{ from, to time.Time }

// shortSchedule lets every schedule end within a scenario: 12 retries.
func shortSchedule() []time.Duration {
	return []time.Duration{time.Second, time.Second, 2 * time.Second, 2 * time.Second, 3 * time.Second, 3 * time.Second,
		4 * time.Second, 4 * time.Second, 5 * time.Second, 5 * time.Second, 5 * time.Second, 5 * time.Second}
}

// jitter is the share by which every delay varies (subscriptions.retry_jitter).
const jitter = 0.2

// subscribe inserts a subscription with its secret, and answers it.
func (f *field) subscribe(ctx context.Context, s *subscription) (*subscription, error) {
	s.id = uuid.Must(uuid.NewV7())
	f.mu.Lock()
	s.number = len(f.subscriptions)
	f.subscriptions = append(f.subscriptions, s)
	f.mu.Unlock()
	if s.secrets == nil {
		s.secrets = []string{fmt.Sprintf("secret of subscription %d", s.number)}
	}
	if s.schedule == nil {
		s.schedule = shortSchedule()
	}
	if s.inFlight == 0 {
		s.inFlight = 32
	}
	if s.timeout == 0 {
		s.timeout = 15 * time.Second
	}
	var rate *float64
	if s.rate > 0 {
		rate = &s.rate
	}
	err := f.exec(ctx, `INSERT INTO mailhook.subscriptions (id, account_id, url, event_types, retry_preset, retry_schedule, retry_jitter, max_in_flight, rate_limit_per_second, timeout)
		VALUES ($1, $2, $3, $4, NULL, $5::text[]::interval[], $6, $7, $8, $9)`,
		s.id, s.account, f.receiver.path(s.number), s.types, texts(s.schedule), jitter, s.inFlight, rate, s.timeout)
	if err != nil {
		return nil, err
	}
	return s, f.exec(ctx, "INSERT INTO mailhook.subscription_secrets (subscription_id, key_id, sealed) VALUES ($1, $2, $3)",
		s.id, f.ring.First().ID, f.ring.First().Seal(db.SealedSecret, s.id, []byte(s.secrets[0])))
}

// everySubscription is those that were ever made.
func (f *field) everySubscription() []*subscription {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.subscriptions)
}

func texts(delays []time.Duration) []string {
	var t []string
	for _, d := range delays {
		t = append(t, fmt.Sprintf("%d ms", d.Milliseconds()))
	}
	return t
}

// accounts is how many customers the host has, each with two subscriptions unless a scenario says otherwise.
const accounts = 20

// populate makes the usual market: two healthy subscriptions for each account, one of everything and one of two types.
func (f *field) populate(ctx context.Context) error {
	for i := range accounts {
		for _, types := range [][]string{{"*"}, {"email.opened", "email.bounced"}} {
			if _, err := f.subscribe(ctx, &subscription{account: account(i), types: types, healthy: true}); err != nil {
				return err
			}
		}
	}
	return nil
}

// sluggish is the usual market with endpoints that take up to 400 ms, so that requests are under way at any moment.
func sluggish(ctx context.Context, f *field) error {
	if err := f.populate(ctx); err != nil {
		return err
	}
	for i, s := range f.subscriptions {
		s.behave(behaviour{delay: time.Duration(i%5) * 100 * time.Millisecond})
	}
	return nil
}

func account(i int) string { return fmt.Sprintf("a%d", i) }

// An event as the host writes it follows from its key, for host and oracle alike.
func accountOf(key int64) string { return account(int(mix(key) % accounts)) }

func typeOf(key int64) string {
	return []string{"email.delivered", "email.opened", "email.bounced", "email.clicked"}[mix(key)>>32%4]
}

// mix spreads the keys (the finalizer of splitmix64).
func mix(key int64) uint64 {
	z := uint64(key) * 0x9e3779b97f4a7c15 //nolint:gosec // bits
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	return z ^ z>>27
}

// wants is the oracle of matching.
func (s *subscription) wants(account, eventType string) bool {
	if s.account != account {
		return false
	}
	for _, t := range s.types {
		if t == "*" || t == eventType || strings.HasPrefix(eventType, t+".") {
			return true
		}
	}
	return false
}

func (s *subscription) behave(b behaviour) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.behaviour = b
}
