package db_test

import (
	"context"
	"crypto/rand"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"mailhook/db"
	"mailhook/db/dbtest"
)

func TestMain(m *testing.M) { dbtest.Main(m) }

// catalog describes everything in schema mailhook, a line for each thing. The installation code is drawn anew by every
// installation, and goose's table is goose's own.
func catalog(t *testing.T, d *dbtest.DB) []string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), d.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.Exec(t.Context(), "SET search_path = pg_catalog"); err != nil {
		t.Fatal(err)
	}
	rows, _ := conn.Query(t.Context(), `
		WITH relations AS (
			SELECT * FROM pg_class WHERE relnamespace = to_regnamespace('mailhook') AND relname !~ '^goose_db_version'
		),
		functions AS (
			SELECT * FROM pg_proc WHERE pronamespace = to_regnamespace('mailhook')
		)
		SELECT format('schema, grants %s', nspacl) FROM pg_namespace WHERE nspname = 'mailhook'
		UNION ALL
		SELECT format('relation %s of kind %s, options %s, grants %s, comment %s', relname, relkind, reloptions, relacl, obj_description(oid, 'pg_class')) FROM relations
		UNION ALL
		SELECT format('column %s.%s at %s: %s, not null %s, identity %s, default %s, grants %s, comment %s', r.relname, a.attname, a.attnum,
			format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity, pg_get_expr(d.adbin, d.adrelid), a.attacl, col_description(r.oid, a.attnum))
		FROM relations AS r
		JOIN pg_attribute AS a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped
		LEFT JOIN pg_attrdef AS d ON d.adrelid = r.oid AND d.adnum = a.attnum
		UNION ALL
		SELECT format('index %s', pg_get_indexdef(i.indexrelid)) FROM pg_index AS i JOIN relations AS r ON r.oid = i.indrelid
		UNION ALL
		SELECT format('constraint %s on %s: %s', c.conname, r.relname, pg_get_constraintdef(c.oid)) FROM pg_constraint AS c JOIN relations AS r ON r.oid = c.conrelid
		UNION ALL
		SELECT format('trigger %s', pg_get_triggerdef(t.oid)) FROM pg_trigger AS t JOIN relations AS r ON r.oid = t.tgrelid
		UNION ALL
		SELECT format('view %s: %s', relname, md5(pg_get_viewdef(oid))) FROM relations WHERE relkind = 'v'
		UNION ALL
		SELECT format('sequence %s: %s to %s from %s', r.relname, s.seqmin, s.seqmax, s.seqstart) FROM pg_sequence AS s JOIN relations AS r ON r.oid = s.seqrelid
		UNION ALL
		SELECT format('function %s: %s, grants %s, comment %s', oid::regprocedure,
			CASE WHEN proname <> 'installation_code' THEN md5(prosrc || pg_get_functiondef(oid)) END, proacl, obj_description(oid, 'pg_proc'))
		FROM functions
		ORDER BY 1`)
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

// sameCatalog names what one catalog has and the other has not.
func sameCatalog(t *testing.T, when string, got, want []string) {
	t.Helper()
	for _, line := range got {
		if !slices.Contains(want, line) {
			t.Errorf("%s: new: %s", when, line)
		}
	}
	for _, line := range want {
		if !slices.Contains(got, line) {
			t.Errorf("%s: gone: %s", when, line)
		}
	}
}

func migrateUp(t *testing.T, url string) []db.MigrationStep {
	t.Helper()
	steps, err := db.MigrateUp(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	return steps
}

func check(t *testing.T, d *dbtest.DB) error {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), d.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	return db.CheckSchema(t.Context(), conn)
}

