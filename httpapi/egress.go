package httpapi

import (
	"context"
	"net/http"
	"net/netip"

	"github.com/danielgtaylor/huma/v2"
)

type egressResponse struct {
	Body struct {
		Addresses []string `json:"addresses" nullable:"false" example:"[\"203.0.113.7\",\"2001:db8::/64\"]" doc:"Addresses and networks. Empty: the operator publishes none."`
	} `nameHint:"Egress"`
}

func (s *server) addEgress(api huma.API) {
	register(s, api, huma.Operation{
		OperationID: "get-egress", Method: http.MethodGet, Path: "/v1/egress", Tags: []string{"egress"}, Summary: "List the addresses that requests come from",
		Description: "For receivers that let only known addresses in. An address is no proof of the sender: the signature is.",
	}, s.getEgress)
}

func (s *server) getEgress(context.Context, caller, *struct{}) (*egressResponse, error) {
	out := &egressResponse{}
	out.Body.Addresses = []string{}
	for _, network := range s.config.PublishAddresses {
		out.Body.Addresses = append(out.Body.Addresses, networkText(network))
	}
	return out, nil
}

// networkText writes the network of one address as that address.
func networkText(network netip.Prefix) string {
	if network.IsSingleIP() {
		return network.Addr().String()
	}
	return network.String()
}
