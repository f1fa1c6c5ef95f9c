package worker

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"mailhook/db"
)

// genericConnections are the sessions with generic plans, slowConnections those for statements that may take their time.
const (
	genericConnections = 5
	slowConnections    = 1
)

// settleTime is how long a worker that joins others takes nothing: longer than their pulse. settlePause is how often it asks whether
// their statements have ended.
const (
	settleTime  = time.Second
	settlePause = 20 * time.Millisecond
)

const (
	// callTimeout bounds every call to the database: a connection that is dead without having said so is found by it, and
	// the next call dials. slowTimeout is for those that may take their time.
	callTimeout = 8 * time.Second
	slowTimeout = 30 * time.Second
	// statementMargin is how much earlier the server ends a statement, so that the connection survives it.
	statementMargin = time.Second
)

// A Worker runs the flow against one database. Make it with New, run it once with Run.
type Worker struct {
	cfg  Config
	pool *db.Pool
	q    *db.Queries
	// Five sessions with generic plans for what must not queue behind a slow statement: dispatch, or a claim in its place; the second
	// dispatch; that of the urgent lane; record; heartbeat and pulse.
	genericPool *db.Pool
	genericQ    *db.Queries
	// One for retention and erasures. The server ends a statement before its caller gives up: a call that is given up costs its pool all
	// connections, for they may be dead.
	slowPool *db.Pool
	slowQ    *db.Queries

	installation string
	metrics      *metrics
	identity     identity
	leases       *leases
	// leasing is held from the count of what is in flight to the answer of a dispatch or claim: two of them side by side
	// would each give a subscription the same room. A dispatch of the urgent lane has room of its own and waits for none of
	// them: urgentLeasing is between it and claims of that lane, which hold both. The second dispatch is offered where there is room for two.
	leasing, urgentLeasing sync.Mutex

	state      pulseState
	cache      *subscriptionCache
	client     *client
	batches    *batches
	started    chan job // taken by a sender that has nothing to do
	outcomes   chan outcome
	concluding sync.Mutex // held while the outcomes of one request are sent there
	returns    chan returned

	busy chan struct{} // dispatching, from now on
	// dispatching: the ordinary dispatch has something to do, or waits to do it: look for what is urgent beside it.
	dispatching atomic.Bool
	early       early
	calm        calm
	offers      chan offer    // of the ordinary dispatch, to the second one
	events      chan struct{} // a notification: look into the outbox
	tests       chan struct{} // a notification: look for test sends
	due         chan struct{} // deliveries were left waiting: claim
	freed       atomic.Bool   // older ones were freed: claim by a walk
	// headless: keys whose next delivery may be due. sweepAll: look at all that are blocked.
	headless *headless
	sweepAll atomic.Bool
	ready    atomic.Bool
	// watching: hosts' notifications come to this worker.
	watching atomic.Bool
	// deaf: notifications do not arrive.
	deaf   atomic.Bool
	quiet  quiet
	outage outage
	// troubledAt is when a call to the database had no answer last, in ns since 1970.
	troubledAt atomic.Int64
}

// New connects, checks the schema, and makes itself ready to run. Close it if it is not run.
func New(ctx context.Context, cfg Config) (*Worker, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, slowTimeout)
	defer cancel()
	role := db.Role{Name: "mailhook worker", AsyncCommit: true, IndexOnly: true, StatementTimeout: callTimeout - statementMargin}
	role.MaxConns = int32(cfg.Connections) - genericConnections - slowConnections //nolint:gosec // validated
	pool, err := db.Open(ctx, cfg.DatabaseURL, role)
	if err != nil {
		return nil, err
	}
	slow, generic := role, role
	slow.MaxConns, slow.StatementTimeout = slowConnections, slowTimeout-statementMargin
	slowPool, err := db.Open(ctx, cfg.DatabaseURL, slow)
	if err != nil {
		pool.Close()
		return nil, err
	}
	generic.MaxConns, generic.GenericPlans = genericConnections, true
	genericPool, err := db.Open(ctx, cfg.DatabaseURL, generic)
	if err != nil {
		pool.Close()
		slowPool.Close()
		return nil, err
	}
	w := &Worker{
		cfg:  cfg,
		pool: pool,
		q:    db.New(sessions(pool)),

		genericPool: genericPool,
		genericQ:    db.New(sessions(genericPool)),
		slowPool:    slowPool,
		slowQ:       db.New(slowPool),

		leases:   newLeases(),
		headless: newHeadless(),
		client:   newClient(cfg),
		started:  make(chan job),
		outcomes: make(chan outcome, cfg.MaxInFlight),
		returns:  make(chan returned, cfg.MaxInFlight),
		busy:     make(chan struct{}, 1),
		offers:   make(chan offer, 1), // the next one is there when the second dispatch has ended
		events:   make(chan struct{}, 1),
		tests:    make(chan struct{}, 1),
		due:      make(chan struct{}, 1),
	}
	w.batches = newBatches(w)
	w.state.changed = make(chan struct{}, 1)
	w.deaf.Store(pool.Pooled())
	w.metrics = newMetrics(cfg.Registry, w.q, w.leases, cfg.Retention)
	w.cache = newSubscriptionCache(w.genericQ, cfg.Keyring, cfg.Log)
	if err := db.CheckPrivileges(ctx, pool, db.WorkerRole); err != nil {
		w.Close()
		return nil, err
	}
	if err := pool.QueryRow(ctx, "SELECT mailhook.installation_code()").Scan(&w.installation); err != nil {
		w.Close()
		return nil, fmt.Errorf("read installation code: %w", err)
	}
	if err := w.checkTrigger(ctx); err != nil {
		w.Close()
		return nil, err
	}
	if err := cfg.Keyring.Check(ctx, w.q); err != nil {
		w.Close()
		return nil, err
	}
	return w, nil
}