func TestMigrateFromEmptyAndTwice(t *testing.T) {
	t.Parallel()
	d := dbtest.NewEmpty(t)
	before, err := db.MigrationStatus(t.Context(), d.URL)
	if err != nil {
		t.Fatal(err)
	}
	if dbtest.QueryOne[bool](t, d, "SELECT to_regnamespace('mailhook') IS NOT NULL") {
		t.Error("asking for the status made the schema")
	}
	steps := migrateUp(t, d.URL)
	if len(steps) != len(before) || slices.ContainsFunc(before, func(s db.MigrationStep) bool { return s.Applied }) {
		t.Errorf("%d steps; before: %+v", len(steps), before)
	}
	if err := check(t, d); err != nil {
		t.Error(err)
	}
	first := catalog(t, d)
	if steps := migrateUp(t, d.URL); len(steps) != 0 {
		t.Errorf("the second time took %d steps", len(steps))
	}
	sameCatalog(t, "the second time", catalog(t, d), first)
	after, err := db.MigrationStatus(t.Context(), d.URL)
	if err != nil || !slices.Equal(after, steps) {
		t.Errorf("status %+v, %v", after, err)
	}
}

func TestMigrateByTwentyAtOnce(t *testing.T) {
	t.Parallel()
	d := dbtest.NewEmpty(t)
	var group sync.WaitGroup
	var mu sync.Mutex
	var all []db.MigrationStep
	for range 20 {
		group.Go(func() {
			steps, err := db.MigrateUp(t.Context(), d.URL)
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, steps...)
		})
	}
	group.Wait()
	known, err := db.MigrationStatus(t.Context(), d.URL)
	if err != nil || !slices.Equal(all, known) {
		t.Errorf("took %+v, %v", all, err)
	}
	sameCatalog(t, "beside the template", catalog(t, d), catalog(t, dbtest.New(t)))
}

func TestMigrateDownAndUpAgain(t *testing.T) {
	t.Parallel()
	d := dbtest.NewEmpty(t)
	steps := migrateUp(t, d.URL)
	want := catalog(t, d)
	d.Exec(t, "SELECT mailhook.emit('email.sent')")
	for i := len(steps) - 2; i >= -1; i-- {
		var version int64
		if i >= 0 {
			version = steps[i].Version
		}
		down, err := db.MigrateDown(t.Context(), d.URL, version)
		if err != nil || len(down) != len(steps)-1-i {
			t.Fatalf("down to %d: %+v, %v", version, down, err)
		}
		if version == 0 {
			if left := catalog(t, d); len(left) != 0 {
				t.Errorf("left behind: %s", strings.Join(left, "\n"))
			}
			if !dbtest.QueryOne[bool](t, d, "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = 'mailhook_producer')") {
				t.Error("the role is gone, and other databases may use it")
			}
		}
		migrateUp(t, d.URL)
		sameCatalog(t, "up again", catalog(t, d), want)
		if t.Failed() {
			t.Fatalf("from version %d", version)
		}
	}
}

func TestMigrateDownOfNothing(t *testing.T) {
	t.Parallel()
	steps, err := db.MigrateDown(t.Context(), dbtest.NewEmpty(t).URL, 0)
	if err != nil || len(steps) != 0 {
		t.Errorf("%+v, %v", steps, err)
	}
}

func TestMigrateDownRefusesWithAdapters(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	d.Exec(t, `
		CREATE TABLE public.clicks (id int);
		CREATE FUNCTION mailhook.on_click() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM mailhook.emit_safe('email.clicked'); RETURN NULL; END $$;
		CREATE TRIGGER on_click AFTER INSERT ON public.clicks FOR EACH ROW EXECUTE FUNCTION mailhook.on_click()`)
	before := catalog(t, d)
	_, err := db.MigrateDown(t.Context(), d.URL, 0)
	if err == nil || !strings.Contains(err.Error(), "public.clicks") || !strings.Contains(err.Error(), "--uninstall") {
		t.Fatalf("error %v", err)
	}
	sameCatalog(t, "after the refusal", catalog(t, d), before)
	d.Exec(t, "DROP TRIGGER on_click ON public.clicks")
	if _, err := db.MigrateDown(t.Context(), d.URL, 0); err != nil {
		t.Fatal(err)
	}
	if left := catalog(t, d); len(left) != 0 {
		t.Errorf("left behind: %s", strings.Join(left, "\n"))
	}
}

