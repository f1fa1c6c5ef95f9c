// Package roundtrip has nothing but tests: events of every type go through a database, a worker and HTTP to a receiver of each
// platform that there is a format of, which verifies and parses with that platform's own library where it publishes one. It
// is a module of its own, so that those libraries stay out of the product.
package roundtrip
