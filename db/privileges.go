package db

import (
	"context"
	"fmt"
)

// The roles of the schema that have what a part of mailhook needs.
const (
	APIRole    = "mailhook_api"
	WorkerRole = "mailhook_worker"
)

// CheckPrivileges refuses a login that lacks what the part with this role does all the time. The other part's role lets it
// read the schema's version, so without this it would start, and fail at each request or statement.
func CheckPrivileges(ctx context.Context, db DBTX, role string) error {
	tables, privileges := []string{"mailhook.api_keys", "mailhook.subscriptions"}, []string{"SELECT", "INSERT"}
	if role == WorkerRole {
		tables, privileges = []string{"mailhook.attempts", "mailhook.deliveries"}, []string{"INSERT", "UPDATE"}
	}
	var login, needed *string
	// Of any column: some are granted by column.
	err := db.QueryRow(ctx, `
		SELECT quote_ident(current_user), (
			SELECT privilege || ' on ' || name
			FROM unnest($1::text[], $2::text[]) AS needed (name, privilege)
			WHERE NOT has_any_column_privilege(name, privilege)
			LIMIT 1)`, tables, privileges).Scan(&login, &needed)
	switch {
	case err != nil:
		return fmt.Errorf("read privileges: %w", err)
	case needed != nil:
		return fmt.Errorf("the database role %s lacks %s: GRANT %s TO %s", *login, *needed, role, *login)
	}
	return nil
}
