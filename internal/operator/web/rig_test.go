package web_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/html"

	"github.com/bot-bottle/supervise/internal/apply"
	"github.com/bot-bottle/supervise/internal/config"
	"github.com/bot-bottle/supervise/internal/operator"
	"github.com/bot-bottle/supervise/internal/operator/web"
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

const baseDockerfile = "FROM debian:12\nRUN true\nUSER agent\n"

// rig is real bottles with a real desk and a web server over it, on loopback.
type rig struct {
	t      testing.TB
	root   string
	dir    string
	boxes  map[string]*queue.Dir
	inbox  *queue.Root
	desk   *operator.Desk
	server *web.Server
	url    string
	proxy  *httptest.Server

	mu    sync.Mutex
	stale map[string][]byte // guarded by mu: what a proxy that has stopped reading its file goes on showing
}

func newRig(t testing.TB, slugs ...string) *rig {
	t.Helper()
	if len(slugs) == 0 {
		slugs = []string{"web"}
	}
	r := &rig{t: t, dir: t.TempDir(), boxes: map[string]*queue.Dir{}, stale: map[string][]byte{}}
	r.root = filepath.Join(r.dir, "queue")
	r.proxy = httptest.NewServer(http.HandlerFunc(r.allowlist))
	t.Cleanup(r.proxy.Close)
	for _, slug := range slugs {
		r.write(slug, "egress/routes.yaml", baseRoutes)
		r.write(slug, "Dockerfile", baseDockerfile)
		box, err := queue.OpenDir(t.Context(), filepath.Join(r.root, slug), queue.Options{Slug: slug})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { box.Close() })
		r.boxes[slug] = box
	}
	r.desk = r.openDesk("ann@host", "web")
	r.server, r.url = r.serve(web.Options{Desk: r.desk})
	return r
}

// openDesk opens another operator's desk on the same root.
func (r *rig) openDesk(by, via string) *operator.Desk {
	r.t.Helper()
	return r.openDeskAt(by, via, nil)
}

// openDeskAt opens one that calls step before each of its durable steps.
func (r *rig) openDeskAt(by, via string, step func(name string) error) *operator.Desk {
	r.t.Helper()
	if r.inbox == nil {
		inbox, err := queue.OpenRoot(r.root, queue.RootOptions{})
		if err != nil {
			r.t.Fatal(err)
		}
		r.t.Cleanup(func() { inbox.Close() })
		r.inbox = inbox
	}
	hand, err := apply.New(apply.Options{Targets: r.targets, LockDir: filepath.Join(r.root, ".desk", "locks"), VerifyTimeout: 200 * time.Millisecond, VerifyEvery: 5 * time.Millisecond})
	if err != nil {
		r.t.Fatal(err)
	}
	d, err := operator.New(operator.Options{Root: r.root, Inbox: r.inbox, Hand: hand, By: by, Via: via, Step: step})
	if err != nil {
		r.t.Fatal(err)
	}
	return d
}

// serve runs a web server until the test ends.
func (r *rig) serve(o web.Options) (*web.Server, string) {
	r.t.Helper()
	o.Targets = r.targets
	return serve(r.t, o)
}

func serve(t testing.TB, o web.Options) (*web.Server, string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o.URL = "http://" + ln.Addr().String()
	if o.Logger == nil {
		o.Logger = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	}
	s := web.New(o)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return s, o.URL
}

func (r *rig) file(slug, name string) string { return filepath.Join(r.dir, slug, name) }

func (r *rig) targets(slug string) config.Bottle {
	return config.Bottle{
		Egress:     &config.Egress{File: r.file(slug, "egress/routes.yaml"), AllowlistURL: r.proxy.URL + "/" + slug},
		Capability: &config.Capability{File: r.file(slug, "Dockerfile")},
	}
}

func (r *rig) write(slug, name, data string) {
	r.t.Helper()
	path := r.file(slug, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(data), 0o644)); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) read(slug, name string) string {
	r.t.Helper()
	b, err := os.ReadFile(r.file(slug, name))
	if err != nil {
		r.t.Fatal(err)
	}
	return string(b)
}

