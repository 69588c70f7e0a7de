package web_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/html"

	"github.com/bot-bottle/supervise/internal/apply"
	"github.com/bot-bottle/supervise/internal/operator"
	"github.com/bot-bottle/supervise/internal/operator/web"
	"github.com/bot-bottle/supervise/internal/payload"
	"github.com/bot-bottle/supervise/internal/safetext"
	"github.com/bot-bottle/supervise/queue"
)

func TestInbox(t *testing.T) {
	r := newRig(t, "api", "web")
	c := r.client()
	c.get("/").want(200, "Nothing waits for you.", "2 bottles have mailboxes")
	r.put("api", must(route("b.example.com")), nil)
	r.put("web", must(route("a.example.com", "/x")), nil)
	r.put("web", must(route("10.0.0.1", "/x")), nil)
	c.get("/").want(200, "3 open", "allow b.example.com (whole host)", "danger ip-literal", "(3) Inbox")
	c.get("/?bottle=api").want(200, "1 match", "b.example.com").wantNot("a.example.com")
	c.get("/?q=EXAMPLE.com+%2Fx").want(200, "1 match", "a.example.com").wantNot("b.example.com")
	c.get("/?q=nothing").want(200, "Nothing matches.")
	c.get("/?q=97").want(200, "Nothing matches.") // as every id has
	if n := attr(c.get("/").want(200, "1 with danger").find(func(n *html.Node) bool { return attr(n, "class") == "dangers" }), "href"); n != "/?q=danger" {
		t.Errorf("the count of dangers leads to %q", n)
	}
	for _, q := range []string{"danger", "ip-literal", "DANGER+10.0"} {
		c.get("/?q="+q).want(200, "1 match", "1 with danger", "10.0.0.1").wantNot("a.example.com")
	}
	text := c.get("/?group=host").want(200).text()
	if a, b := strings.Index(text, "allow a.example.com"), strings.Index(text, "allow b.example.com"); a > b {
		t.Errorf("by host, b comes before a:\n%s", text)
	}
	c.get("/?page=99&group=wrong").want(200, "3 open")
	c.get("/bottles").want(200, "api", "web")
}

func must(p payload.Payload, err error) payload.Payload {
	if err != nil {
		panic(err)
	}
	return p
}

// TestManySpaces: what stands behind them is not pushed to where it looks like a line of its own.
func TestManySpaces(t *testing.T) {
	r := newRig(t)
	c := r.client()
	many, tabs := strings.Repeat(" ", 300), strings.Repeat("\t", 80)
	ref := r.putRaw("web", payload.Capability, "FROM debian:12\n# comment"+many+"USER 1000\nRUN a"+tabs+"b\n\tc\nUSER agent\n", "please"+many+"APPROVED")
	page := c.get(path(ref)).want(200, "# comment␠×300␠USER 1000", "RUN a␠×", "please␠×300␠APPROVED")
	for n := range page.doc.Descendants() {
		if n.Type == html.TextNode && (strings.Contains(n.Data, many) || strings.Contains(n.Data, tabs)) {
			t.Errorf("the page shows %q in <%s>", n.Data, n.Parent.Data)
		}
	}
	if n := page.find(func(n *html.Node) bool { return n.FirstChild != nil && n.FirstChild.Data == "\tc" }); n == nil {
		t.Error("the page does not show a tab as it is")
	}
	c.get("/review?ref=web/"+string(ref.ID)).want(200, "please␠×")
	edited := c.post(path(ref)+"/edit", url.Values{"file": {"FROM debian:12\nRUN x" + many + "y\n"}})
	edited.want(200, "RUN x␠×300␠y")
}

func TestPagesOfTheInbox(t *testing.T) {
	c, _ := signedInto(t, fake{items: many(95)})
	page := c.get("/").want(200, "95 open", "Page 1 of 4", "host-0.example", "host-24.example").wantNot("host-25.example", "Earlier")
	next := page.find(func(n *html.Node) bool { return attr(n, "rel") == "next" })
	c.get(attr(next, "href")).want(200, "Page 2 of 4", "host-25.example").wantNot("host-24.example")
	c.get("/?q=waiting").want(200, "95 match")
	c.get("/?page=4&q=example").want(200, "host-94.example", "Earlier").wantNot("Later")
}

