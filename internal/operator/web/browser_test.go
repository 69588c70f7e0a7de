package web_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/bot-bottle/supervise/internal/operator"
	"github.com/bot-bottle/supervise/internal/operator/web"
	"github.com/bot-bottle/supervise/internal/operator/web/webtest"
	"github.com/bot-bottle/supervise/internal/payload"
	"github.com/bot-bottle/supervise/queue"
	"github.com/bot-bottle/supervise/server"
	"github.com/bot-bottle/supervise/tools"
)

// chromium is one browser for all tests; each has a profile of its own in it.
var chromium struct {
	once sync.Once
	ctx  context.Context
	stop func()
	err  error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if chromium.stop != nil {
		chromium.stop()
	}
	os.Exit(code)
}

func browser(t *testing.T) context.Context {
	t.Helper()
	webtest.NeedChromium(t)
	chromium.once.Do(func() {
		dir, err := os.MkdirTemp("", "supervise-chromium-")
		if err != nil {
			chromium.err = err
			return
		}
		ctx, stop, err := webtest.StartChromium(dir)
		chromium.stop = func() {
			stop()
			os.RemoveAll(dir)
		}
		chromium.ctx, chromium.err = ctx, err
	})
	if chromium.err != nil {
		t.Fatalf("starting Chromium: %v", chromium.err)
	}
	return chromium.ctx
}

// patience bounds every wait for something that must happen; nothing waits for it to pass.
const patience = 20 * time.Second

// tab is one tab of a browser.
type tab struct {
	t   *testing.T
	ctx context.Context
	url string
}

// newBrowser is a tab in a browser of its own.
func newBrowser(t *testing.T, url string) *tab {
	t.Helper()
	ctx, cancel := chromedp.NewContext(browser(t), chromedp.WithNewBrowserContext())
	t.Cleanup(cancel)
	return start(t, ctx, url)
}

// another is another tab of the same browser.
func (b *tab) another() *tab {
	b.t.Helper()
	ctx, cancel := chromedp.NewContext(b.ctx)
	b.t.Cleanup(cancel)
	return start(b.t, ctx, b.url)
}

func start(t *testing.T, ctx context.Context, url string) *tab {
	t.Helper()
	b := &tab{t, ctx, url}
	if err := chromedp.Do(ctx); err != nil { // without a timeout, which would be the tab's own
		t.Fatalf("opening a tab: %v", err)
	}
	b.do(chromedp.EmulateViewport(1280, 900))
	return b
}

func (b *tab) do(actions ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		b.t.Fatalf("in the browser: %v", err)
	}
}

func call[P, R any](c cdp.Command[P, R], p P) chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, c, p)
		return err
	})
}

func (b *tab) open(path string) { b.t.Helper(); b.do(chromedp.Navigate(b.url + path)) }

func (b *tab) click(css string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	for {
		err := chromedp.Do(ctx, chromedp.Click(chromedp.CSS(css)))
		if err == nil {
			return
		}
		// The page put a newer one in its place between finding it and clicking: a person clicks again.
		if !strings.Contains(err.Error(), "Could not find node") {
			b.t.Fatalf("in the browser: %v", err)
		}
	}
}

func (b *tab) typeInto(css, text string) {
	b.t.Helper()
	b.do(chromedp.SendKeys(chromedp.CSS(css), text))
}

func eval[T any](b *tab, js string) T {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](js, chromedp.EvalAwaitPromise))
	if err != nil {
		b.t.Fatalf("evaluating %.80s: %v", js, err)
	}
	return v
}

// until waits until an expression is true, across navigations.
func (b *tab) until(js string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, err := chromedp.Run(ctx, chromedp.Evaluate[bool]("!!("+js+")"))
		if err == nil && ok {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			text, _ := chromedp.Run(b.ctx, chromedp.Evaluate[string]("location.href + '\\n' + document.body.innerText"))
			b.t.Fatalf("%s never held (%v); the page is\n%s", js, err, text)
		}
	}
}

// shows waits until the page says something.
func (b *tab) shows(text string) {
	b.t.Helper()
	b.until(fmt.Sprintf("document.readyState === 'complete' && document.getElementById('main')?.innerText.includes(%q)", text))
}

func (b *tab) signIn(s *web.Server) *tab {
	b.t.Helper()
	b.open(strings.TrimPrefix(s.Link(), b.url))
	b.until("document.readyState === 'complete' && location.pathname === '/' && document.getElementById('main')")
	return b
}