// freeze makes every proxy stay with the table it has.
func (r *rig) freeze() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for slug := range r.boxes {
		r.stale[slug] = []byte(r.read(slug, "egress/routes.yaml"))
	}
}

func (r *rig) thaw() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.stale)
}

// allowlist is a proxy that shows the table of each bottle's file.
func (r *rig) allowlist(w http.ResponseWriter, q *http.Request) {
	slug := strings.Trim(q.URL.Path, "/")
	r.mu.Lock()
	data := r.stale[slug]
	r.mu.Unlock()
	var err error
	if data == nil {
		data, err = os.ReadFile(r.file(slug, "egress/routes.yaml"))
	}
	table, perr := routes.Parse(data)
	if err := errors.Join(err, perr); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	a := apply.Allowlist{Routes: []apply.LiveRoute{}, SHA256: apply.SHA256(data)}
	for _, route := range table.Routes {
		a.Routes = append(a.Routes, apply.LiveRoute{Host: route.Host, PathAllowlist: route.PathAllowlist, Token: "none"})
	}
	b, err := safetext.JSON(a)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	_, _ = w.Write(b) // whoever hung up
}

func (r *rig) put(slug string, p payload.Payload, err error) operator.Ref {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
	return r.putRaw(slug, p.Tool, p.Encode(), "the build needs it")
}

func (r *rig) putRaw(slug, tool, file, why string) operator.Ref {
	r.t.Helper()
	p := queue.Proposal{ID: queue.NewID(), Bottle: slug, Tool: tool, ProposedFile: file, Justification: why, CurrentFileHash: queue.Hash(file), ArrivedAt: time.Now()}
	if err := r.boxes[slug].Put(r.t.Context(), p); err != nil {
		r.t.Fatal(err)
	}
	if r.server != nil {
		r.server.Look() // a page may else be some milliseconds behind
	}
	return operator.Ref{Bottle: slug, ID: p.ID}
}

func route(host string, paths ...string) (payload.Payload, error) {
	return payload.NewEgress(payload.Route{Host: host, PathAllowlist: paths})
}

// wait waits for the agent's answer.
func (r *rig) wait(ref operator.Ref) queue.Response {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 20*time.Second)
	defer cancel()
	res, err := r.boxes[ref.Bottle].Wait(ctx, ref.ID)
	if err != nil {
		r.t.Fatalf("waiting for the answer to %s: %v", ref, err)
	}
	return res
}

func path(ref operator.Ref) string { return "/p/" + ref.Bottle + "/" + string(ref.ID) }

// client is a browser without script.
type client struct {
	t    testing.TB
	base string
	http *http.Client
}

func newClient(t testing.TB, base string) *client {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &client{t: t, base: base, http: &http.Client{Jar: jar, Timeout: 20 * time.Second}}
}

// signedIn returns a client that has followed a new link.
func signedIn(t testing.TB, s *web.Server, base string) *client {
	t.Helper()
	c := newClient(t, base)
	if p := c.get(strings.TrimPrefix(s.Link(), base)).submit("signin", "", nil); p.status != http.StatusOK || p.path != "/" {
		t.Fatalf("signing in: %d at %s:\n%s", p.status, p.path, p.text())
	}
	return c
}

func (r *rig) client() *client { return signedIn(r.t, r.server, r.url) }

// got is a page that came.
type got struct {
	c      *client
	status int
	path   string
	header http.Header
	raw    string
	doc    *html.Node
}

