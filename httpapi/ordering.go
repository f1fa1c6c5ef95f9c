package httpapi

import "mailhook/db"

// applyOrdering sets in what order deliveries go. In a batch they would go beside each other.
func applyOrdering(in optional[string], to *db.Subscription) []FieldError {
	to.Ordering = in.pick(to.Ordering, defaultSubscription().Ordering)
	if to.Ordering != "none" && to.BatchMaxEvents != nil {
		return []FieldError{{"ordering", "not_allowed", "cannot be combined with batch: set ordering to none, or batch to null"}}
	}
	return nil
}