func (r *rig) browser(t *testing.T) *tab { t.Helper(); return newBrowser(t, r.url).signIn(r.server) }

func TestBrowserSignIn(t *testing.T) {
	r := newRig(t)
	b := r.browser(t)
	b.shows("Nothing waits for you.")
	if href := eval[string](b, "location.href"); href != r.url+"/" {
		t.Errorf("the address is %s", href)
	}
	if c := eval[string](b, "document.cookie"); c != "" {
		t.Errorf("a script can read the cookie %q", c)
	}
	b.do(chromedp.NavigateBack())
	b.until("document.readyState === 'complete'")
	if href := eval[string](b, "location.href"); strings.Contains(href, "token") {
		t.Errorf("going back leads to %s", href)
	}
	b.open("/")
	b.click(".menu summary")
	b.click(`form[action="/out"] button`)
	b.shows("Whoever runs the desk has the link")
	b.open("/history")
	b.shows("Sign in")
}

// A proposal arrives while the page is open, and is approved while a real client waits.
func TestBrowserLoop(t *testing.T) {
	r := newRig(t)
	call := r.agent(t, "web")
	b := r.browser(t)
	b.shows("Nothing waits for you.")
	answer := call(payload.Egress, map[string]any{"host": "packages.acme.test", "path_allowlist": []string{"/react"}, "justification": "npm ci is refused"})
	b.shows("llow packages.acme.test /react")
	b.until("document.title.startsWith('(1) ') && document.getElementById('favicon').href.endsWith('?n=1') && document.getElementById('count').innerText === '1'")
	b.click(".row .what")
	b.shows("npm ci is refused")
	b.typeInto("#notes", "only react")
	b.click("#approve")
	b.shows("Approved by ann@host")
	select {
	case a := <-answer:
		if !strings.HasPrefix(a, "status: approved\nnotes: only react\n") {
			t.Errorf("the agent got %q", a)
		}
	case <-time.After(patience):
		t.Fatal("the agent got no answer")
	}
	b.until("document.title.indexOf('(') !== 0 && document.getElementById('count').hidden")

	b.click("#undo button")
	b.shows("Undone by ann@host")
	if got := r.read("web", "egress/routes.yaml"); got != baseRoutes {
		t.Errorf("after undo routes.yaml is\n%s", got)
	}
}

