package operator

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/bot-bottle/supervise/internal/apply"
	"github.com/bot-bottle/supervise/internal/config"
	"github.com/bot-bottle/supervise/internal/payload"
	"github.com/bot-bottle/supervise/internal/routes"
	"github.com/bot-bottle/supervise/internal/safetext"
	"github.com/bot-bottle/supervise/queue"
)

const baseRoutes = `# kept by hand
routes:
  - host: api.github.com   # the API
    path_allowlist:
      - /repos/
  - host: pypi.org
`

const baseGate = `mode: strict
api_allowlist:
  - api.github.com
`

// rig is a root with one bottle, real files, real mailboxes, and a proxy that shows its table.
type rig struct {
	t      testing.TB
	root   string
	routes string
	docker string
	gate   string // pipelock's file; "": there is none
	box    *queue.Dir
	inbox  *queue.Root
	proxy  *proxy
	cfg    config.Bottle
	step   func(string) error // of desk and hand both
	verify time.Duration      // the hand's patience; zero: long
}

// proxy serves /allowlist from the file, as one that watches it would; frozen, it shows what it had.
type proxy struct {
	*httptest.Server
	mu     sync.Mutex
	path   string
	frozen []byte // guarded by mu; nil: not
	asked  int    // guarded by mu
}

func (p *proxy) freeze(t testing.TB) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.frozen = read(t, p.path)
}

func (p *proxy) thaw() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.frozen = nil
}

func (p *proxy) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked++
	data := p.frozen
	if data == nil {
		data, _ = os.ReadFile(p.path)
	}
	table, err := routes.Parse(data)
	if err != nil {
		http.Error(w, err.Error(), 500)
		return
	}
	type live struct {
		Host  string   `json:"host"`
		Paths []string `json:"path_allowlist"`
		Token string   `json:"token"`
	}
	body := struct {
		Routes []live `json:"routes"`
		SHA    string `json:"sha256"`
	}{[]live{}, apply.SHA256(data)}
	for _, r := range table.Routes {
		body.Routes = append(body.Routes, live{r.Host, r.PathAllowlist, "none"})
	}
	b, err := safetext.JSON(body)
	if err != nil {
		http.Error(w, err.Error(), 500)
		return
	}
	w.Write(b)
}

func newRig(t testing.TB) *rig {
	t.Helper()
	dir := t.TempDir()
	r := &rig{t: t, root: filepath.Join(dir, "queue"), routes: filepath.Join(dir, "egress", "routes.yaml"), docker: filepath.Join(dir, "bottle", "Dockerfile")}
	for path, data := range map[string]string{r.routes: baseRoutes, r.docker: "FROM debian:12\nRUN true\n"} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	r.proxy = &proxy{path: r.routes}
	r.proxy.Server = httptest.NewServer(r.proxy)
	t.Cleanup(r.proxy.Close)
	r.cfg = config.Bottle{
		Egress:     &config.Egress{File: r.routes, AllowlistURL: r.proxy.URL + "/allowlist"},
		Capability: &config.Capability{File: r.docker},
	}
	r.openInbox()
	var err error
	if r.box, err = queue.OpenDir(t.Context(), filepath.Join(r.root, "web"), queue.Options{Slug: "web"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.box.Close() })
	return r
}

// gated gives the bottle a second target.
func (r *rig) gated() *rig {
	r.t.Helper()
	r.gate = filepath.Join(filepath.Dir(filepath.Dir(r.routes)), "gate", "pipelock.yaml")
	if err := os.MkdirAll(filepath.Dir(r.gate), 0o755); err != nil {
		r.t.Fatal(err)
	}
	r.write(r.gate, baseGate)
	r.cfg.Pipelock = &config.Pipelock{File: r.gate}
	return r
}

func (r *rig) openInbox() {
	r.t.Helper()
	inbox, err := queue.OpenRoot(r.root, queue.RootOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { inbox.Close() })
	r.inbox = inbox
}

