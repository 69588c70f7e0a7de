package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// model stands in for the model behind Claude Code: it asks for example.org until it is told of a decision, and then says what
// it was told.
type model struct {
	again chan struct{} // closed when it is worth asking again: a model takes its time, and the sidecar is there by then
	mu    sync.Mutex
	calls int // guarded by mu; tool calls made
	got   []string
}

type block struct {
	Type    string `json:"type"`
	Content any    `json:"content"`
}

func (m *model) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var q struct {
		Stream   bool
		Tools    []struct{ Name string }
		Messages []struct{ Content json.RawMessage }
	}
	if r.Method != http.MethodPost || r.URL.Path != "/v1/messages" || json.NewDecoder(r.Body).Decode(&q) != nil || len(q.Messages) == 0 {
		http.NotFound(w, r)
		return
	}
	var blocks []block // or a string
	_ = json.Unmarshal(q.Messages[len(q.Messages)-1].Content, &blocks)
	content, stop := map[string]any{"type": "text", "text": "nothing to do"}, "end_turn"
	for _, t := range q.Tools {
		if t.Name != "mcp__supervise__egress-block" {
			continue
		}
		m.mu.Lock()
		var said strings.Builder
		for _, b := range blocks {
			if b.Type == "tool_result" {
				text, _ := json.Marshal(b.Content)
				said.WriteString(string(text))
			}
		}
		if said.String() != "" {
			m.got = append(m.got, said.String())
		}
		if strings.Contains(said.String(), "status: ") || m.calls == 5 {
			content = map[string]any{"type": "text", "text": "I was told: " + said.String()}
		} else {
			if m.calls++; m.calls > 1 {
				select {
				case <-m.again:
				case <-r.Context().Done():
				}
			}
			content = map[string]any{"type": "tool_use", "id": fmt.Sprintf("toolu_%d", m.calls), "name": t.Name,
				"input": map[string]any{"host": "example.org", "justification": "its docs"}}
			stop = "tool_use"
		}
		m.mu.Unlock()
	}
	message := map[string]any{"id": "msg_1", "type": "message", "role": "assistant", "model": "stand-in", "stop_sequence": nil,
		"usage": map[string]int{"input_tokens": 1, "output_tokens": 1}}
	if !q.Stream {
		message["content"], message["stop_reason"] = []any{content}, stop
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(message)
		return
	}
	message["content"] = []any{}
	w.Header().Set("Content-Type", "text/event-stream")
	event := func(kind string, fields map[string]any) {
		fields["type"] = kind
		data, _ := json.Marshal(fields)
		fmt.Fprintf(w, "event: %s\ndata: %s\n\n", kind, data)
	}
	event("message_start", map[string]any{"message": message})
	if content["type"] == "text" {
		event("content_block_start", map[string]any{"index": 0, "content_block": map[string]any{"type": "text", "text": ""}})
		event("content_block_delta", map[string]any{"index": 0, "delta": map[string]any{"type": "text_delta", "text": content["text"]}})
	} else {
		input, _ := json.Marshal(content["input"])
		content["input"] = map[string]any{}
		event("content_block_start", map[string]any{"index": 0, "content_block": content})
		event("content_block_delta", map[string]any{"index": 0, "delta": map[string]any{"type": "input_json_delta", "partial_json": string(input)}})
	}
	event("content_block_stop", map[string]any{"index": 0})
	event("message_delta", map[string]any{"delta": map[string]any{"stop_reason": stop, "stop_sequence": nil}, "usage": map[string]int{"output_tokens": 1}})
	event("message_stop", map[string]any{})
}

// TestClaudeCode runs Claude Code itself, as examples/claude-code configures it, with a stand-in for the model: its call is held,
// and it has the operator's answer, also when the sidecar is killed meanwhile. SUPERVISE_CLAUDE names its executable.
func TestClaudeCode(t *testing.T) {
	claude := os.Getenv("SUPERVISE_CLAUDE")
	if claude == "" {
		t.Skip("SUPERVISE_CLAUDE is not set: make claude")
	}
	for _, killed := range []bool{false, true} {
		t.Run(fmt.Sprint("killed ", killed), func(t *testing.T) {
			w := newWorld(t)
			w.startProxy()
			w.startSide()
			m := &model{again: make(chan struct{})}
			api := httptest.NewServer(m)
			defer api.Close()
			home, work := t.TempDir(), t.TempDir()
			if err := os.CopyFS(work, os.DirFS("../../examples/claude-code")); err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), claude, "-p", "get https://example.org/", "--allowedTools", "mcp__supervise")
			cmd.Dir = work
			ca := w.path("ca/public/ca.pem")
			cmd.Env = []string{
				"PATH=" + os.Getenv("PATH"), "HOME=" + home, "ANTHROPIC_API_KEY=sk-ant-none", "ANTHROPIC_BASE_URL=" + api.URL,
				"SUPERVISE_URL=" + w.sideURL, "HTTP_PROXY=http://" + w.proxyAt, "HTTPS_PROXY=http://" + w.proxyAt, "NO_PROXY=127.0.0.1",
				"NODE_EXTRA_CA_CERTS=" + ca, "SSL_CERT_FILE=" + ca,
			}
			var out strings.Builder
			cmd.Stdout, cmd.Stderr = &out, &out
			ended := make(chan error, 1)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			go func() { ended <- cmd.Wait() }()
			id := w.queued(1)
			if killed {
				if code := w.side.end(syscall.SIGKILL); code != -1 {
					t.Fatalf("exit %d", code)
				}
				w.must("approve", id, "--yes", "--notes", "only the docs")
				w.startSide()
			} else {
				w.must("approve", id, "--yes", "--notes", "only the docs")
			}
			close(m.again)
			if err := <-ended; err != nil {
				t.Errorf("claude: %v", err)
			}
			m.mu.Lock()
			defer m.mu.Unlock()
			if n := len(m.got); n == 0 || !strings.Contains(m.got[n-1], `status: approved\nnotes: only the docs`) || !strings.Contains(out.String(), "It is live now") {
				t.Errorf("the model was told %q, and Claude Code said\n%s", m.got, out.String())
			}
			if names, err := filepath.Glob(w.path("queue/web/processed/*.proposal.json")); err != nil || len(names) != 1 {
				t.Errorf("processed has %q, want one proposal: %v", names, err)
			}
		})
	}
}