// many are open proposals, the oldest first.
func many(n int) []operator.Item {
	var out []operator.Item
	for i := range n {
		host := fmt.Sprintf("host-%d.example", i)
		out = append(out, operator.Item{
			Ref: operator.Ref{Bottle: fmt.Sprintf("bottle-%d", i%40), ID: queue.NewID()}, Tool: payload.Egress, Summary: safetext.Untrusted("allow " + host + " /v1/things /v1/others"),
			Host: safetext.Untrusted(host), ArrivedAt: time.Now(), Age: time.Duration(n-i) * time.Minute, Connected: operator.Waiting, State: operator.Open,
			Findings: []operator.Finding{{Code: "new-host", Level: operator.Note, Text: "The bottle cannot reach this host yet.", Evidence: safetext.Untrusted(host)}},
		})
	}
	return out
}

// fake is a desk that says what it is told to.
type fake struct {
	idle
	items    []operator.Item
	problems []operator.Problem
	snapErr  error
	preview  *operator.Preview
	showErr  error
	err      error // of every verb
	history  []operator.LedgerEntry
	histErr  error
	audit    *operator.AuditReport
	changes  chan struct{}
	looks    *atomic.Int64
}

func (f fake) Snapshot(context.Context) (*operator.Snapshot, error) {
	if f.looks != nil {
		f.looks.Add(1)
	}
	if f.snapErr != nil {
		return nil, f.snapErr
	}
	s := &operator.Snapshot{Items: f.items, Problems: f.problems}
	for i := range 40 {
		s.Bottles = append(s.Bottles, fmt.Sprintf("bottle-%d", i))
	}
	return s, nil
}

func (f fake) Show(_ context.Context, ref operator.Ref, _ *string) (*operator.Preview, error) {
	if f.showErr != nil {
		return nil, f.showErr
	}
	p := *f.preview
	p.Ref = ref
	return &p, nil
}

func (f fake) Approve(context.Context, operator.Ref, operator.Decision) (*operator.Result, error) {
	return nil, f.err
}

func (f fake) Reject(context.Context, operator.Ref, string) (*operator.Result, error) {
	return nil, f.err
}

func (f fake) Dismiss(context.Context, ...operator.Ref) ([]*operator.Result, error) {
	return nil, f.err
}

func (f fake) Undo(context.Context, operator.Ref, io.Writer) (*operator.Result, error) {
	return nil, f.err
}

func (f fake) History(_ context.Context, filter operator.HistoryFilter) iter.Seq2[operator.LedgerEntry, error] {
	return func(yield func(operator.LedgerEntry, error) bool) {
		for i, e := range f.history {
			if filter.Limit > 0 && i >= filter.Limit || !yield(e, nil) {
				return
			}
		}
		if f.histErr != nil {
			yield(operator.LedgerEntry{}, f.histErr)
		}
	}
}

func (f fake) Trail(context.Context) (operator.Trail, error) {
	if len(f.history) == 0 {
		return operator.Trail{}, f.histErr
	}
	return operator.Trail{Seq: f.history[0].Seq}, f.histErr
}

func (f fake) Audit(context.Context, string) (*operator.AuditReport, error) { return f.audit, f.err }

func (f fake) Changes(ctx context.Context) (<-chan struct{}, error) {
	if f.changes == nil {
		return f.idle.Changes(ctx)
	}
	return f.changes, nil
}

func signedInto(t testing.TB, d web.Desk) (*client, *web.Server) {
	t.Helper()
	s, u := serve(t, web.Options{Desk: d})
	return signedIn(t, s, u), s
}

const anID = "0197f3b2-6d01-7c3a-9b58-3f6f0a2c4d01"

func somePreview() *operator.Preview {
	p := &operator.Preview{Item: many(1)[0], Justification: "because", Proposed: "{}", Digest: "d1"}
	p.Targets = []operator.TargetView{{Kind: apply.KindEgress, Path: "/x/routes.yaml", Changed: true, Before: "a", After: "b", Diff: "--- a\n+++ b\n@@ -1 +1 @@\n-a\n+b\n"}}
	return p
}

