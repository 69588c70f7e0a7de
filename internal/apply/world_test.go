package apply

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/bot-bottle/supervise/internal/config"
	"github.com/bot-bottle/supervise/internal/payload"
	"github.com/bot-bottle/supervise/internal/routes"
)

const (
	routesYAML = "# ours\nroutes:\n  - host: pypi.org # packages\n    path_allowlist: [\"/simple/\"]\n"
	gateYAML   = "mode: strict\napi_allowlist:\n  - \"pypi.org\"\n"
	dockerfile = "FROM scratch\n"
)

// proxy is an egress proxy for tests: it has the file in force that it read last, and reads it when told.
type proxy struct {
	mu    sync.Mutex // guards all below
	file  string
	data  []byte
	deaf  bool   // reloads do nothing
	token string // of every route with auth; default present
	error string // last_error
	bare  bool   // a foreign one: routes only
	loads int
	url   string
}

func newProxy(t *testing.T, file string) *proxy {
	p := &proxy{file: file, token: "present"}
	p.load(t)
	srv := httptest.NewServer(p)
	t.Cleanup(srv.Close)
	p.url = srv.URL + "/allowlist"
	return p
}

func (p *proxy) load(t *testing.T) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.loads++
	if p.deaf {
		return
	}
	data, err := os.ReadFile(p.file)
	if err != nil {
		t.Errorf("proxy: %v", err)
	}
	p.data = data
}

func (p *proxy) set(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
}

func (p *proxy) hosts() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	table, _ := routes.Parse(p.data)
	var hosts []string
	for _, r := range table.Routes {
		hosts = append(hosts, r.Host)
	}
	return strings.Join(hosts, " ")
}

func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	table, _ := routes.Parse(p.data)
	list := []map[string]any{}
	for _, r := range table.Routes {
		m := map[string]any{"host": r.Host, "path_allowlist": r.PathAllowlist}
		if !p.bare {
			m["auth"], m["token"] = r.Auth != nil, "none"
			if r.Auth != nil {
				m["token"] = p.token
			}
		}
		list = append(list, m)
	}
	body := map[string]any{"routes": list}
	if !p.bare {
		body["generation"], body["sha256"], body["last_error"] = p.loads, SHA256(p.data), nil
		if p.error != "" {
			body["last_error"] = p.error
		}
	}
	json.NewEncoder(w).Encode(body)
}

// world is one bottle with all its targets, a proxy, and a hand.
type world struct {
	t                 *testing.T
	dir               string
	egress, gate, img string
	proxy             *proxy
	cfg               config.Bottle
	opts              Options
	hand              *Local
	ran               []string                  // commands, in order
	exec              func(argv []string) error // for the test; may be nil
	said              strings.Builder           // progress
	step              func(name string) error   // for the test; may be nil
	steps             []string                  // durable steps, in order
	build             func(out io.Writer) error // what the build command does
	image             string                    // what buildsFile built last
}

func newWorld(t *testing.T) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{t: t, dir: dir, egress: filepath.Join(dir, "egress", "routes.yaml"), gate: filepath.Join(dir, "gate", "pipelock.yaml"), img: filepath.Join(dir, "img", "Dockerfile")}
	for path, text := range map[string]string{w.egress: routesYAML, w.gate: gateYAML, w.img: dockerfile} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		w.write(path, text)
	}
	w.proxy = newProxy(t, w.egress)
	w.cfg = config.Bottle{
		Egress:     &config.Egress{File: w.egress, Reload: config.Reload{Exec: []string{"reload-egress"}}, AllowlistURL: w.proxy.url},
		Pipelock:   &config.Pipelock{File: w.gate, Reload: config.Reload{Engine: "docker", Name: "gate-web"}},
		Capability: &config.Capability{File: w.img, Build: []string{"build"}, Replace: []string{"replace"}},
	}
	w.opts = Options{
		Targets: func(bottle string) config.Bottle {
			if bottle != "web" {
				return config.Bottle{}
			}
			return w.cfg
		},
		LockDir:        filepath.Join(dir, "locks"),
		VerifyTimeout:  200 * time.Millisecond,
		VerifyEvery:    5 * time.Millisecond,
		PipelockSettle: -1,
		Exec: func(ctx context.Context, argv []string, stdout, _ io.Writer, _ func(int)) error {
			w.ran = append(w.ran, strings.Join(argv, " "))
			if w.exec != nil {
				if err := w.exec(argv); err != nil {
					return err
				}
			}
			if argv[0] == "reload-egress" {
				w.proxy.load(t)
			}
			if argv[0] == "build" && w.build != nil {
				return w.build(stdout)
			}
			return nil
		},
		Step: func(name string) error {
			w.steps = append(w.steps, name)
			if w.step != nil {
				return w.step(name)
			}
			return nil
		},
	}
	w.open()
	return w
}

