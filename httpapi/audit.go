package httpapi

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"reflect"

	"mailhook/db"
)

// audit writes what the caller does into the audit log, in the transaction of q. account is whose thing it is. before
// and after are as the API shows the thing; what differs is kept. One of them nil: all of the other is kept.
func (c caller) audit(ctx context.Context, q *db.Queries, action, account, object string, before, after any) error {
	was, is, err := changedFields(before, after)
	if err != nil {
		return err
	}
	return q.Audit(ctx, db.Change{KeyID: &c.keyID, AccountID: &account, Action: action, ObjectID: object, Before: was, After: is})
}

// changedFields are the fields in which two things differ. Those that the audit log has in columns are left out, and what
// nobody sets; what a URL may hide is cut off afterwards: a URL of which only that has changed is shown twice alike.
func changedFields(before, after any) (was, is any, err error) {
	from, err := fieldsOf(before)
	if err != nil {
		return nil, nil, err
	}
	to, err := fieldsOf(after)
	if err != nil {
		return nil, nil, err
	}
	if from != nil && to != nil {
		dropEqual(from, to)
	}
	for _, fields := range []map[string]any{from, to} {
		for _, name := range []string{"id", "account_id", "created_at", "updated_at", "usage", "seconds_left"} {
			delete(fields, name)
		}
		cutURLs(fields)
	}
	return nilIfEmpty(from), nilIfEmpty(to), nil
}

func fieldsOf(thing any) (fields map[string]any, err error) {
	if thing == nil {
		return nil, nil
	}
	text, err := json.Marshal(thing)
	if err == nil {
		err = json.Unmarshal(text, &fields)
	}
	if err != nil {
		return nil, fmt.Errorf("compare for audit log: %w", err)
	}
	return fields, nil
}

// dropEqual removes from both what is the same in both.
func dropEqual(from, to map[string]any) {
	for name, was := range from {
		is, inBoth := to[name]
		was, isObject := was.(map[string]any)
		other, bothObjects := is.(map[string]any)
		if isObject && bothObjects {
			dropEqual(was, other)
			if len(was)+len(other) > 0 {
				continue
			}
		} else if !inBoth || !reflect.DeepEqual(from[name], is) {
			continue
		}
		delete(from, name)
		delete(to, name)
	}
}

// cutURLs leaves scheme, host and path of each URL: userinfo, query and fragment may be credentials.
func cutURLs(fields map[string]any) {
	for name, value := range fields {
		switch value := value.(type) {
		case map[string]any:
			cutURLs(value)
		case string:
			if name != "url" {
				continue
			}
			fields[name] = ""
			if u, err := url.Parse(value); err == nil {
				fields[name] = (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path, RawPath: u.RawPath}).String()
			}
		}
	}
}

// nilIfEmpty is NULL in the audit log where there is nothing to show.
func nilIfEmpty(fields map[string]any) any {
	if len(fields) == 0 {
		return nil
	}
	return fields
}