func TestErrors(t *testing.T) {
	ref := operator.Ref{Bottle: "web", ID: anID}
	for _, tt := range []struct {
		name string
		err  error
		want int
		text string
	}{
		{"not put back", fmt.Errorf("applying: %w", &apply.Failure{Step: "verify", Kind: apply.KindEgress, Path: "/x", Err: errors.New("gone\x1b[31m"), Left: []string{"/x: is 1, was 2"}}), 502, "not all of it could be put back"},
		{"undo that changed nothing", fmt.Errorf("undoing: %w", &apply.Failure{Undo: true, Step: "write", Path: "/x", Err: errors.New("disk full\x1b")}), 502, "Nothing was taken back"},
		{"undo of what was edited", fmt.Errorf("undoing: %w", &apply.Failure{Undo: true, Step: "check", Path: "/x", Err: errors.New("edited"), Left: []string{"/x: is 1\u202e"}}), 502, "Take it out by hand:"},
		{"undo that is not seen", fmt.Errorf("undoing: %w", &apply.Failure{Undo: true, Step: "verify", Path: "/x", Err: errors.New("deaf"), Restored: []string{"/x"}}), 502, "Taken back, but not seen in force"},
		{"gone", fmt.Errorf("%w: x", operator.ErrNotFound), 404, "There is no such proposal"},
		{"no bottle", queue.ErrNoBottle, 500, "no such bottle"},
		{"late", queue.ErrLate, 409, "Already decided"},
		{"foreign", &operator.DecidedError{Ref: ref, Status: queue.Rejected}, 409, "Already rejected by another program"},
		{"ending", context.Canceled, 503, "The desk is ending"},
		{"disk full", errors.New("no space left on device\u202e"), 500, `no space left on device\u202e`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, _ := signedInto(t, fake{items: many(1), preview: somePreview(), err: tt.err})
			for _, verb := range []string{"approve", "reject"} {
				g := c.post("/p/web/"+anID+"/"+verb, nil).want(tt.want, tt.text)
				if strings.ContainsAny(g.raw, "\x1b\u202e") {
					t.Error("it is shown raw")
				}
			}
			c.post("/dismiss", map[string][]string{"ref": {"web/" + anID}}).want(tt.want, tt.text)
		})
	}
	t.Run("nothing can be shown", func(t *testing.T) {
		c, _ := signedInto(t, fake{showErr: errors.New("input/output error"), err: &operator.DecidedError{Ref: ref, Status: queue.Rejected, By: "bob"}})
		c.get("/p/web/"+anID).want(500, "input/output error")
		c.get("/p/web/"+anID+"/edit").want(500, "input/output error")
		c.post("/p/web/"+anID+"/reject", nil).want(409, "Already rejected by bob")
	})
	t.Run("mailboxes out of reach", func(t *testing.T) {
		c := newClientOf(t, fake{snapErr: errors.New("listing /mnt/x: stale file handle"), preview: somePreview()})
		c.get("/").want(503, "The mailboxes cannot be read", "stale file handle")
		c.get("/bottles").want(500, "stale file handle")
		c.get("/history").want(200, "Nothing was decided yet")
		c.get("/p/web/"+anID).want(200, "Approve") // what is still there works
		if _, status := stream(t, c); status != 503 {
			t.Errorf("its stream: %d", status)
		}
	})
	t.Run("broken ledger", func(t *testing.T) {
		f := fake{history: []operator.LedgerEntry{{Seq: 2, Event: operator.EventDecided, Status: queue.Approved, By: "ann", Bottle: "web", ID: anID, Summary: "allow a"}}, histErr: errors.New("a line does not parse"), audit: &operator.AuditReport{Entries: 1, Head: "abc", Problem: "line 2 was edited"}}
		c, _ := signedInto(t, f)
		c.get("/history").want(200, "The ledger cannot be read to its end", "a line does not parse", "allow a")
		c.get("/ledger").want(200, "The chain is broken", "line 2 was edited", "1 lines before are proven")
	})
	t.Run("no page", func(t *testing.T) {
		c, _ := signedInto(t, fake{preview: somePreview()})
		for _, path := range []string{"/x", "/p/web", "/p/web/x", "/p/../x", "/p/WEB/" + anID, "/p/web/../../etc/passwd", "/b/nope", "/b/%2e%2e", "/assets/../web.go", "/assets/layout.html"} {
			c.get(path).want(404)
		}
		if g := c.get("/p/web/" + anID + "/approve").want(200); g.path != "/p/web/"+anID {
			t.Errorf("a verb by GET leads to %s", g.path)
		}
	})
}

