package db_test

import (
	"slices"
	"testing"

	"github.com/google/uuid"

	"mailhook/db"
	"mailhook/db/dbtest"
)

func TestUUIDs(t *testing.T) {
	t.Parallel()
	pool, err := db.Open(t.Context(), dbtest.New(t).As("mailhook_worker"), workerRole())
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	given := []uuid.UUID{uuid.New(), uuid.Nil, uuid.New()}
	var one uuid.UUID
	var text string
	var some, none *uuid.UUID
	var all, empty []uuid.UUID
	if err := pool.QueryRow(t.Context(), "SELECT $1::uuid, $1::uuid::text, $2::uuid, $3::uuid, $4::uuid[], NULL::uuid[]", given[0], &given[2], none, given).
		Scan(&one, &text, &some, &none, &all, &empty); err != nil {
		t.Fatal(err)
	}
	if one != given[0] || text != given[0].String() || some == nil || *some != given[2] || none != nil || !slices.Equal(all, given) || empty != nil {
		t.Errorf("%v, %s, %v, %v, %v and %v of %v", one, text, some, none, all, empty, given)
	}
	if err := pool.QueryRow(t.Context(), "SELECT NULL::uuid").Scan(&one); err == nil {
		t.Errorf("NULL was read as %v", one)
	}
}
