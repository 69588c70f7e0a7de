package web_test

import (
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bot-bottle/supervise/internal/operator"
	"github.com/bot-bottle/supervise/internal/payload"
	"github.com/bot-bottle/supervise/queue"
)

func TestApproveAndUndo(t *testing.T) {
	r := newRig(t)
	c := r.client()
	ref := r.put(withPaths("packages.acme.test", "/react"))
	c.get("/").want(200, "allow packages.acme.test /react", "new-host", "web")
	page := c.get(path(ref)).want(200, "The bottle cannot reach this host yet.", "+2", "path_allowlist", "the build needs it", "nobody has checked it")
	page = page.submit("decide", "", url.Values{"notes": {"only react\r\nfor now"}}).want(200, "approved by ann@host (web)", "Live: the change is made and was seen in force.", "only react for now", "Undo this change")
	if page.path != path(ref) {
		t.Errorf("approving leads to %s, want %s", page.path, path(ref))
	}
	if res := r.wait(ref); res.Status != queue.Approved || res.Outcome != queue.Live || res.Notes != "only react\nfor now" {
		t.Errorf("the agent got %+v, want approved, live, with the note as it was typed", res)
	}
	if got := r.read("web", "egress/routes.yaml"); !strings.Contains(got, "packages.acme.test") {
		t.Errorf("routes.yaml is\n%s", got)
	}
	c.get("/").want(200, "Nothing waits for you.")

	page.submit("undo", "", nil).want(200, "Undone by ann@host", "It was approved by ann@host").wantNot("Undo this change")
	if got := r.read("web", "egress/routes.yaml"); got != baseRoutes {
		t.Errorf("after undo routes.yaml is\n%s", got)
	}
	page.submit("undo", "", nil).want(http.StatusConflict, "This cannot be undone")
	if got, want := r.events(ref), "decided by ann@host via web, applied by ann@host via web, undone by ann@host via web"; got != want {
		t.Errorf("ledger has %s, want %s", got, want)
	}
	c.get("/history").want(200, "approved", "applied: live", "undone", "allow packages.acme.test /react")
	c.get("/ledger").want(200, "The chain holds", "3 lines")
}

// TestUndoOfWhatIsPruned: a mailbox keeps what was answered for 30 days. After that its decision is shown, and can be undone, all the same.
func TestUndoOfWhatIsPruned(t *testing.T) {
	r := newRig(t)
	c := r.client()
	ref := r.put(withPaths("packages.acme.test", "/react"))
	c.get(path(ref)).submit("decide", "", nil).want(200, "approved by ann@host (web)")
	if err := r.boxes["web"].Archive(t.Context(), ref.ID); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(r.root, "web", "processed")); err != nil {
		t.Fatal(err)
	}
	page := c.get(path(ref)).want(200, "allow packages.acme.test /react", "approved by ann@host (web)", "Undo this change").wantNot("The agent says")
	page.submit("undo", "", nil).want(200, "Undone by ann@host").wantNot("Undo this change")
	if got := r.read("web", "egress/routes.yaml"); got != baseRoutes {
		t.Errorf("after undo routes.yaml is\n%s", got)
	}
}

func withPaths(host string, paths ...string) (string, payload.Payload, error) {
	p, err := route(host, paths...)
	return "web", p, err
}

