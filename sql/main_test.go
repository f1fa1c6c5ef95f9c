package sql_test

import (
	"testing"

	"mailhook/db/dbtest"
)

func TestMain(m *testing.M) { dbtest.Main(m) }