// checkTrigger says when the condition of the trigger on outbox cannot be read by those who insert: a restore without
// privileges takes the grant away.
func (w *Worker) checkTrigger(ctx context.Context) error {
	var readable bool
	if err := w.pool.QueryRow(ctx, "SELECT has_sequence_privilege('public', 'mailhook.wakeup', 'SELECT')").Scan(&readable); err != nil {
		return fmt.Errorf("read privileges: %w", err)
	}
	if !readable {
		w.cfg.Log.Warn("inserts into outbox fail (PostgreSQL 14 to 17) or wake nobody (18): GRANT SELECT ON SEQUENCE mailhook.wakeup TO PUBLIC")
	}
	return nil
}

// Close gives up what New took.
func (w *Worker) Close() {
	w.metrics.unregister()
	w.client.close()
	w.genericPool.Close()
	w.slowPool.Close()
	w.pool.Close()
}

// Run works until ctx ends, then stops in order: it claims no more, lets requests finish within the grace, gives back
// what it did not start, and records what it did. It answers nil after such a stop.
func (w *Worker) Run(ctx context.Context) error {
	defer w.Close()
	if err := w.register(ctx); err != nil {
		return err
	}
	w.cfg.Log.Info("worker started", "worker_id", w.identity.get(), "version", w.cfg.Version,
		"connections", w.connections(), "max_in_flight", w.cfg.MaxInFlight)
	if w.pool.Pooled() {
		w.cfg.Log.Warn("a pooler stands between: no notifications, going on by polling", "poll_interval", w.cfg.PollInterval)
	}

	// The loops that must outlive ctx: an outcome is recorded, and a lease kept alive, until the last request is over.
	after, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var lasting, loops errgroup.Group
	for _, loop := range []func(context.Context){w.pulse, w.heartbeat, w.record, w.giveBack, w.order, w.batches.run} {
		lasting.Go(func() error { loop(after); return nil })
	}
	w.settle(ctx)
	// The requests in flight end with this one.
	requests, abort := context.WithCancel(context.WithoutCancel(ctx))
	defer abort()
	for _, loop := range []func(context.Context){
		w.wake, func(ctx context.Context) { w.dispatch(ctx, requests) }, func(ctx context.Context) { w.dispatchSecond(ctx, requests) },
		func(ctx context.Context) { w.dispatchUrgent(ctx, requests) }, func(ctx context.Context) { w.claim(ctx, requests) },
		w.testSend, w.reconcileLeases, w.rescue, w.sweepOrder, w.cancel, w.hold, w.replay, w.erase, w.retain,
	} {
		loops.Go(func() error { loop(ctx); return nil })
	}
	loops.Wait() //nolint:errcheck // loops answer nothing

	w.finish(abort)
	stop()
	lasting.Wait()      //nolint:errcheck // as above
	w.unblockAll(after) // behind what the last record has ended
	w.signOff(context.WithoutCancel(ctx))
	return nil
}

