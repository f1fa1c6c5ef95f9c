package worker

import (
	"context"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"mailhook/db"
)

// metrics are what an operator watches. Labels are closed lists: never an account, a subscription or a URL.
type metrics struct {
	registry   prometheus.Registerer
	collectors []prometheus.Collector

	attempts          *prometheus.CounterVec
	attemptSeconds    prometheus.Histogram
	batchEvents       prometheus.Histogram
	deliveriesEnded   *prometheus.CounterVec
	permanentFailures prometheus.Counter
	dispatchSeconds   prometheus.Histogram
	claimSeconds      prometheus.Histogram
	recordSeconds     prometheus.Histogram
	eventsDispatched  prometheus.Counter
	eventsDuplicate   prometheus.Counter
	eventsUrgent      prometheus.Counter
	eventsQuarantined prometheus.Counter
	notifications     prometheus.Counter
	arms              prometheus.Counter
	leasesReturned    prometheus.Counter
	staleOutcomes     prometheus.Counter
	workersRescued    prometheus.Counter
	databaseErrors    *prometheus.CounterVec
	erasedRows        *prometheus.CounterVec
}

func newMetrics(registry prometheus.Registerer, q *db.Queries, l *leases, keep Retention) *metrics {
	m := &metrics{registry: registry}
	counter := func(name, help string) prometheus.Counter {
		return add(m, prometheus.NewCounter(prometheus.CounterOpts{Namespace: "mailhook", Name: name, Help: help}))
	}
	seconds := func(name, help string) prometheus.Histogram {
		return add(m, prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: "mailhook", Name: name, Help: help,
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 16)}))
	}
	m.attempts = add(m, prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "mailhook", Name: "attempts_total",
		Help: "Attempts by outcome: the closed list of docs/receivers.md."}, []string{"outcome"}))
	m.attemptSeconds = seconds("attempt_seconds", "Duration of an attempt, from the dial to the end of the answer.")
	m.batchEvents = add(m, prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: "mailhook", Name: "batch_events",
		Help: "Events of a request to a subscription with batches.", Buckets: []float64{1, 2, 5, 10, 20, 50, 100, 200, 500, 1000}}))
	m.deliveriesEnded = add(m, prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "mailhook", Name: "deliveries_total",
		Help: "Deliveries that ended with a recorded attempt, by how: delivered, exhausted, cancelled."}, []string{"ended_as"}))
	m.permanentFailures = counter("deliveries_permanent_total", "Deliveries that ended as exhausted at once, because what the channel sends to will never take them.")
	m.dispatchSeconds = seconds("dispatch_seconds", "Duration of a dispatch that found rows.")
	m.claimSeconds = seconds("claim_seconds", "Duration of a claim.")
	m.recordSeconds = seconds("record_seconds", "Duration of recording a batch of outcomes.")
	m.eventsDispatched = counter("events_dispatched_total", "Events taken from the outbox and logged.")
	m.eventsDuplicate = counter("events_duplicate_total", "Dispatched events whose dedupe_key had been seen within the window.")
	m.eventsUrgent = counter("urgent_events_total", "Events that the urgent lane took ahead of others.")
	m.eventsQuarantined = counter("events_quarantined_total", "Events that could not be dispatched.")
	m.notifications = counter("notifications_total", "Notifications received from hosts' transactions.")
	m.arms = counter("arms_total", "Times that the trigger on outbox was asked to notify.")
	m.leasesReturned = counter("leases_returned_total", "Deliveries given back without an attempt.")
	m.staleOutcomes = counter("stale_outcomes_total", "Outcomes that came after their lease was taken away.")
	m.workersRescued = counter("workers_rescued_total", "Workers taken for dead by this one.")
	m.databaseErrors = add(m, prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "mailhook", Name: "database_errors_total",
		Help: "Failed database calls, by call."}, []string{"call"}))
	add(m, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "mailhook", Name: "leased_deliveries", Help: "Deliveries that this worker holds."},
		func() float64 { return float64(l.held()) }))
	m.erasedRows = add(m, prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "mailhook", Name: "erased_rows_total",
		Help: "Rows that erasures by this worker removed, wiped or, in a dry run, counted, by table."}, []string{"table"}))
	one := &scraped{Queries: q}
	add(m, &stateCollector{one})
	add(m, &erasureCollector{one})
	add(m, &partitionCollector{one, keep})
	return m
}

