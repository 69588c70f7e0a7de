package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

const meta2026 = `"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":{"name":"claude-code","version":"1"},"io.modelcontextprotocol/clientCapabilities":{}`

// rawRequest is a POST of one message, as a client of that version makes it; "" is one that never initialized.
func rawRequest(ctx context.Context, url, version, session, method, params string) (*http.Request, error) {
	meta := `"_meta":{"progressToken":7}`
	if version == "2026-07-28" {
		meta = `"_meta":{"progressToken":7,` + meta2026 + `}`
	}
	if params != "" {
		meta += ","
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(`{"jsonrpc":"2.0","id":7,"method":"`+method+`","params":{`+meta+params+`}}`))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json, text/event-stream")
	if version != "" {
		req.Header.Set("MCP-Protocol-Version", version)
	}
	if version == "2026-07-28" {
		req.Header.Set("Mcp-Method", method)
		if method == "tools/call" {
			var p struct{ Name string }
			if err := json.Unmarshal([]byte("{"+params+"}"), &p); err != nil {
				return nil, err
			}
			req.Header.Set("Mcp-Name", p.Name)
		}
	}
	if session != "" {
		req.Header.Set("Mcp-Session-Id", session)
	}
	return req, nil
}

func callParams(tool, arguments string) string {
	return fmt.Sprintf(`"name":%q,"arguments":%s`, tool, arguments)
}

// rawSession opens one of 2025-11-25.
func rawSession(ctx context.Context, c *http.Client, url string) (id string, err error) {
	init := `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"claude-code","version":"1"}}}`
	for _, body := range []string{init, `{"jsonrpc":"2.0","method":"notifications/initialized"}`} {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(body))
		if err != nil {
			return "", err
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Accept", "application/json, text/event-stream")
		if id != "" {
			req.Header.Set("Mcp-Session-Id", id)
			req.Header.Set("MCP-Protocol-Version", "2025-11-25")
		}
		resp, err := c.Do(req)
		if err != nil {
			return "", err
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			return "", err
		}
		if id == "" {
			if id = resp.Header.Get("Mcp-Session-Id"); id == "" || strings.Contains(string(b), `"error"`) {
				return "", fmt.Errorf("%s: %.500s", resp.Status, b)
			}
		}
	}
	return id, nil
}

func endSession(ctx context.Context, c *http.Client, url, id string) {
	req, err := http.NewRequestWithContext(ctx, http.MethodDelete, url, nil)
	if err != nil {
		return
	}
	req.Header.Set("Mcp-Session-Id", id)
	req.Header.Set("MCP-Protocol-Version", "2025-11-25")
	if resp, err := c.Do(req); err == nil {
		resp.Body.Close()
	}
}

// rawAnswer reads the answer of a response, and the id of the last event before it.
func rawAnswer(resp *http.Response, r io.Reader) (a answer, event string) {
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(io.LimitReader(r, 4096))
		return answer{err: &statusError{resp.StatusCode, string(b)}}, ""
	}
	br := bufio.NewReader(r)
	for {
		line, err := br.ReadString('\n')
		if id, ok := strings.CutPrefix(line, "id: "); ok {
			event = strings.TrimSpace(id)
		}
		data, isData := strings.CutPrefix(line, "data: ")
		if strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json") {
			data, isData = line, true
		}
		if isData {
			var m struct {
				ID     any
				Result struct {
					Meta    map[string]any `json:"_meta"`
					IsError bool           `json:"isError"`
					Content []struct{ Text string }
				}
				Error *struct{ Message string }
			}
			if json.Unmarshal([]byte(data), &m) == nil && m.ID != nil {
				if m.Error != nil {
					return answer{err: errors.New("JSON-RPC error: " + m.Error.Message)}, event
				}
				a = answer{isError: m.Result.IsError, meta: m.Result.Meta}
				for _, c := range m.Result.Content {
					a.text += c.Text
				}
				return a, event
			}
		}
		if err != nil {
			return answer{err: fmt.Errorf("the stream ended without an answer: %w", err)}, event
		}
	}
}

// statusError is a refusal by HTTP.
type statusError struct {
	code int
	body string
}

func (e *statusError) Error() string { return fmt.Sprintf("%d: %s", e.code, e.body) }

// bare makes a call without a session.
func (s *soak) bare(ctx context.Context, b *soakBottle, version, tool, arguments string) answer {
	req, err := rawRequest(ctx, b.sideURL, version, "", "tools/call", callParams(tool, arguments))
	if err != nil {
		return answer{err: err}
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return answer{err: err}
	}
	defer resp.Body.Close()
	a, _ := rawAnswer(resp, resp.Body)
	return a
}

