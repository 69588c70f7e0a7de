package tools

import (
	"context"

	"github.com/bot-bottle/supervise/internal/payload"
	"github.com/modelcontextprotocol/go-sdk/mcp"
)

type capabilityBlockIn struct {
	Dockerfile    string `json:"dockerfile" jsonschema:"the whole new Dockerfile: the current one with the least change that gives you what is missing"`
	Justification string `json:"justification" jsonschema:"for the human who decides: what you were doing, what is missing, and why this is the least that helps"`
}

func capabilityBlockTool(dockerfile string) *mcp.Tool {
	return &mcp.Tool{
		Name: payload.Capability,
		Description: `Ask the human operator to change what this sandbox is made of. Call it when something is missing that you cannot get inside it: "command not found", a missing system package or library, a wrong version of a runtime, no right to install.
First read the current Dockerfile, ` + dockerfile + `, and propose all of it with the least change: keep every line you do not need to change, pin versions, and put no secrets into it. If that file cannot be read, say so in the justification.
For a host that was refused use egress-block, not this.
On approval the operator may rebuild and replace this sandbox, which ends this session, or only note the wish: the answer says which. Save your work before you call.
` + afterwards,
		Annotations: proposes("Ask for a tool in the sandbox"),
		InputSchema: schemaOf[capabilityBlockIn](open),
		Meta:        always(),
	}
}

func (t *Tools) capabilityBlock(ctx context.Context, req *mcp.CallToolRequest, in capabilityBlockIn) (*mcp.CallToolResult, any, error) {
	p, err := payload.NewCapability(in.Dockerfile)
	return t.ask(ctx, req, p, err, in.Justification)
}