func (r *rig) hand() *apply.Local {
	r.t.Helper()
	h, err := apply.New(apply.Options{
		Targets: func(string) config.Bottle { return r.cfg }, LockDir: filepath.Join(r.root, ".desk", "locks"),
		VerifyTimeout: r.verify, VerifyEvery: 5 * time.Millisecond, PipelockSettle: -1, Step: r.doStep,
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return h
}

func (r *rig) doStep(name string) error {
	if r.step == nil {
		return nil
	}
	return r.step(name)
}

// desk is a fresh one, as a new process would open it.
func (r *rig) desk(by string) *Desk {
	r.t.Helper()
	d, err := New(Options{Root: r.root, Inbox: r.inbox, Hand: r.hand(), By: by, Via: "cli", Step: r.doStep})
	if err != nil {
		r.t.Fatal(err)
	}
	return d
}

func (r *rig) put(p payload.Payload, err error) Ref {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
	return r.putRaw(p.Tool, p.Encode(), "the build needs it")
}

func (r *rig) putRaw(tool, file, why string) Ref {
	r.t.Helper()
	p := queue.Proposal{ID: queue.NewID(), Bottle: "web", Tool: tool, ProposedFile: file, Justification: why, CurrentFileHash: queue.Hash(file), ArrivedAt: time.Now()}
	if err := r.box.Put(r.t.Context(), p); err != nil {
		r.t.Fatal(err)
	}
	return Ref{"web", p.ID}
}

// putFor is put for a bottle that shares its files with "web", or for that.
func (r *rig) putFor(bottle string) func(payload.Payload, error) Ref {
	if bottle == "web" {
		return r.put
	}
	return func(p payload.Payload, err error) Ref {
		r.t.Helper()
		if err != nil {
			r.t.Fatal(err)
		}
		box, err := queue.OpenDir(r.t.Context(), filepath.Join(r.root, bottle), queue.Options{Slug: bottle})
		if err != nil {
			r.t.Fatal(err)
		}
		defer box.Close()
		prop := queue.Proposal{ID: queue.NewID(), Bottle: bottle, Tool: p.Tool, ProposedFile: p.Encode(), Justification: "the build needs it"}
		if err := box.Put(r.t.Context(), prop); err != nil {
			r.t.Fatal(err)
		}
		return Ref{bottle, prop.ID}
	}
}

func egressFor(host string, paths ...string) (payload.Payload, error) {
	return payload.NewEgress(payload.Route{Host: host, PathAllowlist: paths})
}

func (r *rig) show(d *Desk, ref Ref) *Preview {
	r.t.Helper()
	p, err := d.Show(r.t.Context(), ref, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	return p
}

// approve looks and approves, accepting every danger.
func (r *rig) approve(d *Desk, ref Ref) (*Result, error) {
	r.t.Helper()
	p := r.show(d, ref)
	return d.Approve(r.t.Context(), ref, Decision{Digest: p.Digest, Accept: p.Dangers(), Notes: "fine"})
}

func (r *rig) response(ref Ref) *queue.Response {
	r.t.Helper()
	e, err := r.box.Get(r.t.Context(), ref.ID)
	if err != nil {
		r.t.Fatal(err)
	}
	return e.Response
}

func (r *rig) wantRoutes(want string) {
	r.t.Helper()
	if got := read(r.t, r.routes); string(got) != want {
		r.t.Errorf("routes.yaml is\n%s\nwant\n%s", got, want)
	}
}

func (r *rig) events(d *Desk, ref Ref) []string {
	r.t.Helper()
	var out []string
	for e, err := range d.History(r.t.Context(), HistoryFilter{ID: ref.ID}) {
		if err != nil {
			r.t.Fatal(err)
		}
		out = append([]string{e.Event}, out...)
	}
	return out
}

func (r *rig) audit(d *Desk) {
	r.t.Helper()
	rep, err := d.Audit(r.t.Context(), "")
	if err != nil {
		r.t.Fatal(err)
	}
	if !rep.OK() {
		r.t.Errorf("the ledger does not verify: %s", rep.Problem)
	}
}

func (r *rig) items(d *Desk) []Item {
	r.t.Helper()
	s, err := d.Snapshot(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	return s.Items
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var errCrash = errors.New("crashed here")

// crashAt ends everything from the n-th step on, as a killed process would; names gets the steps.
func crashAt(n int, names *[]string) func(string) error {
	i := 0
	return func(name string) error {
		i++
		if names != nil {
			*names = append(*names, name)
		}
		if i >= n {
			return fmt.Errorf("%w: step %d, %s", errCrash, i, name)
		}
		return nil
	}
}

func contains(b []byte, s string) bool { return bytes.Contains(b, []byte(s)) }

// respond writes a response as another program would.
func (r *rig) respond(ref Ref, status queue.Status, notes string) {
	r.t.Helper()
	if err := r.inbox.Respond(context.WithoutCancel(r.t.Context()), ref.Bottle, queue.Response{ProposalID: ref.ID, Status: status, Notes: notes}); err != nil {
		r.t.Fatal(err)
	}
}

func newEgress(file, url string) *config.Egress {
	return &config.Egress{File: file, AllowlistURL: url + "/allowlist"}
}
