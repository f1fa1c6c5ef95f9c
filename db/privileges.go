package db

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// The roles of the schema that have what a part of mailhook needs.
const (
	APIRole      = "mailhook_api"
	WorkerRole   = "mailhook_worker"
	ProducerRole = "mailhook_producer"
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

// IsRefusal says that PostgreSQL has refused something to the role of a session: insufficient_privilege.
func IsRefusal(err error) bool {
	var refused *pgconn.PgError
	return errors.As(err, &refused) && refused.Code == "42501"
}

// ExplainRefusal says of a refusal whose session was refused, and what to do: grant role, or without one become the owner of
// the schema, or of the database where there is no schema. It connects once more to find out; where that fails, and for other
// errors, it answers err.
func ExplainRefusal(ctx context.Context, url string, err error, role string) error {
	var refused *pgconn.PgError
	if !errors.As(err, &refused) || !IsRefusal(err) {
		return err
	}
	conn, connectErr := pgx.Connect(ctx, url)
	if connectErr != nil {
		return err
	}
	defer conn.Close(ctx) //nolint:errcheck // nothing to do about it
	var login, owner, owned string
	if conn.QueryRow(ctx, `
		SELECT quote_ident(current_user), quote_ident(pg_get_userbyid(o.owner)), o.owned
		FROM (
			SELECT 1, n.nspowner AS owner, 'the schema mailhook' AS owned FROM pg_catalog.pg_namespace AS n WHERE n.nspname = 'mailhook'
			UNION ALL
			SELECT 2, d.datdba, 'the database ' || quote_ident(d.datname) FROM pg_catalog.pg_database AS d WHERE d.datname = current_database()
			ORDER BY 1
			LIMIT 1
		) AS o`).Scan(&login, &owner, &owned) != nil {
		return err
	}
	switch {
	case role != "":
		return fmt.Errorf("the database role %s may not do this (%s): GRANT %s TO %s", login, refused.Message, role, login)
	case refused.Hint != "":
		return fmt.Errorf("the database role %s may not do this (%s): %s", login, refused.Message, refused.Hint)
	}
	return fmt.Errorf("the database role %s may not do this (%s): run it as %s, who owns %s", login, refused.Message, owner, owned)
}
