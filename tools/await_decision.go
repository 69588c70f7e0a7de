package tools

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/bot-bottle/supervise/queue"
	"github.com/modelcontextprotocol/go-sdk/mcp"
)

type awaitIn struct {
	ProposalID string `json:"proposal_id" jsonschema:"the id that a pending answer gave you, such as 0197f3b2-6d1e-7c3a-9b58-3f6f0a2c4d1e"`
}

func awaitTool() *mcp.Tool {
	return &mcp.Tool{
		Name: Await,
		Description: `Go on waiting for the operator's decision on something you proposed before, or fetch its answer again. Call it when a proposing tool answered "status: pending", when its answer was lost (a timeout, a restart, a dropped connection), or when you were told that too many proposals are open.
It queues nothing and blocks until the decision is there; "status: pending" means call it again, now or after doing other work. The answers mean what they mean for the tool you proposed with.`,
		Annotations: reads("Wait for the operator's decision"),
		InputSchema: schemaOf[awaitIn](nil),
		Meta:        always(),
	}
}

func (t *Tools) await(ctx context.Context, req *mcp.CallToolRequest, in awaitIn) (*mcp.CallToolResult, any, error) {
	id, err := queue.ParseID(in.ProposalID)
	if err != nil {
		t.observe(Event{Kind: Refused, Tool: Await})
		return nil, nil, fmt.Errorf("%s: proposal_id %.80q must be the id that a pending answer gave you, such as 0197f3b2-6d1e-7c3a-9b58-3f6f0a2c4d1e", Await, in.ProposalID)
	}
	if err := t.archived(ctx, id); err != nil {
		return nil, nil, err
	}
	e, err := t.get(ctx, id)
	if errors.Is(err, queue.ErrNotFound) || err == nil && e.Proposal.Bottle != t.opts.Bottle {
		t.observe(Event{Kind: Refused, Tool: Await})
		return nil, nil, unknownProposal(id)
	} else if err != nil {
		return nil, nil, t.failed(Await, "reading proposal "+string(id), err)
	}
	f := factsOf(e)
	if e.Response == nil {
		t.observe(Event{Kind: Rejoined, Tool: f.tool})
		return t.wait(ctx, req, f)
	}
	if err := room(ctx, *e.Response); err != nil {
		return nil, nil, err
	}
	if e.Delivered.IsZero() {
		return t.deliver(ctx, f, *e.Response), nil, nil
	}
	return t.repeat(f, *e.Response, max(0, time.Since(e.Delivered))), nil, nil
}

func unknownProposal(id queue.ID) error {
	return fmt.Errorf("%s: proposal_id %q is not known here, or its answer is so old that it was removed: ask again with the tool you proposed with", Await, string(id))
}