// newClientOf signs in where the inbox cannot be shown.
func newClientOf(t testing.TB, d web.Desk) *client {
	t.Helper()
	s, u := serve(t, web.Options{Desk: d})
	c := newClient(t, u)
	c.get(strings.TrimPrefix(s.Link(), u)).submit("signin", "", nil).want(503)
	return c
}

// hostile is what an agent may put into everything it writes.
const hostile = "</textarea></title><script>alert(1)</script><img src=x onerror=alert(2)>\" autofocus onfocus='alert(3)' {{.}} \x1b]52;c;aGk=\x07 \u202etxt.exe \u200b javascript:alert(4)\r\n-->]]>\x00"

// tame is what of it a Dockerfile may hold.
var tame = strings.NewReplacer("\x1b", "", "\x07", "", "\x00", "").Replace(hostile)

func TestHostileText(t *testing.T) {
	r := newRig(t)
	c := r.client()
	refs := []operator.Ref{
		r.putRaw("web", payload.Capability, "FROM debian:12\nRUN echo '"+tame+"'\n", tame),
		r.putRaw("web", hostile[:40], hostile, hostile),
		r.putRaw("web", payload.Egress, `{"host": "a.example.com", "path_allowlist": ["/</script><script>alert(1)</script>", "/\u202e"]}`, tame),
	}
	if err := os.WriteFile(filepath.Join(r.root, "web", "<img src=x onerror=alert(5)>\u202e.proposal.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.write("web", "egress/routes.yaml", baseRoutes+"  - host: \"b.example.com\"\n    path_allowlist: [\"/<script>alert(6)</script>\"]\n")
	paths := []string{"/", "/?group=host", "/?q=%3Cscript%3Ealert(7)%3C/script%3E%E2%80%AE", "/b/web", "/bottles", "/history?q=%3Cscript%3E&since=%22%3E%3Cscript%3E", "/ledger?head=%22%3E%3Cscript%3E", "/?dismissed=%3Cscript%3E"}
	for _, ref := range refs {
		paths = append(paths, path(ref), path(ref)+"/edit", "/review?ref="+ref.Bottle+"/"+string(ref.ID))
	}
	check := func(where string) {
		t.Helper()
		for _, p := range paths {
			g := c.get(p)
			if g.status != 200 {
				t.Errorf("%s: %s answers %d:\n%s", where, p, g.status, g.text())
			}
			checkTame(t, where+": "+p, g)
		}
	}
	check("open")
	for i, ref := range refs {
		note := map[string][]string{"notes": {tame}}
		verb := "reject"
		if i == 2 {
			verb = "" // approve
		}
		checkTame(t, "deciding", c.get(path(ref)).submit("decide", verb, note))
	}
	check("decided")
}

// checkTame looks for anything that text has made out of itself.
func checkTame(t *testing.T, where string, g *got) {
	t.Helper()
	if i := strings.IndexAny(g.raw, "\x00\x07\x1b\u202e\u200b\uFFFD"); i >= 0 {
		t.Errorf("%s: %q is on it raw", where, g.raw[max(0, i-40):i+8])
	}
	for n := range g.doc.Descendants() {
		if n.Type != html.ElementNode {
			continue
		}
		switch n.Data {
		case "script":
			if src := attr(n, "src"); !strings.HasPrefix(src, "/assets/app.js?v=") || n.FirstChild != nil {
				t.Errorf("%s: a script from %q", where, src)
			}
		case "img", "iframe", "object", "embed", "style", "base", "svg":
			t.Errorf("%s: an element %s", where, n.Data)
		}
		for _, a := range n.Attr {
			if strings.HasPrefix(a.Key, "on") || a.Key == "style" {
				t.Errorf("%s: an attribute %s=%q of %s", where, a.Key, a.Val, n.Data)
			}
			if (a.Key == "href" || a.Key == "src" || a.Key == "action" || a.Key == "formaction") && !strings.HasPrefix(a.Val, "/") && !strings.HasPrefix(a.Val, "#") {
				t.Errorf("%s: %s leads to %q", where, n.Data, a.Val)
			}
		}
	}
}

func TestHistory(t *testing.T) {
	r := newRig(t, "api", "web")
	c := r.client()
	c.get("/history").want(200, "Nothing was decided yet.")
	a, b := r.put("api", must(route("a.example.com")), nil), r.put(withPaths("b.example.com"))
	c.get(path(a)).submit("decide", "reject", map[string][]string{"notes": {"use the mirror"}})
	c.get(path(b)).submit("decide", "", nil)
	c.get("/history").want(200, "rejected", "use the mirror", "approved", "applied: live", "ann@host")
	c.get("/history?q=mirror").want(200, "a.example.com").wantNot("b.example.com")
	c.get("/history?bottle=web").want(200, "b.example.com").wantNot("a.example.com")
	c.get("/history?status=rejected").want(200, "a.example.com").wantNot("b.example.com")
	c.get("/history?since=2999-01-01").want(200, "Nothing matches.")
	c.get("/history?since=yesterday").want(200, "That is no date")
	c.get("/history?n=1").want(200, "Show older", "b.example.com").wantNot("a.example.com")
	c.get("/history?n=-5").want(200)

	head := c.get("/ledger").want(200, "The chain holds", "3 lines")
	report, err := r.desk.Audit(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	head.want(200, report.Head)
	c.get("/ledger?head="+report.Head).want(200, "The head you gave is among them")
	c.get("/ledger?head=abc").want(200, "The chain is broken", "the given head is not in the ledger")
	ledger := filepath.Join(r.root, ".desk", "ledger.jsonl")
	data, err := os.ReadFile(ledger)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(ledger, []byte(strings.Replace(string(data), "use the mirror", "use the minor!", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	c.get("/ledger").want(200, "The chain is broken", "line 1 was edited")
}

func TestBottle(t *testing.T) {
	r := newRig(t)
	c := r.client()
	c.get("/b/web").want(200, "in force", "api.github.com", "/repos/", "pypi.org", "the whole host", "2 hosts", "Nothing waits here.", "not managed")
	ref := r.put(withPaths("a.example.com"))
	c.get(path(ref)).submit("decide", "", nil)
	c.get("/b/web").want(200, "3 hosts", "a.example.com", "Lately", "approved")
	r.freeze()
	r.write("web", "egress/routes.yaml", baseRoutes)
	c.get("/b/web").want(200, "The proxy has another table in force than its file", "a.example.com")
	r.proxy.Close()
	c.get("/b/web").want(200, "from the file", "the proxy does not show its table", "2 hosts").wantNot("in force")
	r.write("web", "egress/routes.yaml", "routes: [")
	c.get("/b/web").want(200, "from the file", "routes.yaml")
}

// What a page shows is looked for once for all pages, and again as soon as anything changes.
func TestOneLookForAll(t *testing.T) {
	f := fake{items: many(3), changes: make(chan struct{}), looks: new(atomic.Int64), audit: &operator.AuditReport{}}
	c, _ := signedInto(t, f)
	f.changes <- struct{}{} // the server watches from here on, if it did not before
	c.get("/").want(200)
	before := f.looks.Load()
	for range 5 {
		c.get("/").want(200, "3 open")
		c.get("/bottles").want(200)
	}
	if n := f.looks.Load() - before; n > 1 {
		t.Errorf("ten pages without a change made it look %d times", n)
	}
	before = f.looks.Load()
	f.changes <- struct{}{}
	f.changes <- struct{}{} // taken only after the first was dealt with
	c.get("/").want(200)
	if n := f.looks.Load() - before; n < 1 {
		t.Error("after a change it did not look again")
	}
}

func TestFavicon(t *testing.T) {
	c, _ := signedInto(t, fake{})
	for q, want := range map[string]string{"": "></text>", "?n=0": "></text>", "?n=7": ">7</text>", "?n=120": ">99+</text>", "?n=<x>": "></text>", "?n=-1": "></text>"} {
		g := c.get("/favicon.svg" + q)
		if g.header.Get("Content-Type") != "image/svg+xml" || !strings.Contains(g.raw, want) {
			t.Errorf("%s: %s, want %s", q, g.raw, want)
		}
	}
	page := c.get("/")
	css := page.find(func(n *html.Node) bool { return attr(n, "rel") == "stylesheet" })
	if cc := c.get(attr(css, "href")).header.Get("Cache-Control"); !strings.Contains(cc, "immutable") {
		t.Errorf("the style has Cache-Control %q", cc)
	}
	if g := c.get("/assets/app.css?v=old"); g.status != http.StatusOK || g.header.Get("Cache-Control") != "no-store" {
		t.Errorf("an old style: %d, %q", g.status, g.header.Get("Cache-Control"))
	}
}
