package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

func args(host, why string) map[string]any {
	return map[string]any{"host": host, "justification": why}
}

// An agent whose client is killed, or whose sidecar is, makes the same call again: one proposal, one answer.
func TestClientAndSidecarDie(t *testing.T) {
	for _, version := range versions {
		t.Run(version, func(t *testing.T) {
			w := newWorld(t)
			w.startProxy()
			w.startSide()
			ctx, cut := context.WithCancel(t.Context())
			s := w.connect(version)
			lost := ask(ctx, s, "egress-block", args("a.example.com", "first words"))
			id := w.queued(1)
			cut()
			if a := <-lost; a.err == nil {
				t.Fatalf("a cut call has an answer: %+v", a)
			}
			again := ask(t.Context(), w.connect(version), "egress-block", args("A.example.com", "other words"))
			held(t, again)
			if items := w.open(1); items[0].ID != id {
				t.Errorf("open is %s, want %s alone", items[0].ID, id)
			}

			if code := w.side.end(syscall.SIGKILL); code != -1 {
				t.Fatalf("exit %d", code)
			}
			<-again // however the client takes it
			w.startSide()
			third := ask(t.Context(), w.connect(version), "egress-block", args("a.example.com", "first words"))
			w.must("approve", id, "--yes", "--notes", "once")
			if a := get(t, third); !strings.HasPrefix(a.text, "status: approved\nnotes: once\n") {
				t.Errorf("answer: %s", a.text)
			}
			if n := len(w.list()); n != 0 {
				t.Errorf("%d proposals are open, want none", n)
			}
			if names := w.glob("queue/web/processed/*.proposal.json"); len(names) != 1 {
				t.Errorf("processed has %q, want one proposal", names)
			}
		})
	}
}

// glob waits for nothing: what it lists is moved there before the answer's connection is done, or soon after, so it looks
// until there is something.
func (w *world) glob(pattern string) []string {
	w.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		names, err := filepath.Glob(w.path(pattern))
		if err != nil {
			w.t.Fatal(err)
		}
		if len(names) > 0 || time.Now().After(deadline) {
			return names
		}
		runtime.Gosched()
	}
}

// Decided while nobody was there: the next call has the answer at once, with other words too, and by await-decision.
func TestDecidedWhileNobodyWaits(t *testing.T) {
	for _, how := range []string{"other words", "await-decision"} {
		t.Run(how, func(t *testing.T) {
			w := newWorld(t)
			w.startProxy()
			w.startSide("SUPERVISE_HOLD=100ms")
			s := w.connect("2026-07-28")
			a := get(t, ask(t.Context(), s, "egress-block", args("a.example.com", "x")))
			m := regexp.MustCompile(`(?m)^status: pending\nproposal_id: (\S+)$`).FindStringSubmatch(a.text)
			if m == nil || a.isError || !strings.Contains(a.text, "await-decision") {
				t.Fatalf("when the hold ends: %s", a.text)
			}
			w.must("reject", m[1], "--notes", "use the mirror")
			w.side.end(syscall.SIGKILL) // and nothing of it was only in memory
			w.startSide()
			s = w.connect("2025-11-25")
			if how == "other words" {
				a = get(t, ask(t.Context(), s, "egress-block", args("a.example.com", "please, please")))
			} else {
				a = get(t, ask(t.Context(), s, "await-decision", map[string]any{"proposal_id": m[1]}))
			}
			if !strings.HasPrefix(a.text, "status: rejected\nnotes: use the mirror\n") || !a.isError {
				t.Errorf("answer: %s", a.text)
			}
			if n := len(w.list()); n != 0 {
				t.Errorf("%d proposals are open, want none", n)
			}
		})
	}
}

// A sidecar that is stopped answers what it holds, at once, with what to do; and what was asked goes on.
func TestSIGTERM(t *testing.T) {
	for _, version := range versions {
		t.Run(version, func(t *testing.T) {
			w := newWorld(t)
			w.startProxy()
			w.startSide()
			s := w.connect(version)
			ch := ask(t.Context(), s, "egress-block", args("a.example.com", "x"))
			id := w.queued(1)
			began := time.Now()
			if code := w.side.end(syscall.SIGTERM); code != 0 {
				t.Errorf("exit %d, want 0", code)
			}
			if a := get(t, ch); !strings.HasPrefix(a.text, "status: pending\nproposal_id: "+id+"\n") || a.isError {
				t.Errorf("answer: %s", a.text)
			}
			if took := time.Since(began); took > 20*time.Second {
				t.Errorf("stopping took %v", took)
			}
			w.startSide()
			ch = ask(t.Context(), w.connect(version), "await-decision", map[string]any{"proposal_id": id})
			w.must("approve", id, "--yes")
			if a := get(t, ch); !strings.HasPrefix(a.text, "status: approved\n") {
				t.Errorf("answer: %s", a.text)
			}
		})
	}
}