func (w *world) open() {
	w.t.Helper()
	hand, err := New(w.opts)
	if err != nil {
		w.t.Fatalf("New: %v", err)
	}
	w.hand = hand
}

func (w *world) write(path, text string) {
	w.t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) read(path string) string {
	w.t.Helper()
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return "(no file)"
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return string(data)
}

func (w *world) is(path, want string) {
	w.t.Helper()
	if diff := cmp.Diff(want, w.read(path)); diff != "" {
		w.t.Errorf("%s mismatch (-want +got):\n%s", filepath.Base(path), diff)
	}
}

// clean checks that no temporary file is left.
func (w *world) clean() {
	w.t.Helper()
	for _, path := range []string{w.egress, w.gate, w.img} {
		names, err := filepath.Glob(filepath.Join(filepath.Dir(path), ".*"))
		if err != nil || len(names) > 0 {
			w.t.Errorf("left behind: %v, %v", names, err)
		}
	}
}

// buildsFile is a build that needs the Dockerfile, and keeps what it was.
func (w *world) buildsFile(io.Writer) error {
	text := w.read(w.img)
	if text == "(no file)" {
		return errors.New("no Dockerfile")
	}
	w.image = text
	return nil
}

func (w *world) plan(p payload.Payload) *Plan {
	w.t.Helper()
	plan, err := w.hand.Preview(w.t.Context(), "web", p)
	if err != nil {
		w.t.Fatalf("Preview: %v", err)
	}
	w.glance(p, plan)
	return plan
}

// glance checks that Glance says of a plan all but its edits.
func (w *world) glance(p payload.Payload, plan *Plan) {
	w.t.Helper()
	both, err := w.hand.Glance(w.t.Context(), "web", p, p)
	if err != nil {
		w.t.Fatalf("Glance: %v", err)
	}
	got := both[1]
	if got.Blocked != nil && (plan.Blocked == nil || got.Blocked.Error() != plan.Blocked.Error()) {
		w.t.Errorf("Glance is blocked by %v, Preview by %v", got.Blocked, plan.Blocked)
	}
	changes := func(t Target) bool { return !t.Covered }
	if got.Blocked == nil && plan.Blocked != nil && !slices.ContainsFunc(got.Targets, changes) {
		w.t.Errorf("Glance says that nothing changes, Preview that it cannot: %v", plan.Blocked)
	}
	bare := func(p *Plan) Plan {
		q := *p
		q.Blocked, q.Targets = nil, slices.Clone(p.Targets)
		for i, t := range q.Targets {
			if t.Kind != KindDockerfile {
				q.Targets[i].After = nil
			}
		}
		return q
	}
	if diff := cmp.Diff(bare(plan), bare(got), cmpopts.EquateEmpty(), cmp.AllowUnexported(payload.Payload{})); diff != "" {
		w.t.Errorf("Glance mismatch (-Preview +Glance):\n%s", diff)
	}
}

func (w *world) apply(p payload.Payload) (Result, []Image, error) {
	w.t.Helper()
	plan := w.plan(p)
	res, err := w.hand.Apply(w.t.Context(), plan, &w.said)
	return res, images(plan), err
}

func images(plan *Plan) []Image {
	var out []Image
	for _, t := range plan.Targets {
		out = append(out, ImageOf(t))
	}
	return out
}

func route(t *testing.T, host string, paths ...string) payload.Payload {
	t.Helper()
	p, err := payload.NewEgress(payload.Route{Host: host, PathAllowlist: paths})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func withAuth(t *testing.T, host string, paths ...string) payload.Payload {
	t.Helper()
	p, err := payload.NewEgress(payload.Route{Host: host, PathAllowlist: paths, Auth: &payload.Auth{Scheme: "Bearer", TokenRef: "GH_TOKEN"}})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func blocked(t *testing.T, url string) payload.Payload {
	t.Helper()
	p, err := payload.NewPipelock(url)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func image(t *testing.T, text string) payload.Payload {
	t.Helper()
	p, err := payload.NewCapability(text)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

const (
	routesAfter = routesYAML + "  - host: api.github.com\n    path_allowlist: [\"/repos/\"]\n"
	gateAfter   = gateYAML + "  - \"api.github.com\"\n"
)

func failure(t *testing.T, err error) *Failure {
	t.Helper()
	f, ok := errors.AsType[*Failure](err)
	if !ok {
		t.Fatalf("error %v (%T), want a *Failure", err, err)
	}
	return f
}