// agent is a real client of a real sidecar for a bottle of the rig.
func (r *rig) agent(t *testing.T, slug string) func(tool string, args map[string]any) <-chan string {
	t.Helper()
	tl, err := tools.New(tools.Options{Bottle: slug, Mailbox: r.boxes[slug]})
	if err != nil {
		t.Fatal(err)
	}
	srv, err := server.New(server.Options{Register: func(s *mcp.Server) {
		tl.Register(s)
		s.AddReceivingMiddleware(tl.Middleware())
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := srv.Run(ctx); err != nil {
			t.Errorf("the sidecar: %v", err)
		}
	})
	session, err := mcp.NewClient(&mcp.Implementation{Name: "test", Version: "1"}, nil).Connect(ctx, &mcp.StreamableClientTransport{Endpoint: "http://" + srv.Addr().String() + "/"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		session.Close()
		cancel()
		wg.Wait()
	})
	return func(tool string, args map[string]any) <-chan string {
		out := make(chan string, 1)
		wg.Go(func() {
			res, err := session.CallTool(ctx, &mcp.CallToolParams{Name: tool, Arguments: args})
			if err != nil {
				out <- err.Error()
				return
			}
			out <- res.Content[0].(*mcp.TextContent).Text
		})
		return out
	}
}

func TestBrowserEditAndReject(t *testing.T) {
	r := newRig(t)
	b := r.browser(t)
	ref := r.put(withPaths("packages.acme.test"))
	b.open(path(ref))
	b.click("#edit-link")
	b.shows("Edit: ")
	b.do(chromedp.SetValue(chromedp.CSS("#file"), `{"host": "packages.acme.test", "path_allowlist": ["nope"]}`), chromedp.Click(chromedp.CSS("#preview")))
	b.shows("This is not a valid edit")
	b.do(chromedp.SetValue(chromedp.CSS("#file"), "{\n  \"host\": \"packages.acme.test\",\n  \"path_allowlist\": [\"/react\"]\n}\n"), chromedp.Click(chromedp.CSS("#preview")))
	b.shows("This decides on your edit")
	b.click("#approve")
	b.shows("Modified by ann@host")
	if res := r.wait(ref); res.Status != queue.Modified || !strings.Contains(res.FinalFile, `"/react"`) {
		t.Errorf("the agent got %+v", res)
	}

	ref = r.put(withPaths("fonts.googleapis.com"))
	b.open(path(ref))
	b.click(".quick button:nth-of-type(1)")
	b.shows("Rejected by ann@host")
	if res := r.wait(ref); res.Notes != "too broad" {
		t.Errorf("the agent got %+v", res)
	}
	ref = r.put(withPaths("169.254.169.254", "/x"))
	b.open(path(ref))
	b.click("#approve") // the browser itself wants the codes
	if id := eval[string](b, "document.activeElement.id"); id != "accept-metadata" {
		t.Errorf("after Approve without a code the focus is on %q", id)
	}
	b.typeInto("#accept-metadata", "metadata")
	b.typeInto("#accept-ip-literal", "ip-literal")
	b.click("#approve")
	b.shows("Approved by ann@host")
	b.shows("metadata, ip-literal")
}

func TestBrowserStale(t *testing.T) {
	r := newRig(t)
	b := r.browser(t)
	ref := r.put(withPaths("api.github.com", "/users/"))
	b.open(path(ref))
	b.shows("/users/")
	b.typeInto("#notes", "fine")
	r.write("web", "egress/routes.yaml", strings.Replace(baseRoutes, "- /repos/", "- /orgs/", 1))
	b.click("#approve")
	b.shows("This has changed since you saw it, so nothing was done")
	b.shows("What is different now")
	if v := eval[string](b, "document.getElementById('notes').value"); v != "fine" {
		t.Errorf("the note is %q", v)
	}
	b.click("#approve") // the alert has pushed the change itself off the screen
	b.click("#unseen-show")
	b.until("document.getElementById('unseen').hidden")
	b.click("#approve")
	b.shows("Approved by ann@host")
}

// Two browsers and a terminal look at the same proposal: all see the decision at once, and only one can make it.
func TestBrowsersAgree(t *testing.T) {
	r := newRig(t)
	one, two := r.browser(t), r.browser(t)
	inbox := two.another()
	inbox.open("/")
	cli := r.openDesk("bob@host", "cli")
	for round, decide := range []func(ref operator.Ref){
		func(ref operator.Ref) {
			if _, err := cli.Reject(t.Context(), ref, ""); err != nil {
				t.Error(err)
			}
		},
		func(operator.Ref) { one.click("#approve") },
	} {
		ref := r.put(withPaths(fmt.Sprintf("h%d.example.com", round)))
		for _, b := range []*tab{one, two} {
			b.open(path(ref))
			b.until("document.getElementById('approve')")
			b.typeInto("#notes", "I am still typing")
		}
		inbox.shows(fmt.Sprintf("h%d.example.com", round))
		decide(ref)
		start := time.Now()
		two.until("document.getElementById('card').dataset.decided && !document.getElementById('approve')")
		inbox.shows("Nothing waits for you.")
		t.Logf("round %d: all had seen it after %v", round, time.Since(start)) // the design wants 500 ms; a busy machine proves nothing
		two.shows(map[int]string{0: "Rejected by bob@host (cli)", 1: "Approved by ann@host (web)"}[round])
		if got := strings.Count(r.events(ref), "decided"); got != 1 {
			t.Errorf("round %d: ledger has %s", round, r.events(ref))
		}
	}
	// Both press at the same moment.
	ref := r.put(withPaths("both.example.com"))
	for _, b := range []*tab{one, two} {
		b.open(path(ref))
		b.until("document.getElementById('approve')")
	}
	var wg sync.WaitGroup
	for _, b := range []*tab{one, two} {
		wg.Go(func() { eval[chromedp.Void](b, "document.getElementById('approve').click()") })
	}
	wg.Wait()
	for _, b := range []*tab{one, two} {
		b.shows("pproved by ann@host")
	}
	if got, want := r.events(ref), "decided by ann@host via web, applied by ann@host via web"; got != want {
		t.Errorf("ledger has %s, want %s", got, want)
	}
}

// A page that came while another operator's verb was between two of its steps shows how it ended, although neither the inbox nor the
// ledger changes any more.
func TestBrowserSeesTheEnd(t *testing.T) {
	r := newRig(t, "web", "other")
	others := filepath.Join(r.root, ".desk", "other") // saved when the clock was ahead
	future := time.Now().Add(time.Hour)
	if err := errors.Join(os.MkdirAll(others, 0o700), os.Chtimes(others, future, future)); err != nil {
		t.Fatal(err)
	}
	b := r.browser(t)
	at, on := make(chan string), make(chan struct{})
	stop := func(name string) error {
		if name == "record answered" || name == "record undone" {
			at <- name
			<-on
		}
		return nil
	}
	bob := r.openDeskAt("bob@host", "cli", stop)
	run := func(f func() error) <-chan error {
		done := make(chan error, 1)
		go func() { done <- f() }()
		<-at
		return done
	}
	end := func(done <-chan error) {
		t.Helper()
		on <- struct{}{}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	ref := r.put(withPaths("no.example.com"))
	b.open(path(ref))
	done := run(func() error { _, err := bob.Reject(t.Context(), ref, ""); return err })
	b.shows("Being rejected by bob@host (cli)")
	end(done)
	b.shows("Rejected by bob@host (cli)")

	ref = r.put(withPaths("yes.example.com"))
	b.open(path(ref))
	b.click("#approve")
	b.shows("Approved by ann@host")
	done = run(func() error { _, err := bob.Undo(t.Context(), ref, io.Discard); return err })
	second := b.another() // one that came after the ledger's line
	second.open(path(ref))
	second.shows("Approved by ann@host")
	end(done)
	b.shows("Undone by bob@host")
	second.shows("Undone by bob@host")
}

// Tabs of one browser share a stream, since a browser has six connections for a host.
func TestBrowserTabsShareAStream(t *testing.T) {
	r := newRig(t)
	s, u := r.serve(web.Options{Desk: r.desk, MaxStreams: 1})
	tabs := []*tab{newBrowser(t, u).signIn(s)}
	for range 7 {
		b := tabs[0].another()
		b.open("/")
		b.shows("Nothing waits for you.")
		tabs = append(tabs, b)
	}
	r.put(withPaths("a.example.com"))
	for _, b := range tabs {
		b.shows("a.example.com")
	}
	ctx := tabs[0].ctx // the one that has the stream goes away
	if err := chromedp.Do(ctx, chromedp.Navigate("about:blank")); err != nil {
		t.Fatal(err)
	}
	r.put(withPaths("b.example.com"))
	for _, b := range tabs[1:] {
		b.shows("b.example.com")
	}
}

func TestBrowserHostileText(t *testing.T) {
	r := newRig(t)
	b := r.browser(t)
	var dialogs, complaints []string
	var mu sync.Mutex
	if err := chromedp.Listen(b.ctx, func(ev any) {
		if d, ok := ev.(*page.EventJavascriptDialogOpening); ok {
			mu.Lock()
			dialogs = append(dialogs, d.Message)
			mu.Unlock()
		}
	}); err != nil {
		t.Fatal(err)
	}
	b.do(call(page.AddScriptToEvaluateOnNewDocument, page.AddScriptToEvaluateOnNewDocumentParams{
		Source: "window.refused = []; addEventListener('securitypolicyviolation', (e) => refused.push(e.violatedDirective + ' ' + e.blockedURI)); addEventListener('error', (e) => refused.push(String(e.message)))"}))
	ref := r.putRaw("web", payload.Capability, "FROM debian:12\nRUN echo '"+tame+"'\n", tame)
	for _, p := range []string{"/", path(ref), path(ref) + "/edit", "/b/web", "/review?ref=web/" + string(ref.ID)} {
		b.open(p)
		b.until("document.readyState === 'complete' && typeof refused !== 'undefined'")
		complaints = append(complaints, eval[[]string](b, "refused")...)
	}
	b.open("/")
	b.putWhileOpen(r)
	b.open(path(ref))
	b.click("#reject")
	b.shows("Rejected by ann@host")
	b.open("/history")
	b.shows("ejected")
	complaints = append(complaints, eval[[]string](b, "refused")...)
	mu.Lock()
	defer mu.Unlock()
	if len(dialogs) > 0 || len(complaints) > 0 {
		t.Errorf("dialogs %q, refusals and errors %q; want none", dialogs, complaints)
	}
}

// putWhileOpen lets hostile text arrive through the stream.
func (b *tab) putWhileOpen(r *rig) {
	b.t.Helper()
	ref := r.putRaw("web", payload.Capability, "FROM debian:12\nRUN true '"+tame+"'\n", tame)
	b.until(fmt.Sprintf("document.querySelector('[data-key=%q]')", ref.ID))
}

func TestBrowserWithoutScript(t *testing.T) {
	r := newRig(t)
	b := newBrowser(t, r.url)
	b.do(call(emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true}))
	b.open(strings.TrimPrefix(r.server.Link(), r.url))
	b.click("#signin button")
	b.do(chromedp.WaitVisible(chromedp.CSS(".empty")))
	ref := r.put(withPaths("a.example.com"))
	b.open("/")
	b.click(".row .what")
	b.do(chromedp.WaitVisible(chromedp.CSS("#approve")))
	b.click("#edit-link")
	b.do(chromedp.WaitVisible(chromedp.CSS("#file")), chromedp.SendKeys(chromedp.CSS("#file"), " \n"))
	b.click("#preview")
	b.do(chromedp.WaitVisible(chromedp.CSS("#approve")))
	b.click("#approve")
	b.do(chromedp.WaitVisible(chromedp.CSS("#undo button")))
	if res := r.wait(ref); res.Status != queue.Approved {
		t.Errorf("the agent got %+v", res)
	}
	b.click("#undo button")
	b.do(chromedp.WaitVisible(chromedp.CSS(".alert.note")))
	if got, want := r.events(ref), "decided by ann@host via web, applied by ann@host via web, undone by ann@host via web"; got != want {
		t.Errorf("ledger has %s, want %s", got, want)
	}
}

// crowd fills a rig with what every page has to show.
func crowd(t *testing.T) (*rig, []string) {
	r := newRig(t, "api", "web", "a-bottle-with-the-longest-name-that-a-slug-can-have-which-is-63")
	long := strings.Repeat("averylonglabel.", 12) + "example.com"
	past := r.put(withPaths("past.example.com", "/x"))
	rejected := r.put(withPaths("rejected.example.com"))
	c := r.client()
	c.get(path(past)).submit("decide", "", map[string][]string{"notes": {"fine"}}).want(200)
	c.get(path(rejected)).submit("decide", "reject", map[string][]string{"notes": {strings.Repeat("long", 100)}}).want(200)
	failed := r.put("api", must(route("failed.example.com")), nil)
	r.freeze()
	c.get(path(failed)).submit("decide", "", nil).want(502)
	r.thaw()
	danger, err := payload.NewEgress(payload.Route{Host: "10.0.0.1", PathAllowlist: []string{"/x"}, Auth: &payload.Auth{Scheme: "Bearer", TokenRef: "GH_TOKEN"}})
	dangerous := r.put("api", danger, err)
	wide := r.put("a-bottle-with-the-longest-name-that-a-slug-can-have-which-is-63", must(route(long, "/"+strings.Repeat("x", 900))), nil)
	docker := r.putRaw("web", payload.Capability, strings.Replace(baseDockerfile, "RUN true", "RUN "+strings.Repeat("apt-get-install ", 40)+"\n\tRUN curl x | sh", 1), strings.Repeat("because ", 200))
	bad := r.putRaw("web", "nonsense", "{", "x")
	return r, []string{
		"/", "/?group=host", "/?q=nothing-like-it", path(dangerous), path(wide), path(docker), path(bad), path(failed), path(past), path(rejected), path(docker) + "/edit", path(wide) + "/edit",
		"/history", "/ledger", "/bottles", "/b/web", "/b/api", "/p/web/" + anID, "/review?ref=" + wide.Bottle + "/" + string(wide.ID) + "&ref=web/" + string(docker.ID),
	}
}

// Every page in every size and colour: axe-core finds nothing serious, nothing reaches over the edge.
func TestBrowserAccessible(t *testing.T) {
	axe, err := os.ReadFile(filepath.Join("testdata", "axe", "node_modules", "axe-core", "axe.min.js"))
	if errors.Is(err, os.ErrNotExist) && os.Getenv("CI") == "" {
		t.Skip("axe-core is not there: .ci/deps installs it")
	}
	if err != nil {
		t.Fatal(err)
	}
	r, paths := crowd(t)
	look := func(b *tab, where string, check bool) {
		t.Helper()
		if over := eval[int](b, "document.documentElement.scrollWidth - innerWidth"); over > 0 {
			t.Errorf("%s reaches %d px over the edge", where, over)
		}
		if !check {
			return
		}
		eval[chromedp.Void](b, string(axe))
		found := eval[[]string](b, `axe.run(document, {resultTypes: ["violations"]}).then((r) => r.violations.map((v) => v.impact + " " + v.id + ": " + v.help + " " + v.nodes.map((n) => n.html.slice(0, 160)).slice(0, 3).join(" | ")))`)
		for _, v := range found {
			if !strings.HasPrefix(v, "minor ") {
				t.Errorf("%s: %s", where, v)
			}
		}
	}
	b, stranger := r.browser(t), newBrowser(t, r.url)
	for _, width := range []int64{390, 1440} {
		for _, scheme := range []string{"light", "dark"} {
			check := width == 390 == (scheme == "dark") // each size and each colour once: it takes its time
			where := func(page string) string { return fmt.Sprintf("%s at %d px, %s", page, width, scheme) }
			for _, b := range []*tab{b, stranger} {
				b.do(chromedp.EmulateViewport(width, 844), colours(scheme))
			}
			for _, p := range paths {
				b.open(p)
				look(b, where(p), check)
			}
			b.open("/")
			b.click(".menu summary")
			b.click(`form[action="/link"] button`)
			b.shows("Sign in another browser")
			look(b, where("the link for another browser"), check)
			stranger.open("/")
			stranger.shows("Whoever runs the desk has the link")
			look(stranger, where("the sign-in page"), check)
			stranger.open("/in?token=wrong")
			look(stranger, where("a wrong link"), check)
		}
	}
}

func colours(scheme string) chromedp.Action[chromedp.Void] {
	return call(emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
}

func TestBrowserColours(t *testing.T) {
	r := newRig(t)
	b := r.browser(t)
	light := func() int {
		b.t.Helper()
		return eval[int](b, "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number).reduce((a, b) => a + b)")
	}
	b.do(colours("light"))
	if got := light(); got < 600 {
		t.Errorf("by day the page has brightness %d of 765", got)
	}
	b.do(colours("dark"))
	if got := light(); got > 150 {
		t.Errorf("by night the page has brightness %d of 765", got)
	}
}

// What is decided on stands in the order in which it is stored, whatever letters are in it.
func TestBrowserRightToLeft(t *testing.T) {
	r := newRig(t)
	b := r.browser(t)
	ref := r.putRaw("web", payload.Egress, `{"host":"a.example.com","path_allowlist":["/א/1/ב"]}`, "why")
	for _, place := range []string{"h1", ".diff .new .t", ".raw pre .t"} {
		b.open(path(ref))
		eval[chromedp.Void](b, "document.querySelector('details.raw').open = true")
		got := eval[string](b, fmt.Sprintf(`(() => {
			for (const e of document.querySelectorAll(%q)) {
				const n = e.firstChild, at = (c) => { const r = document.createRange(), i = n.data.indexOf(c); r.setStart(n, i); r.setEnd(n, i + 1); return r.getBoundingClientRect().left };
				if (n && n.data && n.data.includes("א")) return at("א") < at("1") && at("1") < at("ב") ? "stored" : "moved";
			}
			return "not there";
		})()`, place))
		if got != "stored" {
			t.Errorf("%s shows the path's letters %s, want the order in which they are stored", place, got)
		}
	}
}

// A line that does not fit is marked where it goes on, whatever is in it, so that the rest cannot pass for a line of its own.
func TestBrowserMarksWhatIsContinued(t *testing.T) {
	r := newRig(t)
	b := r.browser(t)
	long := "# " + strings.Repeat(strings.Repeat(" ", 39)+".", 8) + "USER 1000"
	ref := r.putRaw("web", payload.Capability, "FROM debian:12\n"+long+"\nUSER root\n", "short\n\n"+long)
	for _, width := range []int{1600, 1280, 390} {
		b.do(chromedp.EmulateViewport(int64(width), 900))
		b.open(path(ref))
		eval[chromedp.Void](b, "document.querySelector('details.raw').open = true")
		for _, place := range []string{".diff .new .t", ".says .t", ".raw pre .t"} {
			got := eval[[]string](b, fmt.Sprintf(`[...document.querySelectorAll(%q)].map((e) => {
				const lines = Math.round(e.getBoundingClientRect().height / parseFloat(getComputedStyle(e).lineHeight)), mark = getComputedStyle(e, "::after");
				return (lines > 1 ? "several" : "one") + (mark.content === '"↳"' && parseFloat(mark.height) > 1 ? " marked" : "");
			})`, place))
			if want := "several marked"; !slices.Contains(got, want) {
				t.Errorf("at %d, the long line of %s is not marked where it goes on: %q", width, place, got)
			}
			for _, line := range got {
				if line != "one" && line != "several marked" {
					t.Errorf("at %d, %s has lines %q", width, place, got)
				}
			}
		}
	}
}

// Bottles whose names differ at the end only are told apart in the inbox, however little room there is.
func TestBrowserLongNamesStayApart(t *testing.T) {
	name := strings.Repeat("frontend-nightly-", 3) + "regress-"
	r := newRig(t, name+"1", name+"2", "web")
	b := r.browser(t)
	for _, slug := range []string{name + "1", name + "2", "web"} {
		r.put(slug, must(route("a.example.com", "/x")), nil)
	}
	for _, width := range []int64{1600, 1000, 390} {
		b.do(chromedp.EmulateViewport(width, 900))
		b.open("/")
		b.until("document.querySelectorAll('.row .bottle').length === 3")
		got := eval[[]string](b, `[...document.querySelectorAll(".row .bottle")].map((e) => {
			const end = e.lastElementChild, box = e.getBoundingClientRect(), r = end.getBoundingClientRect();
			return (end.scrollWidth <= end.clientWidth + 1 && r.right <= box.right + 1 && r.width > 0 ? "whole end " : "cut end ") + end.textContent;
		})`)
		if want := []string{"whole end egress-1", "whole end egress-2", "whole end web"}; !slices.Equal(got, want) {
			t.Errorf("at %d the names end in %q, want %q", width, got, want)
		}
	}
}

// On a phone the buttons that decide are always within reach, and do not cover what is to be typed.
func TestBrowserPhone(t *testing.T) {
	r := newRig(t)
	b := r.browser(t)
	b.do(chromedp.EmulateViewport(390, 844, chromedp.EmulateTouch, chromedp.EmulateMobile))
	ref := r.putRaw("web", payload.Capability, "FROM debian:12\n"+strings.Repeat("RUN true\n", 200)+"USER root\n", "why")
	b.open(path(ref))
	visible := "(() => { const r = document.getElementById(%q).getBoundingClientRect(); return r.top >= 0 && r.bottom <= innerHeight && r.height >= 44 && r.width >= 44 && document.elementFromPoint(r.x + r.width / 2, r.y + r.height / 2).id === %q })()"
	for _, scroll := range []string{"0", "document.body.scrollHeight / 2", "document.body.scrollHeight"} {
		eval[chromedp.Void](b, "scrollTo(0, "+scroll+")")
		for _, id := range []string{"approve", "reject", "edit-link"} {
			if !eval[bool](b, fmt.Sprintf(visible, id, id)) {
				t.Errorf("scrolled to %s, %s is out of reach", scroll, id)
			}
		}
	}
	b.do(chromedp.Tap(chromedp.CSS("#approve")))
	if !eval[bool](b, "(() => { const i = document.activeElement; const r = i.getBoundingClientRect(); return i.id === 'accept-user-root' && document.elementFromPoint(r.x + 5, r.y + 5) === i })()") {
		t.Error("the code to type is hidden behind something")
	}
	b.typeInto("#accept-user-root", "user-root")
	b.do(chromedp.Tap(chromedp.CSS("#approve")))
	b.shows("have not been on the screen")
	b.do(chromedp.Tap(chromedp.CSS("#unseen-approve")))
	b.shows("Approved by ann@host")
}

// Approving what has not been on the screen is asked about, as in the terminal, and a second press of the same button is no answer.
func TestBrowserAsksAboutWhatWasNotSeen(t *testing.T) {
	r := newRig(t)
	b := r.browser(t)
	long := func(word string) string {
		return "FROM debian:12\n" + strings.Repeat("RUN echo "+word+"\n", 150) + "USER app\n"
	}
	one, two := r.putRaw("web", payload.Capability, long("one"), "why"), r.putRaw("web", payload.Capability, long("two"), "why")
	hidden := "document.getElementById('unseen').hidden"

	b.open(path(one))
	b.until("[...document.querySelectorAll('.block:not(.same) .l')].length >= 150 && " + hidden)
	b.click("#approve")
	b.until("!" + hidden + " && document.activeElement.id === 'unseen-show'")
	b.shows("changed lines have not been on the screen")
	b.click("#approve")
	for n := eval[string](b, "document.getElementById('unseen-text').textContent"); !eval[bool](b, hidden); {
		b.click("#unseen-show")
		b.until(fmt.Sprintf("%s || document.getElementById('unseen-text').textContent !== %q", hidden, n))
		n = eval[string](b, "document.getElementById('unseen-text').textContent")
	}
	if got := r.events(one); got != "" {
		t.Errorf("it is decided before all has been seen: %s", got)
	}
	b.click("#approve")
	b.shows("Approved by ann@host")

	b.open(path(two))
	b.click("#approve")
	b.until("!" + hidden)
	b.click("#unseen-approve")
	b.shows("Approved by ann@host")

	// Reviewing several is no different.
	r.putRaw("web", payload.Capability, long("three"), "why")
	r.put(withPaths("a.example.com"))
	b.open("/")
	b.until("document.querySelectorAll('.row').length === 2")
	eval[chromedp.Void](b, "document.querySelectorAll('.row input').forEach((c) => { c.checked = true })")
	b.click("#several button")
	b.until("document.getElementById('reviewed')")
	eval[chromedp.Void](b, "document.getElementById('approve').click()") // without scrolling to it
	b.until("!" + hidden)
	b.click("#unseen-approve")
	b.shows("What was approved")
}

func TestBrowserKeys(t *testing.T) {
	r := newRig(t)
	b := r.browser(t)
	first := r.put(withPaths("a.example.com"))
	b.until("document.querySelectorAll('.row').length === 1")
	second := r.put(withPaths("b.example.com")) // the order is that of being seen
	b.until("document.querySelectorAll('.row').length === 2")
	b.do(chromedp.KeyEvent("j"), chromedp.KeyEvent("j"), chromedp.KeyEvent("x"), chromedp.KeyEvent("k"))
	if !eval[bool](b, fmt.Sprintf("document.activeElement.pathname === %q && document.querySelector('input[value=\"web/%s\"]').checked", path(first), second.ID)) {
		t.Error("j, j, x, k did not mark the second and lead back to the first")
	}
	r.put(withPaths("c.example.com")) // the page takes it over, and marks and focus stay
	b.until("document.querySelectorAll('.row').length === 3")
	if !eval[bool](b, fmt.Sprintf("document.activeElement.pathname === %q && document.querySelector('input[value=\"web/%s\"]').checked", path(first), second.ID)) {
		t.Error("an arrival moved the focus or took the mark away")
	}
	b.do(chromedp.KeyEvent("\r"))
	b.until("document.readyState === 'complete' && document.getElementById('approve')")
	b.do(chromedp.KeyEvent("r"))
	b.until("document.activeElement.id === 'notes'")
	b.typeInto("#notes", "a job, reviewed") // letters are letters here
	b.do(chromedp.KeyEvent("\t"), chromedp.KeyEvent("a"))
	if id := eval[string](b, "document.activeElement.id"); id != "approve" {
		t.Errorf("after a the focus is on %q", id)
	}
	if got := r.events(first); got != "" {
		t.Errorf("a key alone decided: %s", got)
	}
	b.do(chromedp.KeyEvent("\r"))
	b.shows("Approved by ann@host")
	b.do(chromedp.KeyEvent("?"))
	b.until("document.getElementById('help').open")
	b.do(chromedp.KeyEvent("\r"), chromedp.KeyEvent("j"))
	b.until(fmt.Sprintf("location.pathname === %q", path(second)))
}

func TestBrowserNotifies(t *testing.T) {
	r := newRig(t)
	b := r.browser(t)
	b.do(call(page.AddScriptToEvaluateOnNewDocument, page.AddScriptToEvaluateOnNewDocumentParams{
		Source: "window.said = []; window.Notification = class { static permission = 'granted'; static requestPermission() { return Promise.resolve('granted') } constructor(title, o) { said.push(title + ': ' + o.body) } }"}))
	r.put(withPaths("before.example.com"))
	b.open("/")
	b.click(".menu summary")
	b.click("#notify")
	b.until("document.getElementById('notify').innerText === 'Do not notify me'")
	r.put(withPaths("a.example.com", "/x"))
	b.until("said.length > 0")
	if got, want := eval[[]string](b, "said"), []string{"web asks: allow a.example.com /x"}; !slices.Equal(got, want) {
		t.Errorf("notifications: %q, want %q", got, want)
	}
	b.click("#notify")
	r.put(withPaths("b.example.com"))
	b.shows("b.example.com")
	if n := eval[int](b, "said.length"); n != 1 {
		t.Errorf("%d notifications after they were turned off", n)
	}
}

// The desk goes away and comes back.
func TestBrowserDeskGone(t *testing.T) {
	r := newRig(t)
	b := r.browser(t)
	b.shows("Nothing waits for you.")
	r.put(withPaths("a.example.com"))
	b.shows("a.example.com")
	second := r.client() // its session ends every other stream's by signing out of its own only
	second.post("/out", nil)
	r.put(withPaths("b.example.com"))
	b.shows("b.example.com")
	other := b.another()
	other.open("/")
	other.click(".menu summary")
	other.click(`form[action="/out"] button`)
	b.until("!document.getElementById('offline').hidden && document.getElementById('offline').innerText.startsWith('You are signed out.')")
}