// settle has a worker that joins others wait until they count with it: until they have had a pulse, and each dispatch or claim has ended
// that began before it was known. Other transactions over deliveries may go on for hours: it waits for no longer than theirs may take.
func (w *Worker) settle(ctx context.Context) {
	if w.state.crew() <= 1 {
		return // who joins later waits for this one's
	}
	before, asked := []string(nil), false
	isOver := func() bool {
		err := call(ctx, func(ctx context.Context) error {
			now, err := w.genericQ.ListWriters(ctx, "mailhook.deliveries")
			if err != nil {
				return err
			}
			if !asked {
				before, asked = now, true
			}
			before = slices.DeleteFunc(before, func(writer string) bool { return !slices.Contains(now, writer) })
			return nil
		})
		w.complain(ctx, "list writers of deliveries", err)
		return err == nil && len(before) == 0
	}
	over := isOver()
	pause(ctx, settleTime)
	for giveUp := time.Now().Add(callTimeout); !over && pause(ctx, settlePause); over = isOver() {
		if time.Now().After(giveUp) {
			w.cfg.Log.Warn("a transaction over deliveries does not end: a cap may be passed by what it leases", "transactions", before)
			break
		}
	}
	w.state.set(func(s *pulseState) { s.joinedAt = time.Now() })
}

// connections is how many this worker has at most.
func (w *Worker) connections() int {
	if w.pool.Pooled() {
		return w.cfg.Connections
	}
	return w.cfg.Connections + 1 // that of wake
}

// Ready says whether the loops make progress: nil, or what stands still. It is what readyz answers.
func (w *Worker) Ready() error {
	if !w.ready.Load() {
		return fmt.Errorf("the worker has not looked into the outbox yet")
	}
	return w.state.alive(time.Now())
}

// Healthy says whether this process can go on: nil, whatever the database does, or what has stopped in it, which only a restart
// mends. It is what healthz answers. It asks for the locks that all loops need, and so does not answer where one is never given back.
func (w *Worker) Healthy() error {
	w.leases.held()
	return w.state.turning(time.Now())
}

// finish sends what waits for a batch, and waits for the requests in flight, at most the grace and the moment that aborted
// ones need.
func (w *Worker) finish(abort func()) {
	w.batches.hurry()
	if w.leases.waitEmpty(w.cfg.Grace) {
		return
	}
	w.cfg.Log.Warn("grace is over: aborting requests in flight", "deliveries", w.leases.held())
	abort()
	w.putBack(w.batches.takeAllBack(), 0)
	w.leases.waitEmpty(5 * time.Second)
}

// identity is the worker id, which changes when this process was taken for dead.
type identity struct {
	mu sync.Mutex
	id uuid.UUID
}

func (i *identity) get() uuid.UUID {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.id
}

func (i *identity) set(id uuid.UUID) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.id = id
}

// call runs f with a deadline on top of ctx: callTimeout, or that of withTimeout.
func call(ctx context.Context, f func(context.Context) error) error {
	timeout, ok := ctx.Value(timeoutKey{}).(time.Duration)
	if !ok {
		timeout = callTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return f(ctx)
}

// callAgain is call for what may be repeated and must not wait for its next turn: once more when a connection was broken.
func callAgain(ctx context.Context, f func(context.Context) error) error {
	err := call(ctx, f)
	if err == nil || !isOutage(err) || ctx.Err() != nil {
		return err
	}
	return call(ctx, f)
}

type timeoutKey struct{}

// withTimeout makes the calls under ctx have another deadline than callTimeout.
func withTimeout(ctx context.Context, timeout time.Duration) context.Context {
	return context.WithValue(ctx, timeoutKey{}, timeout)
}

// signal marks a wish that is served once, however often it was made.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// every runs f at once and then each interval, until ctx ends.
func every(ctx context.Context, interval time.Duration, f func(context.Context)) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for ctx.Err() == nil {
		f(ctx)
		select {
		case <-ctx.Done():
		case <-ticker.C:
		}
	}
}

// A longLook is a question to the database that a held snapshot makes long, past every row that was leased since. It is asked for
// one part of the time in longShare.
type longLook struct {
	at   time.Time
	took time.Duration
}

const longShare = 20

// isDue: at every turn while a call without an answer may still go on in the database, for then there may be something to find, and
// how long a question took says little.
func (l *longLook) isDue(w *Worker) bool {
	return time.Since(l.at) >= longShare*l.took || time.Since(time.Unix(0, w.troubledAt.Load())) < 2*callTimeout
}

// look runs f and remembers how long it took.
func (l *longLook) look(f func() error) error {
	l.at = time.Now()
	err := f()
	l.took = time.Since(l.at)
	return err
}

// pause waits, and says whether it was not cut short.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
