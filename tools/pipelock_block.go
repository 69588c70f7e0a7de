package tools

import (
	"context"

	"github.com/bot-bottle/supervise/internal/payload"
	"github.com/modelcontextprotocol/go-sdk/mcp"
)

type pipelockBlockIn struct {
	FailedURL     string `json:"failed_url" jsonschema:"the http or https URL that was blocked, as you requested it, without credentials"`
	Justification string `json:"justification" jsonschema:"for the human who decides: what you were doing, what was blocked, and why you need this URL"`
}

func pipelockBlockTool() *mcp.Tool {
	return &mcp.Tool{
		Name: payload.Pipelock,
		Description: `Ask the human operator to let the host of one URL through pipelock, the second gate behind the egress proxy. Call it when a request was blocked by pipelock:
- HTTP 403 with a body that names pipelock, or "CONNECT tunnel failed, response 403" for a host that list-egress-routes shows as allowed;
- for https, a TLS error about an untrusted or self-signed CA can hide such a 403: "curl -sk URL" without any credentials shows it.
If the host is not among the routes of list-egress-routes, call egress-block instead: it opens both gates.
On approval pipelock lets that host through before you get the answer.
` + afterwards,
		Annotations: proposes("Ask pipelock to let a URL through"),
		InputSchema: schemaOf[pipelockBlockIn](open),
		Meta:        always(),
	}
}

func (t *Tools) pipelockBlock(ctx context.Context, req *mcp.CallToolRequest, in pipelockBlockIn) (*mcp.CallToolResult, any, error) {
	p, err := payload.NewPipelock(in.FailedURL)
	return t.ask(ctx, req, p, err, in.Justification)
}
