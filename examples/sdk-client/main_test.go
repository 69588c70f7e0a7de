package main

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// sidecar answers each call with the next of answers and keeps what was asked.
type sidecar struct {
	mu      sync.Mutex
	answers []*mcp.CallToolResult // guarded by mu
	asked   []string              // guarded by mu; TOOL ARGUMENTS
	tokens  []bool                // guarded by mu; whether a progress token came
}

func answer(text, status string, isError bool) *mcp.CallToolResult {
	r := &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: text}}, IsError: isError}
	if status != "" {
		r.Meta = mcp.Meta{"supervise/decision": map[string]any{"status": status, "proposal_id": "p-1"}}
	}
	return r
}

func (s *sidecar) serve(t *testing.T, wrap func(http.Handler) http.Handler) string {
	srv := mcp.NewServer(&mcp.Implementation{Name: "supervise", Version: "test"}, nil)
	handle := func(ctx context.Context, req *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		token := req.Params.GetProgressToken()
		if token != nil {
			if err := req.Session.NotifyProgress(ctx, &mcp.ProgressNotificationParams{ProgressToken: token, Message: "waiting for the operator"}); err != nil {
				t.Errorf("sending progress: %v", err)
			}
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.asked = append(s.asked, req.Params.Name+" "+string(req.Params.Arguments))
		s.tokens = append(s.tokens, token != nil)
		a := s.answers[0]
		s.answers = s.answers[1:]
		return a, nil
	}
	for _, name := range []string{"egress-block", "await-decision"} {
		srv.AddTool(&mcp.Tool{Name: name, InputSchema: map[string]any{"type": "object"}}, handle)
	}
	h := http.Handler(mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return srv }, nil))
	if wrap != nil {
		h = wrap(h)
	}
	ts := httptest.NewServer(h)
	t.Cleanup(ts.Close)
	return ts.URL
}

func TestAsk(t *testing.T) {
	for _, tt := range []struct {
		name    string
		answers []*mcp.CallToolResult
		asked   []string
		exit    int
		stdout  string
		stderr  string
	}{
		{
			name:    "approved",
			answers: []*mcp.CallToolResult{answer("status: approved", "approved", false)},
			asked:   []string{`egress-block {"host":"api.example.com","justification":"tests","path_allowlist":["/v1/"]}`},
			stdout:  "status: approved\n",
			stderr:  "waiting for the operator\n",
		},
		{
			name:    "pending, then modified",
			answers: []*mcp.CallToolResult{answer("status: pending", "pending", false), answer("status: modified", "modified", false)},
			asked:   []string{`egress-block {"host":"api.example.com","justification":"tests","path_allowlist":["/v1/"]}`, `await-decision {"proposal_id":"p-1"}`},
			stdout:  "status: modified\n",
			stderr:  "waiting for the operator\np-1 is not decided yet, waiting on\nwaiting for the operator\n",
		},
		{
			name:    "rejected",
			answers: []*mcp.CallToolResult{answer("status: rejected", "rejected", true)},
			asked:   []string{`egress-block {"host":"api.example.com","justification":"tests","path_allowlist":["/v1/"]}`},
			exit:    3,
			stdout:  "status: rejected\n",
			stderr:  "waiting for the operator\n",
		},
		{
			name:    "bad input",
			answers: []*mcp.CallToolResult{answer("egress-block: host is a URL", "", true)},
			asked:   []string{`egress-block {"host":"api.example.com","justification":"tests","path_allowlist":["/v1/"]}`},
			exit:    1,
			stdout:  "egress-block: host is a URL\n",
			stderr:  "waiting for the operator\n",
		},
		{
			name:    "not a sidecar",
			answers: []*mcp.CallToolResult{answer("hello", "", false)},
			asked:   []string{`egress-block {"host":"api.example.com","justification":"tests","path_allowlist":["/v1/"]}`},
			exit:    1,
			stderr:  "waiting for the operator\nsdk-client: asking for api.example.com: the answer says no decision: is this a supervise sidecar?\n",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := &sidecar{answers: tt.answers}
			url := s.serve(t, func(next http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if got := r.Header.Get("Authorization"); got != "Bearer s3cret" {
						http.Error(w, "token", http.StatusUnauthorized)
						return
					}
					next.ServeHTTP(w, r)
				})
			})
			env := map[string]string{"SUPERVISE_URL": url, "SUPERVISE_TOKEN": "s3cret"}
			var stdout, stderr strings.Builder
			exit := run(t.Context(), []string{"-host", "api.example.com", "-path", "/v1/", "-why", "tests"},
				func(k string) string { return env[k] }, &stdout, &stderr)
			if exit != tt.exit {
				t.Errorf("exit status = %d, want %d", exit, tt.exit)
			}
			if diff := cmp.Diff(tt.stdout, stdout.String()); diff != "" {
				t.Errorf("stdout mismatch (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.stderr, stderr.String()); diff != "" {
				t.Errorf("stderr mismatch (-want +got):\n%s", diff)
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			if diff := cmp.Diff(tt.asked, s.asked); diff != "" {
				t.Errorf("asked mismatch (-want +got):\n%s", diff)
			}
			for i, ok := range s.tokens {
				if !ok {
					t.Errorf("call %d had no progress token", i)
				}
			}
		})
	}
}

// TestLostConnection: the call that was cut is made again, word for word.
func TestLostConnection(t *testing.T) {
	s := &sidecar{answers: []*mcp.CallToolResult{answer("status: approved", "approved", false)}}
	var mu sync.Mutex
	cut := 0
	url := s.serve(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			cut++
			n := cut
			mu.Unlock()
			if n <= 2 {
				panic(http.ErrAbortHandler)
			}
			next.ServeHTTP(w, r)
		})
	})
	var stderr strings.Builder
	c := &client{url: url, retry: time.Millisecond, stderr: &stderr}
	_, d, err := c.ask(t.Context(), "egress-block", map[string]any{"host": "api.example.com"})
	if err != nil || d.Status != "approved" {
		t.Errorf("ask = %+v, %v; want approved", d, err)
	}
	if !strings.Contains(stderr.String(), "connection lost") {
		t.Errorf("stderr = %q, want it to say that the connection was lost", stderr.String())
	}
}

func TestWrongUse(t *testing.T) {
	for _, args := range [][]string{{}, {"-host", "a"}, {"-host", "a", "-why", "b", "c"}, {"-nonsense"}} {
		var stdout, stderr strings.Builder
		if exit := run(t.Context(), args, func(string) string { return "" }, &stdout, &stderr); exit != 2 || stderr.Len() == 0 {
			t.Errorf("run(%q) = %d, %q; want 2 and a word about it", args, exit, stderr.String())
		}
	}
}