// Two sidecars must not serve one mailbox.
func TestSecondSidecar(t *testing.T) {
	w := newWorld(t)
	w.startProxy()
	w.startSide()
	second := start(t, []string{"SUPERVISE_BOTTLE_SLUG=web", "SUPERVISE_QUEUE_DIR=" + w.path("queue/web"), "SUPERVISE_BIND=127.0.0.1", "SUPERVISE_PORT=" + freePort(t)}, "serve")
	<-second.done
	if code := second.cmd.ProcessState.ExitCode(); code != 1 || !strings.Contains(second.output(), "in use by another sidecar") {
		t.Errorf("exit %d, want 1 and why:\n%s", code, second.output())
	}
}

// A sidecar that is started on the address of the one it replaces waits for it, as one on another address does.
func TestSidecarIsReplaced(t *testing.T) {
	for _, how := range []string{"all the same", "another port", "another port, with metrics"} {
		t.Run(how, func(t *testing.T) {
			w := newWorld(t)
			w.startProxy()
			env := []string{"SUPERVISE_BOTTLE_SLUG=web", "SUPERVISE_QUEUE_DIR=" + w.path("queue/web"), "SUPERVISE_BIND=127.0.0.1"}
			if how != "another port" {
				env = append(env, "SUPERVISE_METRICS=127.0.0.1:"+freePort(t))
			}
			w.startSide(env...)
			ch := ask(t.Context(), w.connect(versions[0]), "egress-block", args("a.example.com", "x"))
			id := w.queued(1)
			if how != "all the same" {
				w.port = freePort(t)
			}
			first, second := w.side, start(t, append(env, "SUPERVISE_PORT="+w.port), "serve")
			if how == "another port" {
				second.says("listening on ")
			} else {
				second.says("the port is taken")
			}
			if code := first.end(syscall.SIGTERM); code != 0 {
				t.Errorf("the first one: exit %d, want 0", code)
			}
			if a := get(t, ch); !strings.HasPrefix(a.text, "status: pending\n") {
				t.Errorf("answer: %s", a.text)
			}
			w.sideURL = "http://" + second.says(`listening on (127\.0\.0\.1:\d+)`) + "/"
			ch = ask(t.Context(), w.connect(versions[0]), "await-decision", map[string]any{"proposal_id": id})
			w.must("approve", id, "--yes")
			if a := get(t, ch); !strings.HasPrefix(a.text, "status: approved\n") {
				t.Errorf("answer: %s", a.text)
			}
			if code := second.end(syscall.SIGTERM); code != 0 {
				t.Errorf("the second one: exit %d, want 0", code)
			}
		})
	}
}

// A sidecar that is stopped before it has its mailbox ends in order, and until then is not healthy.
func TestStoppedBeforeItHasItsMailbox(t *testing.T) {
	w := newWorld(t)
	w.startProxy()
	dir := w.path("queue/web")
	ok(t, os.MkdirAll(dir, 0o700))
	lock, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	ok(t, err)
	defer lock.Close()
	ok(t, syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB))
	w.startSide()
	if _, errs, code := w.run("healthcheck", "--bind", "127.0.0.1", "--port", w.port); code != 1 || !strings.Contains(errs, "is starting: its mailbox is not open yet") {
		t.Errorf("healthcheck: exit %d, %s", code, errs)
	}
	if code := w.side.end(syscall.SIGTERM); code != 0 {
		t.Errorf("exit %d, want 0", code)
	}
	// One on the same address that waits for both, too.
	w.startSide()
	second := start(t, []string{"SUPERVISE_BOTTLE_SLUG=web", "SUPERVISE_QUEUE_DIR=" + dir, "SUPERVISE_BIND=127.0.0.1", "SUPERVISE_PORT=" + w.port}, "serve")
	second.says("the port is taken")
	if code := second.end(syscall.SIGTERM); code != 0 {
		t.Errorf("exit %d, want 0", code)
	}
}