func TestReject(t *testing.T) {
	for name, tt := range map[string]struct {
		fields url.Values
		want   string
	}{
		"with a note":          {url.Values{"notes": {"use the mirror"}}, "use the mirror"},
		"with a quick note":    {url.Values{"quick": {"too broad"}}, "too broad"},
		"with both":            {url.Values{"quick": {"too broad"}, "notes": {"only /css2"}}, "too broad: only /css2"},
		"without a word":       {nil, ""},
		"with markup in it":    {url.Values{"notes": {"<b>no</b>"}}, "<b>no</b>"},
		"with danger untyped":  {url.Values{"accept": {""}, "notes": {"no"}}, "no"},
		"with an old preview":  {url.Values{"digest": {strings.Repeat("0", 64)}, "notes": {"no"}}, "no"}, // binds to the proposal alone
		"with a file to apply": {url.Values{"file": {"{}"}, "notes": {"no"}}, "no"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			ref := r.put(withPaths("fonts.googleapis.com"))
			r.client().get(path(ref)).submit("decide", "reject", tt.fields).want(200, "rejected by ann@host", tt.want).wantNot("Undo")
			if res := r.wait(ref); res.Status != queue.Rejected || res.Notes != tt.want {
				t.Errorf("the agent got %+v, want rejected with %q", res, tt.want)
			}
			if got := r.read("web", "egress/routes.yaml"); got != baseRoutes {
				t.Errorf("routes.yaml is\n%s", got)
			}
		})
	}
}

func TestLongNote(t *testing.T) {
	r := newRig(t)
	ref := r.put(withPaths("a.example.com"))
	page := r.client().get(path(ref))
	for _, verb := range []string{"approve", "reject"} {
		page.submit("decide", verb, url.Values{"notes": {strings.Repeat("n", 17<<10)}}).want(http.StatusUnprocessableEntity, "The note is too long", "a note has at most 16384 bytes")
	}
	if got := r.events(ref); got != "" {
		t.Errorf("ledger has %s", got)
	}
}

func TestEdit(t *testing.T) {
	r := newRig(t)
	c := r.client()
	ref := r.put(withPaths("packages.acme.test"))
	form := c.get(path(ref)+"/edit").want(200, "Edit: allow packages.acme.test (whole host)")
	form.submit("editor", "", url.Values{"file": {`{"host": "x y"}`}}).want(http.StatusUnprocessableEntity, "This is not a valid edit", "host", `{"host": "x y"}`)
	form.submit("editor", "", nil).want(200, "Your edit asks for the same as the proposal").wantNot("This decides on your edit")
	preview := form.submit("editor", "", url.Values{"file": {"{\r\n \"host\": \"packages.acme.test\",\r\n \"path_allowlist\": [\"/react\"]\r\n}"}})
	preview.want(200, "This decides on your edit", "Your edit of what was proposed", "Approve the edit", "path_allowlist")
	preview.submit("decide", "edit", url.Values{"again": {"1"}}).want(200, "Edit: allow packages.acme.test", `"/react"`)
	if got := r.events(ref); got != "" {
		t.Errorf("editing alone left %s in the ledger", got)
	}
	preview.submit("decide", "", nil).want(200, "modified by ann@host", "Applied instead of what was proposed")
	if res := r.wait(ref); res.Status != queue.Modified || !strings.Contains(res.FinalFile, "/react") {
		t.Errorf("the agent got %+v, want modified with the final file", res)
	}
}

// A Dockerfile goes through a form unchanged, whatever it begins and ends with.
func TestEditDockerfile(t *testing.T) {
	r := newRig(t)
	c := r.client()
	file := "\n\nFROM debian:12\n\tRUN echo '<b>&amp;</b>' \"x\"\nUSER agent\n\n"
	ref := r.putRaw("web", payload.Capability, file, "more")
	form := c.get(path(ref) + "/edit")
	if _, v := form.values("editor"); strings.ReplaceAll(v.Get("file"), "\r\n", "\n") != file {
		t.Errorf("the form has %q, want %q", v.Get("file"), file)
	}
	form.submit("editor", "", nil).want(200, "Your edit asks for the same")
	edited := strings.Replace(file, "USER agent", "RUN true\nUSER agent", 1)
	form.submit("editor", "", url.Values{"file": {strings.ReplaceAll(edited, "\n", "\r\n")}}).want(200, "This decides on your edit").submit("decide", "", nil).want(200, "modified by ann@host")
	if got := r.read("web", "Dockerfile"); got != edited {
		t.Errorf("the Dockerfile is %q, want %q", got, edited)
	}
}

