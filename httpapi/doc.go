// Package httpapi is the JSON API: subscriptions and what became of their events. It reads and writes the database
// and sends nothing itself; workers do.
//
// There is a file for each resource, with its types, routes and handlers. Common to all: server.go (routes and
// middleware), auth.go (who asks), error.go (what goes wrong, as RFC 9457 problems), cursor.go (lists), input.go and
// output.go (values of JSON). The OpenAPI document is generated from the types that serve.
package httpapi