func add[C prometheus.Collector](m *metrics, c C) C {
	m.collectors = append(m.collectors, c)
	if m.registry != nil {
		m.registry.MustRegister(c)
	}
	return c
}

func (m *metrics) unregister() {
	for _, c := range m.collectors {
		if m.registry != nil {
			m.registry.Unregister(c)
		}
	}
}

func (m *metrics) attempted(o outcome) {
	m.attempts.WithLabelValues(o.word).Inc()
	m.attemptSeconds.Observe(o.duration.Seconds())
}

// ended counts the deliveries that a batch has ended, and answers how many outcomes were recorded.
func (m *metrics) ended(rows []db.RecordRow) (recorded int) {
	for _, row := range rows {
		recorded += int(row.Deliveries)
		if row.EndedAs != "" {
			m.deliveriesEnded.WithLabelValues(row.EndedAs).Add(float64(row.Deliveries))
		}
		m.permanentFailures.Add(float64(row.Permanent))
	}
	return recorded
}

func (m *metrics) dispatched(rows []db.DispatchRow) {
	for _, row := range rows {
		switch {
		case row.IsQuarantined:
			m.eventsQuarantined.Inc()
			continue
		case row.IsDuplicate:
			m.eventsDuplicate.Inc()
		}
		m.eventsDispatched.Inc()
	}
}

func (m *metrics) erased(n Erased) {
	for table, rows := range map[string]int64{
		"outbox": n.Outbox, "events": n.Events, "deliveries": n.Deliveries, "attempts": n.Attempts, "dead_letters": n.DeadLetters,
		"quarantine": n.Quarantine, "dedupe_keys": n.DedupeKeys, "test_deliveries": n.TestDeliveries,
	} {
		m.erasedRows.WithLabelValues(table).Add(float64(rows))
	}
}

// scraped is what collectors ask with, one after the other: what they count may take a while, and claims and order need the pool's other
// session.
type scraped struct {
	sync.Mutex
	*db.Queries
}

// erasureCollector asks the database at each scrape which erasures have not ended.
type erasureCollector struct{ q *scraped }

func erasureDescs() (running, oldest *prometheus.Desc) {
	return prometheus.NewDesc("mailhook_running_erasures", "Erasures that run or wait for their turn.", nil, nil),
		prometheus.NewDesc("mailhook_oldest_erasure_seconds", "Age of the oldest of them; 0: there is none.", nil, nil)
}

func (c *erasureCollector) Describe(out chan<- *prometheus.Desc) {
	running, oldest := erasureDescs()
	out <- running
	out <- oldest
}

func (c *erasureCollector) Collect(out chan<- prometheus.Metric) {
	c.q.Lock()
	defer c.q.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	running, oldest := erasureDescs()
	row, err := c.q.ErasureBacklog(ctx)
	if err != nil {
		out <- prometheus.NewInvalidMetric(running, err)
		return
	}
	out <- prometheus.MustNewConstMetric(running, prometheus.GaugeValue, float64(row.Running))
	out <- prometheus.MustNewConstMetric(oldest, prometheus.GaugeValue, row.OldestSeconds)
}

// stateCollector asks the database at each scrape what the whole installation looks like: every worker answers the same.
type stateCollector struct{ q *scraped }

func stateDescs() map[string]*prometheus.Desc {
	descs := map[string]*prometheus.Desc{}
	for name, help := range map[string]string{
		"outbox_rows":           "Undispatched events, counted up to 1,000,000.",
		"outbox_oldest_seconds": "Age of the oldest undispatched event.",
		"due_deliveries":        "Waiting deliveries that are due, held ones too, counted up to 1,000,000.",
		"waiting_deliveries":    "Deliveries whose next attempt is still to come, held ones too, counted up to 1,000,000.",
		"sending_deliveries":    "Leased deliveries of all workers, counted up to 1,000,000.",
		"held_deliveries":       "Deliveries held by a paused, suspended or circuit-open subscription or a suspended account, counted up to 1,000,000.",
		"open_circuits":         "Subscriptions whose circuit is open: nothing but one probe at a time goes there.",
		"dead_letters":          "Exhausted deliveries that are kept, counted up to 1,000,000.",
		"quarantined_events":    "Events that are kept in quarantine, counted up to 1,000,000.",
		"emit_failures":         "Events that emit_safe and emit_many_safe have given up on since installation.",
		"delivery_enabled":      "1 while delivery is on.",
	} {
		descs[name] = prometheus.NewDesc("mailhook_"+name, help, nil, nil)
	}
	return descs
}