func TestDanger(t *testing.T) {
	r := newRig(t)
	c := r.client()
	ref := r.put(withPaths("169.254.169.254", "/latest"))
	page := c.get(path(ref)).want(200, "danger metadata", "Type metadata to accept it", "Type ip-literal to accept it")
	for _, accept := range [][]string{nil, {""}, {"metadata"}, {"metadata", "ip literal"}, {"IP-LITERAL", "metadata"}, {"*"}, {"metadata,ip-literal"}} {
		back := page.submit("decide", "", url.Values{"accept": accept, "notes": {"so be it"}}).want(http.StatusUnprocessableEntity, "Not approved: a danger was not accepted", "this was not typed")
		if _, v := back.values("decide"); v.Get("notes") != "so be it" {
			t.Errorf("accept %q: the note is %q when the form comes back", accept, v.Get("notes"))
		}
	}
	if got := r.read("web", "egress/routes.yaml"); got != baseRoutes {
		t.Errorf("routes.yaml is\n%s", got)
	}
	page.submit("decide", "", url.Values{"accept": {" metadata", "ip-literal "}}).want(200, "approved by ann@host", "metadata, ip-literal")
}

func TestStale(t *testing.T) {
	r := newRig(t)
	c := r.client()
	ref := r.put(withPaths("api.github.com", "/users/"))
	page := c.get(path(ref))
	r.write("web", "egress/routes.yaml", strings.Replace(baseRoutes, "- /repos/", "- /orgs/", 1))
	again := page.submit("decide", "", url.Values{"notes": {"fine"}}).want(http.StatusConflict, "This has changed since you saw it", "What is different now", "removed: ", "/repos/", "added: ", "/orgs/")
	if got := r.events(ref); got != "" {
		t.Errorf("a stale form left %s in the ledger", got)
	}
	if _, v := again.values("decide"); v.Get("notes") != "fine" {
		t.Errorf("the note is %q when the form comes back", v.Get("notes"))
	}
	again.submit("decide", "", nil).want(200, "approved by ann@host")

	// What another server showed is not known to this one.
	ref = r.put(withPaths("b.example.com"))
	c.get(path(ref)).submit("decide", "", url.Values{"digest": {strings.Repeat("0", 64)}}).want(http.StatusConflict, "What you saw is not known here any more")
	c.get(path(ref)).submit("decide", "", url.Values{"digest": nil}).want(http.StatusConflict, "This has changed since you saw it")

	// An unrelated edit does not matter.
	page = c.get(path(ref))
	r.write("web", "egress/routes.yaml", r.read("web", "egress/routes.yaml")+"  - host: unrelated.example.com\n")
	page.submit("decide", "", nil).want(200, "approved by ann@host")
}

func TestDecidedElsewhere(t *testing.T) {
	r := newRig(t)
	c := r.client()
	bob := r.openDesk("bob@host", "cli")
	ref := r.put(withPaths("a.example.com"))
	page := c.get(path(ref))
	if _, err := bob.Reject(t.Context(), ref, "no"); err != nil {
		t.Fatal(err)
	}
	page.submit("decide", "", nil).want(http.StatusConflict, "Already rejected by bob@host (cli)", "You changed nothing")
	page.submit("decide", "reject", nil).want(http.StatusConflict, "Already rejected by bob@host (cli)")
	c.get(path(ref)).want(200, "rejected by bob@host").wantNot("Approve", "Undo this change")

	// Undoing names the decision that was seen.
	ref = r.put(withPaths("b.example.com"))
	c.get(path(ref)).submit("decide", "", nil).submit("undo", "", url.Values{"digest": {"another"}}).want(http.StatusConflict, "Nothing was undone")
	if got := r.read("web", "egress/routes.yaml"); !strings.Contains(got, "b.example.com") {
		t.Errorf("it was undone: routes.yaml is\n%s", got)
	}
}

