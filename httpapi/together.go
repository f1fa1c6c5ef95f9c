package httpapi

import (
	"fmt"

	"mailhook/db"
	"mailhook/db/format"
)

// checkTogether refuses what is fine each for itself and does not go together, once all settings are those that the
// subscription will have.
func checkTogether(row *db.Subscription) (found []FieldError) {
	if row.BatchMaxEvents != nil {
		if f, ok := format.Find(row.Format); ok && f.Arrays == format.NoArrays {
			found = append(found, FieldError{"batch", "not_allowed", fmt.Sprintf("must be null with format %s, which has no arrays; these have: %s", row.Format, formatsWithArrays(row.ChannelType))})
		}
		if row.Ordering != "none" { // in a batch they would go beside each other
			found = append(found, FieldError{"ordering", "not_allowed", "cannot be combined with batch: set ordering to none, or batch to null"})
		}
	}
	if row.ChannelType == channelTeams && row.SuccessRule != "2xx" {
		found = append(found, FieldError{"success", "not_allowed", "must be 2xx with the channel teams, which answers 202"})
	}
	return found
}