// A thousand calls at once, held, then all answered; and nothing of them stays.
func TestThousandCalls(t *testing.T) {
	const n, open = 1000, 20
	w := newWorld(t)
	w.startProxy()
	w.startSide("SUPERVISE_MAX_WAITING=1100")
	w.bareAsk("warm-up.example.com")
	w.must("reject", w.queued(1))
	before := w.descriptors()

	var chans []<-chan answer
	tr := &http.Transport{MaxIdleConnsPerHost: -1}
	client := &http.Client{Transport: tr}
	var sessions []*mcp.ClientSession
	for i := range n {
		if i%10 == 0 { // ten calls a session, half of the sessions at each version
			s, err := mcp.NewClient(&mcp.Implementation{Name: "claude-code", Version: "1"}, nil).Connect(t.Context(),
				&mcp.StreamableClientTransport{Endpoint: w.sideURL, HTTPClient: client}, &mcp.ClientSessionOptions{ProtocolVersion: versions[i/10%2]})
			if err != nil {
				t.Fatal(err)
			}
			sessions = append(sessions, s)
		}
		chans = append(chans, ask(t.Context(), sessions[len(sessions)-1], "egress-block", args(fmt.Sprintf("h%d.example.com", i%open), "x")))
	}
	items := w.open(open)
	w.until("all calls are held", func() bool { return w.waiting() == n })
	for _, it := range items {
		w.must("reject", it.ID, "--notes", "no")
	}
	for i, ch := range chans {
		if a := get(t, ch); !strings.HasPrefix(a.text, "status: rejected\nnotes: no\n") {
			t.Fatalf("call %d: %s", i, a.text)
		}
	}
	for _, s := range sessions {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	tr.CloseIdleConnections()
	w.until("descriptors are back", func() bool { return w.descriptors() <= before+5 })
	if n := len(w.list()); n != 0 {
		t.Errorf("%d proposals are open, want none", n)
	}
}

func (w *world) descriptors() int { return w.side.descriptors() }

var waitingRE = regexp.MustCompile(`"[0-9a-f-]{36}": ?(\d+)`)

// waiting sums presence.json, which is late by up to five seconds.
func (w *world) waiting() int {
	b, err := os.ReadFile(w.path("queue/" + w.bottle + "/presence.json"))
	if err != nil {
		return 0
	}
	sum := 0
	for _, m := range waitingRE.FindAllSubmatch(b, -1) {
		n := 0
		fmt.Sscan(string(m[1]), &n)
		sum += n
	}
	return sum
}

// until polls for something that only the file system shows.
func (w *world) until(what string, ok func() bool) {
	w.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			w.t.Fatalf("it never came true that %s", what)
		}
	}
}

