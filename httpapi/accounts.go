package httpapi

import (
	"context"
	"fmt"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"mailhook/db"
)

// An Account is a customer of the host.
type Account struct {
	ID                string `json:"id"`
	Status            string `json:"status" enum:"active,suspended" doc:"suspended holds all deliveries of the account."`
	Limit             *int32 `json:"limit" doc:"How many subscriptions it may have; null is the default limit."`
	AllowInsecureHTTP bool   `json:"allow_insecure_http" doc:"Whether its subscriptions may use http where the installation allows https only."`
	Usage             Usage  `json:"usage"`
}

type accountParams struct {
	ID string `path:"id" maxLength:"1000" doc:"The host's id of the account."`
}

type putAccountRequest struct {
	ID   string `path:"id" maxLength:"1000" doc:"The host's id of the account."`
	Body struct {
		Limit             optional[int32]  `json:"limit,omitempty" minimum:"0" maximum:"2147483647" doc:"null is the default limit; left out, it stays."`
		Status            optional[string] `json:"status,omitempty" enum:"active,suspended" doc:"null is active; left out, it stays."`
		AllowInsecureHTTP optional[bool]   `json:"allow_insecure_http,omitempty" doc:"null is false; left out, it stays. When it is withdrawn, requests to http URLs end as blocked_address."`
	} `nameHint:"PutAccountBody"`
}

type accountResponse struct{ Body Account }

func (s *server) addAccounts(api huma.API) {
	tags := []string{"accounts"}
	register(s, api, huma.Operation{
		OperationID: "get-account", Method: http.MethodGet, Path: "/v1/accounts/{id}", Tags: tags, Summary: "Read an account",
		Description: "An account without settings of its own has the defaults.",
	}, s.getAccount)
	register(s, api, huma.Operation{
		OperationID: "put-account", Method: http.MethodPut, Path: "/v1/accounts/{id}", Tags: tags, Summary: "Set limit, status and leave to use http of an account (admin)",
		Errors: []int{http.StatusForbidden},
	}, s.putAccount)
	register(s, api, huma.Operation{
		OperationID: "delete-account", Method: http.MethodDelete, Path: "/v1/accounts/{id}", Tags: tags, Summary: "Remove a customer who left (admin)",
		Description: "Deletes its subscriptions and its settings, and revokes its keys.", Errors: []int{http.StatusForbidden},
	}, s.deleteAccount)
}

func (s *server) getAccount(ctx context.Context, who caller, in *accountParams) (*accountResponse, error) {
	if _, err := who.scope(in.ID); err != nil {
		return nil, err
	}
	account, err := s.accountOf(ctx, s.queries, in.ID)
	if err != nil {
		return nil, err
	}
	return &accountResponse{account}, nil
}

func (s *server) putAccount(ctx context.Context, who caller, in *putAccountRequest) (*accountResponse, error) {
	if err := who.mustAdminister(in.ID); err != nil {
		return nil, err
	}
	if found := checkText("id", in.ID, maxAccountIDBytes); len(found) > 0 {
		return nil, invalid(found...)
	}
	var limit *int32
	if in.Body.Limit.isValue() {
		limit = &in.Body.Limit.value
	}
	var after Account
	err := s.inTx(ctx, func(q *db.Queries) error {
		if err := q.LockAccount(ctx, in.ID); err != nil {
			return fmt.Errorf("lock account: %w", err)
		}
		// What is left out stays: a new limit must not wake a suspended account.
		before, err := s.accountOf(ctx, q, in.ID)
		if err != nil {
			return err
		}
		if !in.Body.Limit.set {
			limit = before.Limit
		}
		status := in.Body.Status.pick(before.Status, "active")
		if err := q.PutAccount(ctx, db.PutAccountParams{
			ID: in.ID, Status: status, SubscriptionLimit: limit, AllowInsecureHTTP: in.Body.AllowInsecureHTTP.pick(before.AllowInsecureHTTP, false),
		}); err != nil {
			return fmt.Errorf("store account: %w", err)
		}
		if after, err = s.accountOf(ctx, q, in.ID); err != nil {
			return err
		}
		if err := who.audit(ctx, q, "account.update", in.ID, in.ID, before, after); err != nil {
			return err
		}
		if before.Status != "suspended" || status == "suspended" {
			return nil
		}
		return q.ReleaseHeldOfAccount(ctx, in.ID)
	})
	if err != nil {
		return nil, err
	}
	return &accountResponse{after}, nil
}

func (s *server) deleteAccount(ctx context.Context, who caller, in *accountParams) (*struct{}, error) {
	if err := who.mustAdminister(in.ID); err != nil {
		return nil, err
	}
	return nil, s.inTx(ctx, func(q *db.Queries) error {
		if err := q.LockAccount(ctx, in.ID); err != nil {
			return fmt.Errorf("lock account: %w", err)
		}
		before, err := s.accountOf(ctx, q, in.ID)
		if err != nil {
			return err
		}
		if err := q.LockSubscriptionsOfAccount(ctx, in.ID); err != nil {
			return fmt.Errorf("lock subscriptions of account: %w", err)
		}
		subscriptions, err := q.DeleteSubscriptionsOfAccount(ctx, in.ID)
		if err != nil {
			return fmt.Errorf("delete subscriptions of account: %w", err)
		}
		keys, err := q.RevokeAPIKeysOfAccount(ctx, in.ID)
		if err != nil {
			return fmt.Errorf("revoke keys of account: %w", err)
		}
		rows, err := q.DeleteAccountRow(ctx, in.ID)
		if err != nil {
			return fmt.Errorf("delete account: %w", err)
		}
		if subscriptions+keys+rows == 0 {
			return notFound()
		}
		return who.audit(ctx, q, "account.delete", in.ID, in.ID, before, nil)
	})
}

func (s *server) accountOf(ctx context.Context, q *db.Queries, id string) (Account, error) {
	row, err := q.GetAccount(ctx, id)
	if err != nil {
		return Account{}, fmt.Errorf("read account: %w", err)
	}
	return Account{id, row.Status, row.SubscriptionLimit, row.AllowInsecureHTTP, s.usageOf(row)}, nil
}

// mustAdminister refuses account keys: with 404 for another account, as everywhere, and 403 for their own.
func (c caller) mustAdminister(account string) error {
	if c.isAdmin() {
		return nil
	}
	if _, err := c.scope(account); err != nil {
		return err
	}
	return fail(codeForbidden, "this takes an admin key")
}
