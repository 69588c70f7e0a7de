// Sdk-client asks the operator for an egress route and waits for the answer, with the Go SDK. It shows what a
// program needs to do beyond one call:
//
//   - send a progress token, so that the sidecar holds the call and says who is waited for;
//   - on "pending" go on with await-decision: nothing was cancelled;
//   - when the connection breaks make the same call again: the same question is asked once.
//
// Exit status: 0 approved (as asked or modified), 1 error, 2 wrong use, 3 rejected.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr))
}

// decision is the part of the result's _meta that a program decides by; people read the text.
type decision struct {
	Status     string `json:"status"`
	ProposalID string `json:"proposal_id"`
}

func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	url := getenv("SUPERVISE_URL")
	if url == "" {
		url = "http://127.0.0.1:9100/"
	}
	fs := flag.NewFlagSet("sdk-client", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&url, "url", url, "the sidecar (SUPERVISE_URL)")
	host := fs.String("host", "", "the host to ask for, such as api.github.com")
	why := fs.String("why", "", "what you were doing, what was refused, why this is enough")
	var paths []string
	fs.Func("path", "a path prefix you need; repeat for more, leave out for the whole host", func(s string) error {
		paths = append(paths, s)
		return nil
	})
	if err := fs.Parse(args); err != nil {
		return 2
	}
	if *host == "" || *why == "" || fs.NArg() > 0 {
		fmt.Fprintln(stderr, "sdk-client: -host and -why are required, and nothing else but flags")
		fs.Usage()
		return 2
	}

	c := &client{url: url, token: getenv("SUPERVISE_TOKEN"), retry: 2 * time.Second, stderr: stderr}
	ask := map[string]any{"host": *host, "justification": *why}
	if len(paths) > 0 {
		ask["path_allowlist"] = paths
	}
	res, d, err := c.ask(ctx, "egress-block", ask)
	if err != nil {
		fmt.Fprintf(stderr, "sdk-client: asking for %s: %v\n", *host, err)
		return 1
	}
	fmt.Fprintln(stdout, text(res))
	switch d.Status {
	case "approved", "modified":
		return 0
	case "rejected":
		return 3
	}
	return 1 // a tool error: the text says what to mend
}

// client asks one sidecar.
type client struct {
	url, token string
	retry      time.Duration // between attempts to connect again
	stderr     io.Writer
	calls      int
}

// attempts is how often in a row a broken connection is made anew before it counts as an error.
const attempts = 10

// ask calls tool and returns when somebody has decided.
func (c *client) ask(ctx context.Context, tool string, args map[string]any) (*mcp.CallToolResult, decision, error) {
	for failed := 0; ; {
		res, err := c.call(ctx, tool, args)
		if err != nil {
			if failed++; failed == attempts || ctx.Err() != nil {
				return nil, decision{}, err
			}
			fmt.Fprintf(c.stderr, "connection lost (%v), asking again\n", err)
			select {
			case <-ctx.Done():
				return nil, decision{}, context.Cause(ctx)
			case <-time.After(c.retry):
			}
			continue
		}
		failed = 0
		d, err := decided(res)
		if err != nil {
			return nil, decision{}, err
		}
		if d.Status != "pending" {
			return res, d, nil
		}
		fmt.Fprintf(c.stderr, "%s is not decided yet, waiting on\n", d.ProposalID)
		tool, args = "await-decision", map[string]any{"proposal_id": d.ProposalID}
	}
}

// call makes one call on a connection of its own, which a program with more to do would keep.
func (c *client) call(ctx context.Context, tool string, args map[string]any) (*mcp.CallToolResult, error) {
	cl := mcp.NewClient(&mcp.Implementation{Name: "sdk-client", Version: "1"}, &mcp.ClientOptions{
		ProgressNotificationHandler: func(_ context.Context, req *mcp.ProgressNotificationClientRequest) {
			fmt.Fprintln(c.stderr, req.Params.Message)
		},
	})
	// Straight to the sidecar: it is a neighbour, not behind HTTP_PROXY. No timeout: people take hours.
	direct := http.DefaultTransport.(*http.Transport).Clone()
	direct.Proxy = nil
	defer direct.CloseIdleConnections()
	session, err := cl.Connect(ctx, &mcp.StreamableClientTransport{
		Endpoint:             c.url,
		HTTPClient:           &http.Client{Transport: bearer{c.token, direct}},
		DisableStandaloneSSE: true,
	}, nil)
	if err != nil {
		return nil, err
	}
	defer session.Close()
	c.calls++
	p := &mcp.CallToolParams{Name: tool, Arguments: args}
	p.SetProgressToken("ask-" + strconv.Itoa(c.calls))
	return session.CallTool(ctx, p)
}

// bearer adds the sidecar's token to every request.
type bearer struct {
	token string
	next  http.RoundTripper
}

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	if b.token != "" {
		r = r.Clone(r.Context())
		r.Header.Set("Authorization", "Bearer "+b.token)
	}
	return b.next.RoundTrip(r)
}

// decided reads the facts of an answer. A tool error has none: its text is for whoever asked.
func decided(res *mcp.CallToolResult) (decision, error) {
	raw, ok := res.Meta["supervise/decision"]
	if !ok {
		if res.IsError {
			return decision{}, nil
		}
		return decision{}, errors.New("the answer says no decision: is this a supervise sidecar?")
	}
	b, err := json.Marshal(raw)
	if err != nil {
		return decision{}, err
	}
	var d decision
	if err := json.Unmarshal(b, &d); err != nil {
		return decision{}, fmt.Errorf("reading the decision: %w", err)
	}
	return d, nil
}

func text(res *mcp.CallToolResult) string {
	var lines []string
	for _, c := range res.Content {
		if t, ok := c.(*mcp.TextContent); ok {
			lines = append(lines, t.Text)
		}
	}
	return strings.Join(lines, "\n")
}