// What a neighbour without the token, with a foreign Host, or with too much to say is told.
func TestRefusals(t *testing.T) {
	w := newWorld(t)
	w.startProxy()
	w.startSide("SUPERVISE_TOKEN=s3cret-s3cret-s3cret")
	send := func(method, path, host, auth, body string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, w.sideURL+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Accept", "application/json, text/event-stream")
		if method == "GET" {
			req.Header.Del("Accept")
		}
		if host != "" {
			req.Host = host
		}
		if auth != "" {
			req.Header.Set("Authorization", "Bearer "+auth)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(b)
	}
	list := `{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{}}`
	unknown := `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"rm-rf","arguments":{}}}`
	big := `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"` + strings.Repeat("x", 1<<20) + `"}}`
	good := "s3cret-s3cret-s3cret"
	for _, tt := range []struct {
		name, method, path, host, auth, body string
		code                                 int
		says                                 string
	}{
		{"no token", "POST", "", "", "", list, 401, "SUPERVISE_TOKEN"},
		{"wrong token", "POST", "", "", "s3cret-s3cret-s3creT", list, 401, "SUPERVISE_TOKEN"},
		{"right token", "POST", "", "", good, list, 200, "egress-block"},
		{"unknown Host", "POST", "", "evil.example.com", good, list, 403, "SUPERVISE_ALLOWED_HOSTS"},
		{"too big", "POST", "", "", good, big, 413, ""},
		{"unknown tool", "POST", "", "", good, unknown, 200, "rm-rf"},
		{"GET", "GET", "x", "", good, "", 405, "use POST for MCP requests\n"},
		{"PUT", "PUT", "", "", good, list, 405, ""},
		{"health", "GET", "health", "", "", "", 200, "ok\n"},
	} {
		code, body := send(tt.method, tt.path, tt.host, tt.auth, tt.body)
		if code != tt.code || !strings.Contains(body, tt.says) {
			t.Errorf("%s: %d %.300q, want %d with %q", tt.name, code, body, tt.code, tt.says)
		}
		if strings.Contains(body, good) {
			t.Errorf("%s: the answer has the token", tt.name)
		}
	}
	if strings.Contains(w.side.output(), good) || strings.Contains(w.side.output(), "s3creT") {
		t.Error("the log has a token")
	}
}

// What the agent sends reaches no terminal raw, and no path.
func TestHostileAgent(t *testing.T) {
	w := newWorld(t)
	w.startProxy()
	w.startSide()
	s := w.connect("2026-07-28")
	controls := "\x1b[2J\x1b]52;c;aGk=\x07\x00"
	if a := get(t, ask(t.Context(), s, "egress-block", args("a.example.com", controls))); !a.isError || !strings.Contains(a.text, "U+001B") || strings.Contains(a.text, "\x1b") {
		t.Errorf("control characters: error %v, %q", a.isError, a.text)
	}
	evil := "\u202egnp.exe\u200b\nApprove? [y/N] y\r\u2066\U000e0041" // what is text, and lies all the same
	ch := ask(t.Context(), s, "egress-block", args("a.example.com", evil))
	dockerfile := ask(t.Context(), s, "capability-block", map[string]any{"dockerfile": "FROM debian:12\n# " + evil + "\n" + strings.Repeat("#", 200_000), "justification": evil})
	var ids []string
	for range 2 {
		ids = append(ids, w.queued(len(ids)+1))
	}
	for _, bad := range []struct{ tool, field, value string }{
		{"egress-block", "host", "a.example.com\nb"}, {"egress-block", "host", "../../etc/passwd"}, {"egress-block", "host", "http://x"},
		{"egress-block", "host", strings.Repeat("a", 1<<19)}, {"pipelock-block", "failed_url", "https://user:pw@x.example/"}, {"pipelock-block", "failed_url", "file:///etc/passwd"},
	} {
		a := get(t, ask(t.Context(), s, bad.tool, map[string]any{bad.field: bad.value, "justification": "x"}))
		if !a.isError || !strings.HasPrefix(a.text, bad.tool+": ") || strings.ContainsAny(a.text, "\x1b\x00\u202e") || len(a.text) > 4096 {
			t.Errorf("%s %s %.40q: error %v, %.200q", bad.tool, bad.field, bad.value, a.isError, a.text)
		}
	}
	for _, id := range []string{"../../x", "0197f3b2-6d1e-7c3a-9b58-3f6f0a2c4d1e", "\x1b[31m"} {
		a := get(t, ask(t.Context(), s, "await-decision", map[string]any{"proposal_id": id}))
		if !a.isError || strings.Contains(a.text, "\x1b") {
			t.Errorf("await-decision %q: %q", id, a.text)
		}
	}
	check := func(args ...string) {
		t.Helper()
		out, errs, _ := w.run(args...)
		for _, r := range out + errs {
			if r != '\n' && r != '\t' && (r < 0x20 || r >= 0x7f && r < 0xa0 || r == '\u202e' || r == '\u200b' || r == '\u2066' || r == '\U000e0041') {
				t.Errorf("%q prints %U raw", args, r)
				return
			}
		}
	}
	for _, id := range ids {
		check("show", id)
		check("show", id, "--json")
	}
	check("list")
	check("list", "--json")
	check("approve", ids[0], "--yes")
	check("reject", ids[1], "--notes", "no")
	check("history")
	check("history", "--json")
	check("show", "\x1b[31m")
	check("audit", "verify")
	get(t, ch)
	get(t, dockerfile)

	// A sidecar that the agent has taken over writes what it likes.
	id := "0197f3b2-6d1e-7c3a-9b58-3f6f0a2c4d1e"
	file := `{"host": "a.example.com\u001b[2J"}`
	raw, err := json.Marshal(map[string]any{"id": id, "bottle_slug": "web", "tool": "egress-block\x1b[31m", "proposed_file": file,
		"justification": controls + evil, "current_file_hash": "\x1b", "arrived_at": "2026-01-01T00:00:00Z"})
	if err != nil {
		t.Fatal(err)
	}
	w.write("queue/web/"+id+".proposal.json", string(raw))
	w.write("queue/web/\x1b]0;x\x07.proposal.json", "{")
	check("list")
	check("list", "--json")
	check("show", id)
	check("show", id, "--json")
	check("approve", id, "--yes")
	check("reject", id)
	check("history", "--json")
	if strings.ContainsAny(w.side.output()+w.proxy.output(), "\x1b\x07\x00\u202e") {
		t.Error("a log has raw control characters")
	}
}
