package db

import "github.com/google/uuid"

// Explain are the parameters of ExplainMatch for an event as it was logged.
func (e Event) Explain(subscription uuid.UUID) ExplainMatchParams {
	return ExplainMatchParams{
		SubscriptionID: subscription, AccountID: e.AccountID, InsertedAt: e.InsertedAt, DispatchedAt: e.DispatchedAt, EventType: e.EventType, Recipient: e.Recipient,
		MessageID: e.MessageID, CampaignID: e.CampaignID, SendingDomain: e.SendingDomain, SendingNode: e.SendingNode, Bridge: e.Bridge,
		DedicatedIP: e.DedicatedIP, Data: e.Data,
	}
}