func TestCheckSchema(t *testing.T) {
	t.Parallel()
	expect := func(t *testing.T, d *dbtest.DB, parts ...string) {
		t.Helper()
		err := check(t, d)
		for _, part := range parts {
			if err == nil || !strings.Contains(err.Error(), part) {
				t.Errorf("%v: without %q", err, part)
			}
		}
		if _, openErr := db.Open(t.Context(), d.URL, db.Role{Name: "test", MaxConns: 1}); openErr == nil || openErr.Error() != err.Error() {
			t.Errorf("Open says %v", openErr)
		}
	}
	t.Run("not installed", func(t *testing.T) {
		t.Parallel()
		d := dbtest.NewEmpty(t)
		expect(t, d, "not installed", "run mailhook migrate up")
		d.Exec(t, "CREATE SCHEMA mailhook")
		expect(t, d, "not installed", "run mailhook migrate up")
	})
	t.Run("older", func(t *testing.T) {
		t.Parallel()
		d := dbtest.New(t)
		steps, err := db.MigrationStatus(t.Context(), d.URL)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := db.MigrateDown(t.Context(), d.URL, steps[len(steps)-2].Version); err != nil {
			t.Fatal(err)
		}
		expect(t, d, "this binary needs", "run mailhook migrate up")
	})
	t.Run("newer", func(t *testing.T) {
		t.Parallel()
		d := dbtest.New(t)
		d.Exec(t, "INSERT INTO mailhook.goose_db_version (version_id, is_applied) VALUES (99999, true)")
		expect(t, d, "at version 99999", "install the newer mailhook")
	})
}