func TestFailedChange(t *testing.T) {
	r := newRig(t)
	c := r.client()
	ref := r.put(withPaths("a.example.com"))
	page := c.get(path(ref))
	r.freeze()
	page.submit("decide", "", url.Values{"notes": {"fine"}}).want(http.StatusBadGateway, "The change did not hold, and was put back", "not seen live", "The proposal is open again")
	if got := r.read("web", "egress/routes.yaml"); got != baseRoutes {
		t.Errorf("routes.yaml is\n%s", got)
	}
	c.get("/").want(200, "failed", "allow a.example.com")
	page = c.get(path(ref)).want(200, "The last attempt did not hold, and it is open again", "not seen live")
	r.thaw()
	page.submit("decide", "", nil).want(200, "approved by ann@host")
}

func TestUnmanaged(t *testing.T) {
	r := newRig(t)
	c := r.client()
	p, err := payload.NewPipelock("https://a.example.com/x")
	ref := r.put("web", p, err)
	c.get("/").want(200, "by hand")
	page := c.get(path(ref)).want(200, "not managed", "I have made the change by hand")
	page.submit("decide", "", nil).want(http.StatusUnprocessableEntity, "pipelock is not managed")
	page.submit("decide", "", url.Values{"unmanaged": {"1"}}).want(200, "approved by ann@host", "Unverified")
}

func TestBlocked(t *testing.T) {
	r := newRig(t)
	c := r.client()
	r.write("web", "egress/routes.yaml", "routes: [")
	ref := r.put(withPaths("a.example.com"))
	c.get("/").want(200, "cannot be approved")
	page := c.get(path(ref)).want(200, "This cannot be approved", "What would change here cannot be worked out.").wantNot("Nothing changes here.")
	if page.byID("approve") != nil {
		t.Error("there is a button that approves it")
	}
	page.submit("decide", "", nil).want(http.StatusConflict, "This cannot be applied")
	page.submit("decide", "reject", nil).want(200, "rejected by ann@host")
}

func TestMalformed(t *testing.T) {
	r := newRig(t)
	c := r.client()
	ref := r.putRaw("web", payload.Egress, `{"host": "https://x"}`, "why")
	c.get("/").want(200, "malformed")
	page := c.get(path(ref)).want(200, "the proposal is malformed, so it can only be rejected")
	if page.byID("approve") != nil || page.byID("edit-link") != nil {
		t.Error("a malformed proposal can be approved or edited")
	}
	page.submit("decide", "reject", nil).want(200, "rejected by ann@host")
}

func TestReviewSeveral(t *testing.T) {
	r := newRig(t)
	c := r.client()
	a, b, stale, danger := r.put(withPaths("a.example.com", "/x")), r.put(withPaths("b.example.com", "/x")), r.put(withPaths("api.github.com", "/users/")), r.put(withPaths("10.0.0.1", "/x"))
	q := url.Values{}
	for _, ref := range []operator.Ref{a, b, stale, danger} {
		q.Add("ref", ref.Bottle+"/"+string(ref.ID))
	}
	page := c.get("/review?"+q.Encode()).want(200, "Review 3 together", "a.example.com", "b.example.com", "These want a decision of their own", "has a danger: private, ip-literal")
	if _, v := page.values("reviewed"); len(v["item"]) != 3 {
		t.Fatalf("the form has %q, want three", v["item"])
	}
	r.write("web", "egress/routes.yaml", strings.Replace(baseRoutes, "- /repos/", "- /orgs/", 1))
	_, v := page.values("reviewed")
	page.submit("reviewed", "", url.Values{"item": {v["item"][0], v["item"][2]}}).want(200, "What was approved", "Approved: web", "This has changed since you saw it")
	for ref, want := range map[operator.Ref]int{a: 200, b: 200, stale: 200, danger: 200} {
		g := c.get(path(ref)).want(want)
		if decided := strings.Contains(g.text(), "approved by ann@host"); decided != (ref == a) {
			t.Errorf("%s is decided: %v", ref, decided)
		}
	}
	// A danger is not approved by slipping it into the form.
	pre, err := r.desk.Show(t.Context(), danger, nil)
	if err != nil {
		t.Fatal(err)
	}
	page.submit("reviewed", "", url.Values{"item": {"web/" + string(danger.ID) + " " + pre.Digest}}).want(200, "a danger was not accepted")
	c.get("/review").want(200, "Inbox")
	c.get("/review?ref=../../x").want(404)
	c.post("/review", url.Values{"item": {"x"}}).want(400)
}