// once makes one call, in one of the ways in which clients do, well or badly.
func (s *soak) once(ctx context.Context, b *soakBottle, tool, arguments string) answer {
	switch r := s.roll(); {
	case r < 0.1: // it is about to be cut
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, s.within(50*time.Millisecond))
		defer cancel()
	case r < 0.4:
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, s.within(3*time.Second))
		defer cancel()
	}
	switch r := s.roll(); {
	case r < 0.3:
		s.count("call: 2026-07-28")
		return s.bare(ctx, b, "2026-07-28", tool, arguments)
	case r < 0.5:
		s.count("call: never initialized")
		return s.bare(ctx, b, "", tool, arguments)
	case r < 0.6:
		s.count("call: slow")
		return s.slow(ctx, b, tool, arguments)
	}
	s.count("call: 2025-11-25")
	return s.once2025(ctx, b, tool, arguments)
}

// once2025 has a session of its own. A cut stream may be resumed, and the session may be left behind.
func (s *soak) once2025(ctx context.Context, b *soakBottle, tool, arguments string) answer {
	id, err := rawSession(ctx, http.DefaultClient, b.sideURL)
	if err != nil {
		s.count("session cut while it was opened")
		return answer{err: err}
	}
	end := func(ctx context.Context) { endSession(ctx, http.DefaultClient, b.sideURL, id) }
	if s.roll() < 0.8 {
		defer end(context.WithoutCancel(ctx))
	} else {
		s.mu.Lock()
		s.sessions = append(s.sessions, end)
		s.mu.Unlock()
	}
	first, cancel := ctx, context.CancelFunc(func() {})
	resume := s.roll() < 0.3
	if resume {
		first, cancel = context.WithTimeout(ctx, s.within(time.Second))
	}
	defer cancel()
	req, err := rawRequest(first, b.sideURL, "2025-11-25", id, "tools/call", callParams(tool, arguments))
	if err != nil {
		return answer{err: err}
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return answer{err: err}
	}
	a, event := rawAnswer(resp, resp.Body)
	resp.Body.Close()
	if a.err == nil || !resume || event == "" || ctx.Err() != nil {
		return a
	}
	s.count("resumed")
	again, err := http.NewRequestWithContext(ctx, http.MethodGet, b.sideURL, nil)
	if err != nil {
		return answer{err: err}
	}
	again.Header.Set("Accept", "text/event-stream")
	again.Header.Set("Mcp-Session-Id", id)
	again.Header.Set("MCP-Protocol-Version", "2025-11-25")
	again.Header.Set("Last-Event-ID", event)
	if resp, err = http.DefaultClient.Do(again); err != nil {
		return answer{err: err}
	}
	defer resp.Body.Close()
	a, _ = rawAnswer(resp, resp.Body)
	return a
}

// slow sends in pieces, reads in pieces, and may go with a reset.
func (s *soak) slow(ctx context.Context, b *soakBottle, tool, arguments string) answer {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", strings.Trim(strings.TrimPrefix(b.sideURL, "http://"), "/"))
	if err != nil {
		return answer{err: err}
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() {
		if s.roll() < 0.5 {
			_ = conn.(*net.TCPConn).SetLinger(0)
		}
		conn.Close()
	})()
	body := `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{` + callParams(tool, arguments) + `}}`
	text := fmt.Sprintf("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nAccept: application/json, text/event-stream\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	for piece := 1 + len(text)/10; text != ""; {
		n := min(piece, len(text))
		if _, err := io.WriteString(conn, text[:n]); err != nil {
			return answer{err: err}
		}
		text = text[n:]
		s.pause(ctx, s.within(20*time.Millisecond))
	}
	drip := &dripReader{conn, func() { s.pause(ctx, s.within(5*time.Millisecond)) }, 100}
	resp, err := http.ReadResponse(bufio.NewReader(drip), nil)
	if err != nil {
		return answer{err: err}
	}
	defer resp.Body.Close()
	a, _ := rawAnswer(resp, resp.Body)
	return a
}

// dripReader reads a few bytes at a time, for some times.
type dripReader struct {
	r     io.Reader
	pause func()
	times int
}

func (d *dripReader) Read(p []byte) (int, error) {
	if d.times > 0 {
		d.times--
		d.pause()
		p = p[:min(len(p), 16)]
	}
	return d.r.Read(p)
}

func (p *process) descriptors() int {
	p.t.Helper()
	names, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid))
	if err != nil {
		p.t.Fatal(err)
	}
	return len(names)
}

// rssAnon is the memory that is the process's own, in KiB.
func (p *process) rssAnon() int {
	p.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		p.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		var n int
		if _, err := fmt.Sscanf(line, "RssAnon: %d kB", &n); err == nil {
			return n
		}
	}
	p.t.Fatalf("no RssAnon in %s", b)
	return 0
}
