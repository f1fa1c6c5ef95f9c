// Package httpapi is the JSON API: subscriptions and what became of their events. It reads and writes the database
// and sends nothing itself; workers do.
//
// There is a file for each resource, with its types, routes and handlers. Common to all: server.go (routes and
// middleware), auth.go (who asks), rate.go (how often), access.go (the line of log), audit.go (who changed what), error.go
// (what goes wrong, as RFC 9457 problems), cursor.go (lists), strict.go, input.go and output.go (values of JSON). The OpenAPI
// document is generated from the types that serve.
package httpapi
