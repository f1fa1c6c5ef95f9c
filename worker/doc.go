// Package worker is the flow from the outbox to the receiver. Each step is a file, and the file of the same stem in
// sql/queries is its statement:
//
//	1 emit       the host's own transaction writes outbox (sql/migrations/00003_create_emit.sql)
//	2 wake       wake.go       the gated NOTIFY, or the poll
//	3 dispatch   dispatch.go   outbox → events + deliveries, the first ones leased to this worker
//	             urgent.go     the same for what is urgent, beside it; second.go for batches; pace.go turns under a rate limit
//	4 claim      claim.go      due deliveries: retries, released, rescued
//	5 send       send.go       sender.go the request, db/format the body, sign.go the headers, db/egress the addresses it may reach
//	             batch.go      where subscriptions want it, several in one request: array.go the body, batch_send.go what of it is refused
//	6 record     record.go     outcome.go decides, the statement writes: delivered, put off, or exhausted
//	7 rescue     rescue.go     heartbeats, leases of dead workers; lease.go those this worker forgot
//	8 retain     retain.go     expiry; partition.go partitions ahead and behind; cancel.go, hold.go, order.go, replay.go, erase.go, test_send.go beside the flow
//
// A delivery's life:
//
//	           ┌────────── returned, rescued ──────────┐
//	           ▼                                        │
//	(matched) pending ── dispatch or claim, leased ─▶ sending ── 2xx ─▶ delivered
//	           ▲ │                                      │
//	           │ └─ subscription closed off: held       ├─ failure, schedule ended ─▶ exhausted (dead letter)
//	           └───────── failure: put off ─────────────┘
//	inactive or deleted: cancelled
//
// Postgres holds all of the state; a worker holds leases, and any number of workers run side by side.
package worker