// An operator whose role may not create roles has mailhook_producer made beforehand; owning the database is enough.
func TestMigrateWithoutCreateRole(t *testing.T) {
	t.Parallel()
	admin := dbtest.New(t) // with it the role mailhook_producer is there
	name, password := "mailhook_owner_"+strings.ToLower(rand.Text()[:12]), rand.Text()
	admin.Exec(t, "CREATE ROLE "+name+" LOGIN NOSUPERUSER NOCREATEROLE NOCREATEDB PASSWORD '"+password+"'")
	t.Cleanup(func() { // after the database that it owns
		if _, err := admin.Pool.Exec(context.Background(), "DROP ROLE "+name); err != nil {
			t.Error(err)
		}
	})
	d := dbtest.NewEmpty(t)
	u, err := url.Parse(d.URL)
	if err != nil {
		t.Fatal(err)
	}
	d.Exec(t, "ALTER DATABASE "+strings.TrimPrefix(u.Path, "/")+" OWNER TO "+name)
	u.User = url.UserPassword(name, password)
	migrateUp(t, u.String())
	pool, err := db.Open(t.Context(), u.String(), db.Role{Name: "test", MaxConns: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	var id string
	if err := pool.QueryRow(t.Context(), "SELECT mailhook.emit('email.sent')").Scan(&id); err != nil {
		t.Error(err)
	}
	if armed, err := db.New(pool).Arm(t.Context(), 60); err != nil || !armed {
		t.Errorf("arm: %v, %v", armed, err)
	}
	if _, err := db.MigrateDown(t.Context(), u.String(), 0); err != nil {
		t.Error(err)
	}
}

// What every object of the schema must have; each query lists the ones that have not.
func TestSchemaRules(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	const tables = `SELECT c.* FROM pg_class AS c WHERE c.relnamespace = 'mailhook'::regnamespace AND c.relkind IN ('r', 'p')`
	for _, rule := range []struct{ name, violations string }{
		{"a primary key, for publications FOR ALL TABLES", `
			SELECT c.relname FROM (` + tables + `) AS c WHERE NOT EXISTS (SELECT FROM pg_index AS i WHERE i.indrelid = c.oid AND i.indisprimary)`},
		// A day's partition is described by its parent.
		{"a comment", `
			SELECT c.relname FROM pg_class AS c
			WHERE c.relnamespace = 'mailhook'::regnamespace AND c.relkind IN ('r', 'p', 'v') AND c.relname <> 'goose_db_version' AND c.relname !~ '_[0-9]{8}$'
				AND obj_description(c.oid, 'pg_class') IS NULL
			UNION ALL
			SELECT p.oid::regprocedure::text FROM pg_proc AS p WHERE p.pronamespace = 'mailhook'::regnamespace AND obj_description(p.oid, 'pg_proc') IS NULL`},
		{"a type that the code expects", `
			SELECT format('%s.%s %s', c.relname, a.attname, format_type(a.atttypid, a.atttypmod))
			FROM (` + tables + `) AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
			WHERE c.relname <> 'goose_db_version' AND format_type(a.atttypid, a.atttypmod) NOT IN ('bigint', 'boolean', 'bytea', 'date', 'double precision', 'integer',
				'interval', 'interval[]', 'json', 'jsonb', 'jsonpath', 'real', 'smallint', 'text', 'text[]', 'timestamp with time zone', 'uuid')`},
		{"_at in the name of a time, and of nothing else", `
			SELECT format('%s.%s', c.relname, a.attname)
			FROM (` + tables + `) AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
			WHERE c.relname <> 'goose_db_version'
				AND (a.attname LIKE '%\_at' OR a.attname IN ('since', 'until', 'open_until', 'wait_until', 'release_before')) <> (a.atttypid = 'timestamptz'::regtype)`},
		{"no foreign key", `SELECT conname FROM pg_constraint WHERE connamespace = 'mailhook'::regnamespace AND contype = 'f'`},
		// The one index beside the key takes in the few urgent rows, and is not unique.
		{"outbox: nothing for a host to wait for", `
			SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = 'mailhook.outbox'::regclass AND NOT indisprimary
				AND (indisunique OR indexrelid <> 'mailhook.outbox_urgent_id_idx'::regclass)
			UNION ALL
			SELECT attname FROM pg_attribute WHERE attrelid = 'mailhook.outbox'::regclass AND attnum > 0 AND attnotnull AND attname NOT IN ('id', 'event_type')`},
		{"SECURITY DEFINER with a pinned search_path", `
			SELECT p.oid::regprocedure::text FROM pg_proc AS p
			WHERE p.pronamespace = 'mailhook'::regnamespace AND p.prosecdef
				AND NOT EXISTS (SELECT FROM unnest(p.proconfig) AS setting WHERE setting = 'search_path=pg_catalog, pg_temp')`},
		// The condition of outbox's index is asked with the rights of whoever inserts.
		{"no function for PUBLIC but is_urgent", `
			SELECT p.oid::regprocedure::text FROM pg_proc AS p
			WHERE p.pronamespace = 'mailhook'::regnamespace AND p.proname <> 'is_urgent'
				AND EXISTS (SELECT FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS granted WHERE granted.grantee = 0)`},
		// The trigger's condition reads wakeup with the rights of whoever inserts.
		{"no relation for PUBLIC but to read wakeup, and none but outbox for the producers", `
			SELECT c.relname FROM pg_class AS c
			WHERE c.relnamespace = 'mailhook'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'S')
				AND EXISTS (
					SELECT FROM aclexplode(c.relacl) AS granted
					WHERE granted.grantee NOT IN (c.relowner, 'mailhook_worker'::regrole, 'mailhook_api'::regrole)
						AND (c.relname <> 'wakeup' OR granted.grantee <> 0 OR granted.privilege_type <> 'SELECT'))`},
		{"no row in a default partition", `SELECT 'events' FROM mailhook.events_default UNION ALL SELECT 'attempts' FROM mailhook.attempts_default`},
		{"a valid type for every documented event", `SELECT name FROM mailhook.event_types WHERE (mailhook.check_event(ROW(NULL, NULL, NULL, name, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, sample)::mailhook.outbox)).event_type <> name`},
	} {
		rows, _ := d.Pool.Query(t.Context(), rule.violations)
		violations, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatalf("%s: %v", rule.name, err)
		}
		if len(violations) > 0 {
			t.Errorf("%s: not so: %s", rule.name, strings.Join(violations, ", "))
		}
	}
}
