package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/bot-bottle/supervise/internal/testbin"
)

// patience bounds every wait for something that must happen; nothing waits for it to pass.
const patience = 60 * time.Second

var built = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "supervise-e2e-")
	if err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "supervise")
	return bin, testbin.Build(bin)
})

func binary(t testing.TB) string {
	t.Helper()
	bin, err := built()
	if err != nil {
		t.Fatal(err)
	}
	return bin
}

// process is one running supervise.
type process struct {
	t    testing.TB
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	mu   sync.Mutex
	log  bytes.Buffer // guarded by mu
	grew chan struct{}
}

// start runs the real binary in the background.
func start(t testing.TB, env []string, args ...string) *process {
	t.Helper()
	return startIn(t, nil, env, args...)
}

// startIn is start by way of another program, which runs what follows its own arguments.
func startIn(t testing.TB, by, env []string, args ...string) *process {
	t.Helper()
	argv := append(append(by[:len(by):len(by)], binary(t)), args...)
	p := &process{t: t, cmd: exec.Command(argv[0], argv[1:]...), done: make(chan struct{}), grew: make(chan struct{}, 1)}
	p.cmd.Env = append(os.Environ(), env...)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p.cmd.Stdout, p.cmd.Stderr = w, w
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	read := make(chan struct{})
	go func() {
		defer close(read)
		buf := bufio.NewReader(r)
		for {
			line, err := buf.ReadString('\n')
			p.mu.Lock()
			p.log.WriteString(line)
			p.mu.Unlock()
			select {
			case p.grew <- struct{}{}:
			default:
			}
			if err != nil {
				return
			}
		}
	}()
	go func() {
		defer close(p.done)
		_ = p.cmd.Wait()
		<-read
		r.Close()
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.done
		if t.Failed() {
			t.Logf("%v said:\n%s", args, p.output())
		}
	})
	return p
}

func (p *process) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

// says waits for a line and returns its first group.
func (p *process) says(pattern string) string {
	p.t.Helper()
	re := regexp.MustCompile(pattern)
	deadline := time.After(patience)
	for {
		if m := re.FindStringSubmatch(p.output()); m != nil {
			return m[len(m)-1]
		}
		select {
		case <-p.grew:
		case <-p.done:
			if m := re.FindStringSubmatch(p.output()); m != nil {
				return m[len(m)-1]
			}
			p.t.Fatalf("ended without saying %q:\n%s", pattern, p.output())
		case <-deadline:
			p.t.Fatalf("has not said %q:\n%s", pattern, p.output())
		}
	}
}

func (p *process) signal(s syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

// end sends s and returns the exit code (-1 for a kill).
func (p *process) end(s syscall.Signal) int {
	p.t.Helper()
	p.signal(s)
	select {
	case <-p.done:
	case <-time.After(patience):
		p.t.Fatalf("does not end on %v:\n%s", s, p.output())
	}
	return p.cmd.ProcessState.ExitCode()
}

// world is one root with one bottle: its directories, a proxy with a CA, a sidecar, origins.
type world struct {
	t       testing.TB
	dir     string
	bottle  string
	proxy   *process
	proxyAt string
	side    *process
	sideURL string
	port    string // of the sidecar, kept over restarts
	env     []string
	desk    []string // the environment of the operator's commands: where supervise.yaml is, once there is one
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), bottle: "web"}
	for _, d := range []string{"queue", "egress", "bottle"} {
		if err := os.Mkdir(filepath.Join(w.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	w.write("egress/routes.yaml", "# mine\nroutes: []\n")
	w.write("bottle/Dockerfile", "FROM debian:12\n")
	w.port = freePort(t)
	return w
}

// freePort is one that nothing listens on now; the sidecar keeps it over its restarts.
func freePort(t testing.TB) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	return port
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

func (w *world) write(name, data string) {
	w.t.Helper()
	if err := os.WriteFile(w.path(name), []byte(data), 0o644); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) read(name string) string {
	w.t.Helper()
	b, err := os.ReadFile(w.path(name))
	if err != nil {
		w.t.Fatal(err)
	}
	return string(b)
}

// config writes supervise.yaml with the given reload for the proxy.
func (w *world) config(reload string) {
	w.t.Helper()
	w.write("supervise.yaml", fmt.Sprintf(`root: queue
defaults:
  egress:
    file: egress/routes.yaml
    reload: %s
    allowlist_url: http://_egress.local/allowlist
    proxy: http://%s
  capability:
    file: bottle/Dockerfile
`, reload, w.proxyAt))
	w.desk = []string{"SUPERVISE_CONFIG=" + w.path("supervise.yaml")}
}

// startProxy runs 'supervise egress' with a CA.
func (w *world) startProxy(args ...string) {
	w.t.Helper()
	args = append([]string{"egress", "--listen", "127.0.0.1:0", "--routes", w.path("egress/routes.yaml"), "--ca-dir", w.path("ca")}, args...)
	w.proxy = start(w.t, w.env, args...)
	w.proxyAt = w.proxy.says(`egress listening.* addr=(\S+)`)
	w.config("none")
}

// startSide runs 'supervise serve'.
func (w *world) startSide(env ...string) {
	w.t.Helper()
	env = append([]string{
		"SUPERVISE_BOTTLE_SLUG=" + w.bottle, "SUPERVISE_QUEUE_DIR=" + w.path("queue/"+w.bottle), "SUPERVISE_BIND=127.0.0.1", "SUPERVISE_PORT=" + w.port,
		"SUPERVISE_EGRESS_PROXY=http://" + w.proxyAt,
	}, env...)
	w.side = start(w.t, env, "serve")
	w.sideURL = "http://" + w.side.says(`listening on (127\.0\.0\.1:\d+)`) + "/"
}

// run runs a command of the operator to its end.
func (w *world) run(args ...string) (stdout, stderr string, code int) {
	w.t.Helper()
	return w.runIn("", args...)
}

func (w *world) runIn(stdin string, args ...string) (stdout, stderr string, code int) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary(w.t), args...)
	cmd.Dir = w.dir
	cmd.Env = append(os.Environ(), w.desk...)
	var out, errb bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errb
	err := cmd.Run()
	if ctx.Err() != nil {
		w.t.Fatalf("supervise %q does not end", args)
	}
	if cmd.ProcessState == nil {
		w.t.Fatal(err)
	}
	return out.String(), errb.String(), cmd.ProcessState.ExitCode()
}