func (c *client) get(path string) *got {
	c.t.Helper()
	req, err := http.NewRequestWithContext(c.t.Context(), http.MethodGet, c.base+path, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	return c.do(req)
}

func (c *client) post(path string, form url.Values) *got {
	c.t.Helper()
	req, err := http.NewRequestWithContext(c.t.Context(), http.MethodPost, c.base+path, strings.NewReader(form.Encode()))
	if err != nil {
		c.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Origin", c.base)
	return c.do(req)
}

func (c *client) do(req *http.Request) *got {
	c.t.Helper()
	resp, err := c.http.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	doc, err := html.Parse(strings.NewReader(string(b)))
	if err != nil {
		c.t.Fatal(err)
	}
	return &got{c, resp.StatusCode, resp.Request.URL.Path, resp.Header, string(b), doc}
}

// want checks the status and that the page's text has every part.
func (g *got) want(status int, parts ...string) *got {
	g.c.t.Helper()
	text := g.text()
	if g.status != status {
		g.c.t.Fatalf("%s answers %d, want %d:\n%s", g.path, g.status, status, text)
	}
	for _, p := range parts {
		if !strings.Contains(text, p) {
			g.c.t.Errorf("%s lacks %q:\n%s", g.path, p, text)
		}
	}
	return g
}

func (g *got) wantNot(parts ...string) *got {
	g.c.t.Helper()
	for _, p := range parts {
		if strings.Contains(g.text(), p) {
			g.c.t.Errorf("%s has %q:\n%s", g.path, p, g.text())
		}
	}
	return g
}

// text is what the page says, with runs of space as one.
func (g *got) text() string {
	var b strings.Builder
	var walk func(*html.Node)
	walk = func(n *html.Node) {
		if n.Type == html.TextNode {
			b.WriteString(n.Data + " ")
		}
		if n.Type == html.ElementNode && (has(n, "hidden") || n.Data == "noscript" || n.Data == "dialog") {
			return
		}
		for c := range n.ChildNodes() {
			walk(c)
		}
	}
	walk(g.doc)
	return strings.Join(strings.Fields(b.String()), " ")
}

func attr(n *html.Node, key string) string {
	for _, a := range n.Attr {
		if a.Key == key {
			return a.Val
		}
	}
	return ""
}

func has(n *html.Node, key string) bool {
	for _, a := range n.Attr {
		if a.Key == key {
			return true
		}
	}
	return false
}

// find returns the first element that matches, or nil.
func (g *got) find(match func(*html.Node) bool) *html.Node {
	for n := range g.doc.Descendants() {
		if n.Type == html.ElementNode && match(n) {
			return n
		}
	}
	return nil
}

func (g *got) byID(id string) *html.Node {
	return g.find(func(n *html.Node) bool { return attr(n, "id") == id })
}

// values are what submitting a form would send.
func (g *got) values(id string) (action string, v url.Values) {
	g.c.t.Helper()
	form := g.byID(id)
	if form == nil {
		g.c.t.Fatalf("%s has no form %s:\n%s", g.path, id, g.text())
	}
	v = url.Values{}
	for n := range form.Descendants() {
		name := attr(n, "name")
		if n.Type != html.ElementNode || name == "" {
			continue
		}
		switch {
		case n.Data == "textarea":
			text := ""
			if n.FirstChild != nil {
				text = n.FirstChild.Data
			}
			v.Add(name, strings.ReplaceAll(text, "\n", "\r\n")) // as browsers do
		case n.Data == "input" && attr(n, "type") == "checkbox":
			if has(n, "checked") {
				v.Add(name, attr(n, "value"))
			}
		case n.Data == "input":
			v.Add(name, strings.ReplaceAll(attr(n, "value"), "\n", "\r\n"))
		}
	}
	return attr(form, "action"), v
}

// submit sends a form with the given fields in place of its own; verb replaces the last part of its action.
func (g *got) submit(id, verb string, fields url.Values) *got {
	g.c.t.Helper()
	action, v := g.values(id)
	maps.Copy(v, fields)
	if action == "" {
		action = g.path
	}
	if verb != "" {
		action = action[:strings.LastIndex(action, "/")+1] + verb
	}
	return g.c.post(action, v)
}

func (r *rig) events(ref operator.Ref) string {
	r.t.Helper()
	var out []string
	for e, err := range r.desk.History(r.t.Context(), operator.HistoryFilter{ID: ref.ID}) {
		if err != nil {
			r.t.Fatal(err)
		}
		out = append([]string{fmt.Sprintf("%s by %s via %s", e.Event, e.By, e.Via)}, out...)
	}
	return strings.Join(out, ", ")
}
