// Screenshots takes pictures of the desk in a browser, with a few proposals as agents make them, and writes
// them into the directory it is given: docs/img. It needs Chromium.
//
//	go run ./internal/operator/web/screenshots docs/img
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"golang.org/x/sync/errgroup"

	"github.com/bot-bottle/supervise/internal/apply"
	"github.com/bot-bottle/supervise/internal/config"
	"github.com/bot-bottle/supervise/internal/operator"
	"github.com/bot-bottle/supervise/internal/operator/web"
	"github.com/bot-bottle/supervise/internal/payload"
	"github.com/bot-bottle/supervise/internal/routes"
	"github.com/bot-bottle/supervise/internal/safetext"
	"github.com/bot-bottle/supervise/queue"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "screenshots:", err)
		os.Exit(1)
	}
}

func run(args []string) (err error) {
	if len(args) != 1 && len(args) != 2 || len(args) == 2 && args[1] != "all" {
		return errors.New("usage: screenshots DIRECTORY [all]")
	}
	if err := os.MkdirAll(args[0], 0o755); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "demo-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	w, err := newWorld(ctx, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	ctx, stop := browser(ctx, dir)
	defer stop()
	g, gctx := errgroup.WithContext(ctx)
	sctx, end := context.WithCancel(gctx)
	g.Go(func() error { return w.server.Run(sctx, w.listener) })
	g.Go(func() error {
		defer end()
		return pictures(gctx, w, args[0], len(args) == 2)
	})
	return g.Wait()
}

// browser starts a Chromium of its own.
func browser(ctx context.Context, dir string) (context.Context, context.CancelFunc) {
	opts := append(slices.Clone(chromedp.DefaultExecAllocatorOptions[:]), chromedp.NoSandbox, chromedp.DisableGPU, chromedp.UserDataDir(filepath.Join(dir, "browser")),
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true))
	actx, stop := chromedp.NewExecAllocator(ctx, opts...)
	bctx, end := chromedp.NewContext(actx)
	return bctx, func() { end(); stop() }
}

type shot struct {
	name          string
	path          string
	width, height int64 // height 0: all of the page
	dark          bool
	script        string // run before the picture
}

