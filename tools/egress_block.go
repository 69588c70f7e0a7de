package tools

import (
	"context"

	"github.com/bot-bottle/supervise/internal/payload"
	"github.com/google/jsonschema-go/jsonschema"
	"github.com/modelcontextprotocol/go-sdk/mcp"
)

type egressBlockIn struct {
	Host          string      `json:"host" jsonschema:"the bare host name that was refused, such as api.github.com: no scheme, port, path or wildcard"`
	PathAllowlist []string    `json:"path_allowlist,omitempty" jsonschema:"URL path prefixes you need, each starting with '/', such as /repos/; leave it out only if you need the whole host"`
	Auth          *egressAuth `json:"auth,omitempty" jsonschema:"only if the proxy should add a credential to requests for this host; you never see the secret"`
	Justification string      `json:"justification" jsonschema:"for the human who decides: what you were doing, what was refused, and why this is the least that helps"`
}

type egressAuth struct {
	Scheme   string `json:"scheme" jsonschema:"how the credential is sent: Bearer, or token"`
	TokenRef string `json:"token_ref" jsonschema:"the name of an environment variable of the proxy that holds the secret, such as GH_TOKEN; never the secret itself"`
}

func egressBlockTool() *mcp.Tool {
	return &mcp.Tool{
		Name: payload.Egress,
		Description: `Ask the human operator to let this sandbox reach one more host, or more paths of a host. Call it as soon as a request you need was refused by the egress proxy. A refusal looks like one of these:
- HTTP 403 with a body from the proxy that names the refused host;
- "CONNECT tunnel failed, response 403" or another error that says the proxy answered 403 to CONNECT;
- a TLS error about an untrusted CA ("self-signed certificate in certificate chain", "unable to get local issuer certificate", "certificate signed by unknown authority"): the proxy gives its 403 inside TLS, and this error hides it. "curl -sk https://HOST/" without any credentials shows what is behind it.
Do not call it for a timeout, a name that does not resolve, or a 401, 404 or 5xx of the site itself. Do not route around the proxy.
On approval the route is in the proxy and live before you get the answer.
` + afterwards,
		Annotations: proposes("Ask for a network route"),
		InputSchema: schemaOf[egressBlockIn](func(s *jsonschema.Schema) {
			open(s)
			s.Properties["auth"].Properties["scheme"].Enum = []any{"Bearer", "token"}
		}),
		Meta: always(),
	}
}

func (t *Tools) egressBlock(ctx context.Context, req *mcp.CallToolRequest, in egressBlockIn) (*mcp.CallToolResult, any, error) {
	route := payload.Route{Host: in.Host, PathAllowlist: in.PathAllowlist}
	if in.Auth != nil {
		route.Auth = &payload.Auth{Scheme: in.Auth.Scheme, TokenRef: in.Auth.TokenRef}
	}
	p, err := payload.NewEgress(route)
	return t.ask(ctx, req, p, err, in.Justification)
}
