package tools

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

const (
	allowlistURL   = "http://_egress.local/allowlist" // answered by the proxy itself
	routesTimeout  = 5 * time.Second
	maxRoutesBytes = 1 << 20
)

type listRoutesIn struct{}

func listRoutesTool() *mcp.Tool {
	return &mcp.Tool{
		Name: ListRoutes,
		Description: `Show the hosts and path prefixes this sandbox may reach now, as the egress proxy has them. Call it before egress-block, to see whether a route is there already or only lacks a path, and after an approval if a request is still refused.
It asks nobody and changes nothing. The answer is JSON: routes with host, path_allowlist (empty means the whole host), and whether the proxy adds a credential.`,
		Annotations: reads("Show allowed network routes"),
		InputSchema: schemaOf[listRoutesIn](nil),
		Meta:        always(),
	}
}

func (t *Tools) listRoutes(ctx context.Context, _ *mcp.CallToolRequest, _ listRoutesIn) (*mcp.CallToolResult, any, error) {
	body, err := t.fetchRoutes(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: could not reach '%s' via '%s': %w", ListRoutes, allowlistURL, t.proxy.Redacted(), err)
	}
	return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: string(body)}}}, nil, nil
}

// routesClient goes through the proxy and nowhere else: no environment, no redirects.
func routesClient(proxy *url.URL) *http.Client {
	return &http.Client{
		Timeout:       routesTimeout,
		Transport:     &http.Transport{Proxy: http.ProxyURL(proxy), DisableKeepAlives: true, MaxResponseHeaderBytes: 64 << 10},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func (t *Tools) fetchRoutes(ctx context.Context) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, allowlistURL, nil)
	if err != nil {
		return nil, err
	}
	resp, err := t.client.Do(req)
	if err != nil {
		return nil, t.routesCause(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return nil, fmt.Errorf("status %d %s", resp.StatusCode, http.StatusText(resp.StatusCode))
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxRoutesBytes+1))
	if err != nil {
		return nil, t.routesCause(err)
	}
	if len(body) > maxRoutesBytes {
		return nil, fmt.Errorf("the answer is over %d bytes", maxRoutesBytes)
	}
	return body, nil
}

// routesCause drops the URL, which the message names already, and says a timeout plainly.
func (t *Tools) routesCause(err error) error {
	var timeout interface{ Timeout() bool }
	if errors.As(err, &timeout) && timeout.Timeout() {
		return fmt.Errorf("no complete answer within %v", t.client.Timeout)
	}
	if u, ok := errors.AsType[*url.Error](err); ok {
		return u.Err
	}
	return err
}