func pictures(ctx context.Context, w *world, dir string, all bool) error {
	if err := chromedp.Do(ctx, chromedp.Navigate(w.server.Link()), chromedp.WaitVisible(chromedp.CSS(".row"))); err != nil {
		return fmt.Errorf("signing in: %w", err)
	}
	shots := []shot{
		{name: "web", path: w.path("credential"), width: 1280, height: 800},
		{name: "web-dark", path: "/", width: 1280, height: 560, dark: true},
	}
	if all {
		shots = append(shots, w.everything()...)
	}
	for _, s := range shots {
		png, err := s.take(ctx, w.url)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		if err := os.WriteFile(filepath.Join(dir, s.name+".png"), png, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (s shot) take(ctx context.Context, url string) ([]byte, error) {
	scheme := "light"
	if s.dark {
		scheme = "dark"
	}
	err := chromedp.Do(ctx,
		chromedp.EmulateViewport(s.width, max(s.height, 700)),
		chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
			_, err := cdp.Call(ctx, t, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
			return err
		}),
		chromedp.Navigate(url+s.path), chromedp.WaitReady(chromedp.CSS("#main")))
	if err == nil && s.script != "" {
		_, err = chromedp.RunResponse(ctx, chromedp.Evaluate[chromedp.Void](s.script))
	}
	if err != nil {
		return nil, err
	}
	if s.height == 0 {
		return chromedp.Run(ctx, chromedp.FullScreenshot(100))
	}
	return chromedp.Run(ctx, chromedp.CaptureScreenshot())
}

// world is a desk with bottles that ask for things.
type world struct {
	dir, url string
	inbox    *queue.Root
	boxes    map[string]*queue.Dir
	desk     *operator.Desk
	server   *web.Server
	listener net.Listener
	proxy    *httptest.Server
	refs     map[string]operator.Ref
	waits    context.CancelFunc
	waiting  errgroup.Group
}

const routesYAML = `# The egress routes of this bottle. Kept by hand; approvals add to it.
routes:
  - host: api.github.com          # issues and releases
    path_allowlist:
      - /repos/acme/
    auth: {scheme: Bearer, token_ref: GH_TOKEN}
  - host: pypi.org
  - host: files.pythonhosted.org
  - host: gomods.acme.test
`

const dockerfile = `FROM debian:12-slim
RUN apt-get update && apt-get install -y --no-install-recommends \
    ca-certificates git python3
USER agent
WORKDIR /work
`

func newWorld(ctx context.Context, dir string) (*world, error) {
	w := &world{dir: dir, boxes: map[string]*queue.Dir{}, refs: map[string]operator.Ref{}}
	w.proxy = httptest.NewServer(http.HandlerFunc(w.allowlist))
	targets := func(slug string) config.Bottle {
		b := config.Bottle{
			Egress:     &config.Egress{File: w.file(slug, "egress/routes.yaml"), AllowlistURL: w.proxy.URL + "/" + slug},
			Capability: &config.Capability{File: w.file(slug, "Dockerfile")},
		}
		return b
	}
	root := filepath.Join(dir, ".queue")
	for _, slug := range []string{"billing", "checkout", "docs", "web"} {
		for name, data := range map[string]string{"egress/routes.yaml": routesYAML, "Dockerfile": dockerfile} {
			if err := os.MkdirAll(filepath.Dir(w.file(slug, name)), 0o755); err != nil {
				return nil, err
			}
			if err := os.WriteFile(w.file(slug, name), []byte(data), 0o644); err != nil {
				return nil, err
			}
		}
		box, err := queue.OpenDir(context.Background(), filepath.Join(root, slug), queue.Options{Slug: slug})
		if err != nil {
			return nil, err
		}
		w.boxes[slug] = box
	}
	var err error
	if w.inbox, err = queue.OpenRoot(root, queue.RootOptions{}); err != nil {
		return nil, err
	}
	hand, err := apply.New(apply.Options{Targets: targets, LockDir: filepath.Join(root, ".desk", "locks"), VerifyTimeout: 300 * time.Millisecond})
	if err != nil {
		return nil, err
	}
	if w.desk, err = operator.New(operator.Options{Root: root, Inbox: w.inbox, Hand: hand, By: "ana@desk", Via: "web"}); err != nil {
		return nil, err
	}
	if err := w.fill(ctx); err != nil {
		return nil, err
	}
	if w.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return nil, err
	}
	w.url = "http://" + w.listener.Addr().String()
	w.server = web.New(web.Options{Desk: w.desk, URL: w.url, Targets: targets, Logger: slog.New(slog.DiscardHandler)})
	return w, nil
}

func (w *world) file(slug, name string) string { return filepath.Join(w.dir, slug, name) }

func (w *world) path(name string) string {
	ref := w.refs[name]
	return "/p/" + ref.Bottle + "/" + string(ref.ID)
}

// allowlist is a proxy that shows the table of each bottle's file.
func (w *world) allowlist(rw http.ResponseWriter, r *http.Request) {
	data, err := os.ReadFile(w.file(strings.Trim(r.URL.Path, "/"), "egress/routes.yaml"))
	if err != nil {
		http.NotFound(rw, r)
		return
	}
	t, err := routes.Parse(data)
	if err != nil {
		http.Error(rw, err.Error(), http.StatusInternalServerError)
		return
	}
	a := apply.Allowlist{SHA256: apply.SHA256(data)}
	for _, route := range t.Routes {
		live := apply.LiveRoute{Host: route.Host, PathAllowlist: route.PathAllowlist, Token: "none"}
		if route.Auth != nil {
			live.Token = "present"
		}
		a.Routes = append(a.Routes, live)
	}
	b, err := safetext.JSON(a)
	if err != nil {
		http.Error(rw, err.Error(), http.StatusInternalServerError)
		return
	}
	_, _ = rw.Write(b)
}

type ask struct {
	name, bottle string
	p            func() (payload.Payload, error)
	why          string
}

func egress(host string, auth *payload.Auth, paths ...string) func() (payload.Payload, error) {
	return func() (payload.Payload, error) {
		return payload.NewEgress(payload.Route{Host: host, PathAllowlist: paths, Auth: auth})
	}
}

func (w *world) fill(ctx context.Context) error {
	asks := []ask{
		{"past", "web", egress("packages.acme.test", nil, "/react", "/vite"), "npm ci is refused with 403 for these two packages."},
		{"past2", "docs", egress("example.com", nil), "I would like to read the example."},
		{"docker", "checkout", func() (payload.Payload, error) {
			return payload.NewCapability(strings.Replace(dockerfile, "ca-certificates git python3", "ca-certificates git jq python3 postgresql-client", 1) + "RUN curl -fsSL https://get.example.dev/install.sh | sh\n")
		}, "psql and jq are missing; the migration test calls both."},
		{"credential", "billing", egress("api.stripe.com", &payload.Auth{Scheme: "Bearer", TokenRef: "STRIPE_TEST_KEY"}, "/v1/invoices", "/v1/customers"),
			"The integration tests create a test invoice. They fail with\n  403 Forbidden: host api.stripe.com is not routed\nso I need these two paths and the test key."},
		{"paths", "web", egress("api.github.com", nil, "/repos/acme/storefront/", "/repos/vitejs/vite/releases"), "Need the release notes of vite to pin the version the changelog asks for."},
		{"widen", "docs", egress("api.github.com", nil), "The link checker follows many links to the API."},
		{"metadata", "checkout", egress("169.254.169.254", nil, "/latest/meta-data/"), "The SDK asks this address for its region."},
		{"plain", "web", egress("fonts.googleapis.com", nil, "/css2"), "The build inlines the stylesheet of the two fonts in use."},
		{"look", "docs", egress("xn--pypi-4na.org", nil), "pip is configured with this index."},
		{"crates", "billing", egress("static.crates.io", nil, "/crates/"), "cargo fetch is refused; index.crates.io works already."},
	}
	wctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	w.waits = cancel
	for i, a := range asks {
		p, err := a.p()
		if err != nil {
			return fmt.Errorf("%s: %w", a.name, err)
		}
		file := p.Encode()
		pr := queue.Proposal{ID: queue.NewID(), Bottle: a.bottle, Tool: p.Tool, ProposedFile: file, Justification: a.why, CurrentFileHash: queue.Hash(file), ArrivedAt: time.Now()}
		if err := w.boxes[a.bottle].Put(ctx, pr); err != nil {
			return err
		}
		ref := operator.Ref{Bottle: a.bottle, ID: pr.ID}
		w.refs[a.name] = ref
		switch {
		case a.name == "past2":
			if _, err := w.desk.Reject(ctx, ref, "not needed for the task: use the fixtures"); err != nil {
				return err
			}
		case strings.HasPrefix(a.name, "past"):
			pre, err := w.desk.Show(ctx, ref, nil)
			if err != nil {
				return err
			}
			if _, err := w.desk.Approve(ctx, ref, operator.Decision{Digest: pre.Digest, Accept: pre.Dangers()}); err != nil {
				return err
			}
		case i%4 != 3:
			w.waiting.Go(func() error {
				_, _ = w.boxes[a.bottle].Wait(wctx, pr.ID) // ends with the world
				return nil
			})
		}
	}
	return nil
}

// everything is each page in each size and colour, for eyes.
func (w *world) everything() []shot {
	var out []shot
	for _, size := range []struct {
		name          string
		width, height int64
	}{{"390", 390, 0}, {"1440", 1440, 0}} {
		for _, dark := range []bool{false, true} {
			name := func(page string) string {
				if dark {
					return fmt.Sprintf("all-%s-%s-dark", page, size.name)
				}
				return fmt.Sprintf("all-%s-%s", page, size.name)
			}
			for page, path := range map[string]string{
				"inbox": "/", "grouped": "/?group=host", "none": "/?q=nothing-like-it", "credential": w.path("credential"), "docker": w.path("docker"), "widen": w.path("widen"),
				"paths": w.path("paths"), "edit": w.path("paths") + "/edit", "past": w.path("past"), "rejected": w.path("past2"), "history": "/history", "ledger": "/ledger", "bottles": "/bottles", "bottle": "/b/web",
				"missing": "/p/web/0197f3b2-6d01-7c3a-9b58-3f6f0a2c4d01",
				"review":  "/review?ref=web/" + string(w.refs["paths"].ID) + "&ref=web/" + string(w.refs["plain"].ID) + "&ref=billing/" + string(w.refs["credential"].ID),
			} {
				out = append(out, shot{name: name(page), path: path, width: size.width, height: size.height, dark: dark})
			}
			out = append(out,
				shot{name: name("danger"), path: w.path("metadata"), width: size.width, height: size.height, dark: dark, script: `document.getElementById("decide").noValidate = true; document.getElementById("approve").click()`},
				shot{name: name("screen"), path: w.path("docker"), width: size.width, height: 844, dark: dark},
			)
		}
	}
	return out
}

func (w *world) close() error {
	w.waits()
	errs := []error{w.waiting.Wait()}
	for _, b := range w.boxes {
		errs = append(errs, b.Close())
	}
	w.proxy.Close()
	return errors.Join(append(errs, w.inbox.Close())...)
}