func (c *stateCollector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range stateDescs() {
		out <- d
	}
}

func (c *stateCollector) Collect(out chan<- prometheus.Metric) {
	c.q.Lock()
	defer c.q.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	descs := stateDescs()
	s, err := c.q.Status(ctx)
	if err != nil {
		out <- prometheus.NewInvalidMetric(descs["outbox_rows"], err)
		return
	}
	enabled := 0.0
	if s.DeliveryEnabled {
		enabled = 1
	}
	for name, value := range map[string]float64{
		"outbox_rows": float64(s.Undispatched), "outbox_oldest_seconds": s.OldestUndispatchedSeconds, "due_deliveries": float64(s.Due),
		"waiting_deliveries": float64(s.Waiting), "sending_deliveries": float64(s.Sending), "held_deliveries": float64(s.Held), "open_circuits": float64(s.OpenCircuits), "dead_letters": float64(s.Dead),
		"quarantined_events": float64(s.Quarantined), "emit_failures": float64(s.EmitFailures), "delivery_enabled": enabled,
	} {
		out <- prometheus.MustNewConstMetric(descs[name], prometheus.GaugeValue, value)
	}
}

// partitionCollector asks the database at each scrape how the partitions stand: every worker answers the same, and no
// answer is old because retention does not run.
type partitionCollector struct {
	q    *scraped
	keep Retention
}

func partitionDescs() (ahead, overdue, inDefault *prometheus.Desc) {
	return prometheus.NewDesc("mailhook_partition_days_ahead",
			"Whole days after today that have partitions, up to the first without one, at most 30; -1: today has none.", []string{"table"}, nil),
		prometheus.NewDesc("mailhook_partitions_overdue",
			"Days kept beyond their retention, by what keeps them: delivery, dead_letter, replay; counting; waiting (for the next run of retention).",
			[]string{"table", "reason"}, nil),
		prometheus.NewDesc("mailhook_default_partition_rows", "Rows in a DEFAULT partition, counted up to 1,000 a table. More than none: partitions are missing.", nil, nil)
}

func (c *partitionCollector) Describe(out chan<- *prometheus.Desc) {
	ahead, overdue, inDefault := partitionDescs()
	out <- ahead
	out <- overdue
	out <- inDefault
}

func (c *partitionCollector) Collect(out chan<- prometheus.Metric) {
	c.q.Lock()
	defer c.q.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	aheadDesc, overdueDesc, defaultDesc := partitionDescs()
	ahead, err := c.q.ListPartitionsAhead(ctx)
	if err != nil {
		out <- prometheus.NewInvalidMetric(aheadDesc, err)
		return
	}
	for _, p := range ahead {
		out <- prometheus.MustNewConstMetric(aheadDesc, prometheus.GaugeValue, float64(p.Days), p.Parent)
	}
	rows, err := c.q.CountDefaultRows(ctx)
	if err != nil {
		out <- prometheus.NewInvalidMetric(defaultDesc, err)
		return
	}
	out <- prometheus.MustNewConstMetric(defaultDesc, prometheus.GaugeValue, float64(rows.Events+rows.Attempts))
	overdue, err := c.q.ListOverdueDays(ctx, overdueParams(c.keep))
	if err != nil {
		out <- prometheus.NewInvalidMetric(overdueDesc, err)
		return
	}
	days := map[[2]string]int64{{"events", "delivery"}: 0, {"events", "dead_letter"}: 0, {"events", "replay"}: 0, {"events", "counting"}: 0,
		{"events", "waiting"}: 0, {"attempts", "waiting"}: 0}
	for _, row := range overdue {
		days[[2]string{row.Parent, row.Reason}] = row.Days
	}
	for labels, n := range days {
		out <- prometheus.MustNewConstMetric(overdueDesc, prometheus.GaugeValue, float64(n), labels[:]...)
	}
}
