package worker

import (
	"github.com/google/uuid"

	"mailhook/db"
	"mailhook/db/format"
)

// listedOf is the row of an answer that says what was made of all of them.
func listedOf(rows []db.DispatchRow) (listed db.DispatchRow) {
	for _, row := range rows {
		if row.DeliveryIDs != nil {
			return row
		}
	}
	return listed
}

// unfold makes the deliveries that a dispatch has leased of its answer.
func (w *Worker) unfold(rows []db.DispatchRow, lease uuid.UUID, urgent bool) []*delivery {
	events := make(map[int64]*event, len(rows))
	for _, row := range rows {
		if row.Data == nil {
			continue // nothing to send
		}
		events[row.ID] = &event{id: db.EventID{InsertedAt: row.InsertedAt, ID: row.ID, Installation: w.installation}, urgent: row.IsUrgent, Event: format.Event{
			Type: row.EventType, OccurredAt: row.OccurredAt, Recipient: row.Recipient, MessageID: row.MessageID, CampaignID: row.CampaignID,
			SendingDomain: row.SendingDomain, SendingNode: row.SendingNode, Bridge: row.Bridge, DedicatedIP: row.DedicatedIP, Data: row.Data,
		}}
	}
	listed := listedOf(rows)
	requests := make(map[uuid.UUID]int, len(listed.BatchingIDs))
	for i, id := range listed.BatchingIDs {
		requests[id] = int(listed.BatchingRequests[i])
	}
	deliveries := make([]*delivery, len(listed.DeliveryIDs))
	for i, id := range listed.DeliveryIDs {
		to := listed.SubscriptionIDs[i]
		deliveries[i] = &delivery{id: id, leaseID: lease, subscriptionID: to, urgent: urgent, orderKey: listed.OrderKeys[i], event: events[listed.EventIDs[i]], requests: requests[to]}
	}
	return deliveries
}

func countBatched(deliveries []*delivery) (n int) {
	for _, d := range deliveries {
		if d.isBatched() {
			n++
		}
	}
	return n
}

func idsOf(rows []db.DispatchRow) []int64 {
	ids := make([]int64, len(rows))
	for i, row := range rows {
		ids[i] = row.ID
	}
	return ids
}

func dataBytes(rows []db.DispatchRow) (n int) {
	for _, row := range rows {
		n += len(row.Data)
	}
	return n
}
