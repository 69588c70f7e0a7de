package server

import (
	"context"
	"encoding/json"
	"sync"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// listings keeps tools/list as it was encoded. Each client asks for it, some before each turn, the tools do not change while
// the server runs, and encoding their schemas is most of what the answer costs.
type listings struct {
	mu     sync.Mutex
	byRest map[string][]byte // guarded by mu; by what else the result says, which depends on the protocol version
}

const maxListings = 16

// listed is a result whose tools have been encoded before. The SDK sets the other fields after the middleware.
type listed struct {
	*mcp.ListToolsResult
	cache *listings
}

func (l *listings) list(ctx context.Context, method string, req mcp.Request, next mcp.MethodHandler) (mcp.Result, error) {
	res, err := next(ctx, method, req)
	all, ok := res.(*mcp.ListToolsResult)
	if p, isList := req.GetParams().(*mcp.ListToolsParams); err != nil || !ok || !isList || p != nil && p.Cursor != "" || all.NextCursor != "" {
		return res, err
	}
	return &listed{all, l}, nil
}

// MarshalJSON implements json.Marshaler.
func (r *listed) MarshalJSON() ([]byte, error) {
	rest := *r.ListToolsResult
	rest.Tools = nil
	key, err := json.Marshal(&rest)
	if err != nil {
		return nil, err
	}
	r.cache.mu.Lock()
	data := r.cache.byRest[string(key)]
	r.cache.mu.Unlock()
	if data != nil {
		return data, nil
	}
	if data, err = json.Marshal(r.ListToolsResult); err != nil {
		return nil, err
	}
	r.cache.mu.Lock()
	defer r.cache.mu.Unlock()
	if r.cache.byRest == nil {
		r.cache.byRest = map[string][]byte{}
	}
	if len(r.cache.byRest) < maxListings {
		r.cache.byRest[string(key)] = data
	}
	return data, nil
}
