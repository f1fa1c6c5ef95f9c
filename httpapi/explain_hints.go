package httpapi

import (
	"slices"

	"mailhook/db/format"
)

// An outcomeHint says an outcome in words, and what to look at.
type outcomeHint struct{ words, hint string }

// hintOf is for the words of docs/receivers.md.
func hintOf(outcome string) outcomeHint {
	switch outcome {
	case "ok":
		return outcomeHint{"the endpoint accepted it", ""}
	case "dns":
		return outcomeHint{"the name in the URL was not found", "check the host name in the URL"}
	case "refused":
		return outcomeHint{"the connection was refused", "nothing listens there: check host and port of the URL, and that the server runs"}
	case "connect_timeout":
		return outcomeHint{"no connection came about in time", "a firewall drops the connection, or the URL leads nowhere: let the addresses of GET /v1/egress in"}
	case "response_timeout":
		return outcomeHint{"no answer came in time", "answer first and work afterwards, or raise timeout"}
	case "tls":
		return outcomeHint{"the TLS handshake failed", "check the certificate: expired, for another name, or sent without its intermediate ones"}
	case "reset":
		return outcomeHint{"the connection was broken off", "a firewall, proxy or crash ends the connection: look into the logs there"}
	case "blocked_address":
		return outcomeHint{"the URL leads to an address that is not allowed", "use a public address and an ordinary port"}
	case "http_2xx":
		return outcomeHint{"the endpoint answered 2xx but not 200, which alone is success here", "answer 200, or set success to 2xx"}
	case "partial_failure":
		return outcomeHint{"the endpoint took the batch but named this event in failed", "look into the logs there for why it named it"}
	case "http_3xx":
		return outcomeHint{"the endpoint redirects", "redirects are not followed: use the URL that it leads to"}
	case "http_4xx":
		return outcomeHint{"the endpoint refused the request", "check the path of the URL, the credentials, and how the signature is verified; response_excerpt may say more"}
	case "http_410":
		return outcomeHint{"the endpoint says that it is gone", "410 suspends the subscription: resume it when the endpoint is back"}
	case "http_429":
		return outcomeHint{"the endpoint asks for fewer requests", "set rate_limit_per_second or a smaller max_in_flight"}
	case "http_5xx":
		return outcomeHint{"the endpoint failed", "look into the logs there; response_excerpt may say more"}
	case "http_1xx", "bad_response":
		return outcomeHint{"the answer was no HTTP answer that ends", "is it an HTTP server?"}
	case "no_secret", "render_failed":
		return outcomeHint{"the request could not be made", "this is for the operator of the platform: the log of the workers says more"}
	}
	return outcomeHint{outcome, ""}
}

func wordsOf(outcome string) string { return hintOf(outcome).words }

// hintFor is the hint of an outcome on a channel: requests to others than web have no signature and no path to choose.
func hintFor(outcome, channel string) string {
	if outcome == "http_4xx" && channel != format.Web {
		return "check that what channel has been told is still valid at " + channel + ": keys or the URL of the incoming webhook; response_excerpt may say more"
	}
	return hintOf(outcome).hint
}

// hintsOf is what the outcomes hint at, the last first, each once.
func hintsOf(attempts []Attempt, channel string) (hints []string) {
	for _, a := range slices.Backward(attempts) {
		if hint := hintFor(a.Outcome, channel); hint != "" && !slices.Contains(hints, a.Outcome+": "+hint) {
			hints = append(hints, a.Outcome+": "+hint)
		}
	}
	if len(attempts) > 1 {
		hints = append(hints, "every attempt has the same webhook-id: an endpoint that had taken it and answered otherwise, or too late, gets it again")
	}
	return hints
}