// must is run for what has to work.
func (w *world) must(args ...string) string {
	w.t.Helper()
	out, errs, code := w.run(args...)
	if code != 0 {
		w.t.Fatalf("supervise %q: exit %d\n%s\n%s", args, code, out, errs)
	}
	return out
}

type item struct {
	ID      string `json:"id"`
	Bottle  string `json:"bottle"`
	Tool    string `json:"tool"`
	State   string `json:"state"`
	Summary string `json:"summary"`
	Error   string `json:"error"`
}

func (w *world) list() []item {
	w.t.Helper()
	var l struct {
		Items []item `json:"items"`
	}
	if err := json.Unmarshal([]byte(w.must("list", "--json")), &l); err != nil {
		w.t.Fatal(err)
	}
	return l.Items
}

// open waits until n proposals are open. It asks the binary, so it also tests that list tells of them at once.
func (w *world) open(n int) []item {
	w.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		items := w.list()
		if len(items) == n {
			return items
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("%d proposals are open, want %d: %+v", len(items), n, items)
		}
	}
}

// queued waits until the sidecar tells of its n-th proposal since it started, and returns its id.
func (w *world) queued(n int) string {
	w.t.Helper()
	return w.side.says(fmt.Sprintf(`(?s)(?:queued proposal .*?){%d}queued proposal (\S+) \(`, n-1))
}

// answer is what an agent got.
type answer struct {
	text    string
	isError bool
	meta    map[string]any
	err     error
}

// ask calls a tool and returns a channel with the one answer.
func ask(ctx context.Context, s *mcp.ClientSession, tool string, args map[string]any) <-chan answer {
	ch := make(chan answer, 1)
	params := &mcp.CallToolParams{Name: tool, Arguments: args}
	params.SetProgressToken("p")
	go func() {
		res, err := s.CallTool(ctx, params)
		ch <- answerOf(res, err)
	}()
	return ch
}

func answerOf(res *mcp.CallToolResult, err error) answer {
	a := answer{err: err}
	if res != nil {
		a.isError, a.meta = res.IsError, res.Meta
		for _, c := range res.Content {
			if text, ok := c.(*mcp.TextContent); ok {
				a.text += text.Text
			}
		}
	}
	return a
}

func get(t testing.TB, ch <-chan answer) answer {
	t.Helper()
	select {
	case a := <-ch:
		if a.err != nil {
			t.Fatalf("the call failed: %v", a.err)
		}
		return a
	case <-time.After(patience):
		t.Fatal("no answer")
		panic("unreachable")
	}
}

func held(t testing.TB, ch <-chan answer) {
	t.Helper()
	select {
	case a := <-ch:
		t.Fatalf("the call is not held: %+v", a)
	default:
	}
}

// connect is an SDK client at a protocol version. It counts progress.
func (w *world) connect(version string) *mcp.ClientSession {
	w.t.Helper()
	s, err := mcp.NewClient(&mcp.Implementation{Name: "claude-code", Version: "2.1.330"}, nil).Connect(w.t.Context(),
		&mcp.StreamableClientTransport{Endpoint: w.sideURL}, &mcp.ClientSessionOptions{ProtocolVersion: version})
	if err != nil {
		w.t.Fatal(err)
	}
	if got := s.InitializeResult().ProtocolVersion; got != version {
		w.t.Fatalf("negotiated %q, want %q", got, version)
	}
	w.t.Cleanup(func() { s.Close() })
	return s
}

// agentHTTP is what runs in the bottle: all of its traffic goes through the proxy, whose CA it trusts.
func (w *world) agentHTTP() *http.Client {
	w.t.Helper()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(w.read("ca/public/ca.pem"))) {
		w.t.Fatal("the proxy's CA is not PEM")
	}
	proxy := &url.URL{Scheme: "http", Host: w.proxyAt}
	tr := &http.Transport{Proxy: http.ProxyURL(proxy), TLSClientConfig: &tls.Config{RootCAs: pool}}
	w.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: patience}
}

func fetch(t testing.TB, c *http.Client, url string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// origin is a site on loopback. Its port is the only one besides 80 and 443 that the proxy lets through.
func origin(t testing.TB, secure bool, h http.Handler) (s *httptest.Server, port string) {
	t.Helper()
	s = httptest.NewUnstartedServer(h)
	if secure {
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(s.Close)
	u, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	return s, u.Port()
}