func TestDismiss(t *testing.T) {
	r := newRig(t)
	c := r.client()
	a, b := r.put(withPaths("a.example.com")), r.put(withPaths("b.example.com"))
	c.post("/dismiss", url.Values{"ref": {"web/" + string(a.ID)}}).want(200, "Dismissed: 1.")
	if res := r.wait(a); res.Status != queue.Rejected || res.Notes != operator.DismissNotes {
		t.Errorf("the agent got %+v, want %q", res, operator.DismissNotes)
	}
	c.post("/dismiss", nil).want(200, "allow b.example.com")
	c.post("/dismiss", url.Values{"ref": {"web/../x"}}).want(400)
	c.get(path(b)).want(200, "Approve")
}

// TestNextStaysInTheFilter: previous and next, and what a form leads to, stay where the proposal was come upon; what was
// decided stands there where it stood.
func TestNextStaysInTheFilter(t *testing.T) {
	r := newRig(t, "api", "web")
	c := r.client()
	var refs []operator.Ref
	for _, p := range [][2]string{{"web", "a.example"}, {"api", "b.example"}, {"web", "c.example"}, {"web", "d.other"}, {"web", "e.example"}, {"web", "f.example"}} {
		refs = append(refs, r.put(p[0], must(route(p[1], "/v1/")), nil))
	}
	href := func(g *got, id string) string {
		t.Helper()
		n := g.byID(id)
		if n == nil {
			return ""
		}
		return attr(n, "href")
	}
	check := func(g *got, in string, prev, next, onward *operator.Ref) {
		t.Helper()
		g.want(200)
		for id, ref := range map[string]*operator.Ref{"prev": prev, "next": next, "onward": onward} {
			want := ""
			if ref != nil {
				want = path(*ref) + in
			}
			if got := href(g, id); got != want {
				t.Errorf("%s: %s leads to %q, want %q", g.path, id, got, want)
			}
		}
		if got := href(g, "back"); got != "/"+in {
			t.Errorf("%s leads back to %q, want %q", g.path, got, "/"+in)
		}
	}
	const in = "?bottle=web&q=example+%2Fv1"
	row := c.get("/?q=example+/v1&bottle=web").want(200, "4 match").byID("w-" + string(refs[2].ID))
	if got := attr(row, "href"); got != path(refs[2])+in {
		t.Fatalf("the inbox leads to %q, want %q", got, path(refs[2])+in)
	}
	p := c.get(path(refs[2])+in).want(200, "2 of 4 that match the filter")
	check(p, in, &refs[0], &refs[4], nil)
	check(c.get(href(p, "edit-link")), in, nil, nil, nil)
	action, f := p.values("decide")
	if action != path(refs[2])+"/approve"+in {
		t.Errorf("the form leads to %q", action)
	}
	check(c.post(path(refs[2])+"/reject"+in, f).want(200, "rejected by ann@host"), in, nil, &refs[4], &refs[4])
	_, f = c.get(path(refs[5]) + in).values("decide")
	check(c.post(path(refs[5])+"/reject"+in, f).want(200, "rejected"), in, nil, &refs[0], &refs[0]) // the last: from the beginning

	// Without a filter it is the next of all, which is not the first.
	check(c.get(path(refs[2])), "", nil, &refs[3], &refs[3])
	check(c.get(path(refs[2])+"?group=bottle"), "?group=bottle", nil, &refs[3], &refs[3])
	check(c.get(path(refs[1])+"?group=bottle"), "?group=bottle", nil, &refs[0], nil)
	check(c.get(path(refs[0])+"?group=bottle"), "?group=bottle", &refs[1], &refs[3], nil)
}
