package web_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bot-bottle/supervise/internal/operator"
	"github.com/bot-bottle/supervise/internal/operator/web"
)

// idle is a desk with nothing on it.
type idle struct{ web.Desk }

func (idle) Snapshot(context.Context) (*operator.Snapshot, error) { return &operator.Snapshot{}, nil }

func (idle) History(context.Context, operator.HistoryFilter) iter.Seq2[operator.LedgerEntry, error] {
	return func(func(operator.LedgerEntry, error) bool) {}
}

func (idle) Trail(context.Context) (operator.Trail, error) { return operator.Trail{}, nil }

func (idle) Changes(ctx context.Context) (<-chan struct{}, error) {
	ch := make(chan struct{})
	context.AfterFunc(ctx, func() { close(ch) })
	return ch, nil
}

const base = "http://127.0.0.1:9101"

// ask is one request, answered without a network.
func ask(s *web.Server, method, path, body string, header ...string) *http.Response {
	r := httptest.NewRequest(method, base+path, strings.NewReader(body))
	r.RemoteAddr = "127.0.0.1:50000"
	if body != "" {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	if method == http.MethodPost {
		r.Header.Set("Origin", base)
	}
	for i := 0; i < len(header); i += 2 {
		switch header[i] {
		case "Host":
			r.Host = header[i+1]
		case "From":
			r.RemoteAddr = header[i+1]
		default:
			r.Header.Set(header[i], header[i+1])
		}
		if header[i+1] == "" {
			r.Header.Del(header[i])
		}
	}
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, r)
	return w.Result()
}

func token(s *web.Server) string {
	_, t, _ := strings.Cut(s.Link(), "token=")
	return t
}

// signIn spends a link and returns the cookie.
func signIn(t *testing.T, s *web.Server) string {
	t.Helper()
	resp := ask(s, "POST", "/in", "token="+token(s))
	if resp.StatusCode != http.StatusSeeOther || resp.Header.Get("Location") != "/" || len(resp.Cookies()) != 1 {
		t.Fatalf("signing in: %s to %q with cookies %v", resp.Status, resp.Header.Get("Location"), resp.Cookies())
	}
	c := resp.Cookies()[0]
	return c.Name + "=" + c.Value
}

func TestCookie(t *testing.T) {
	for _, tt := range []struct {
		name   string
		o      web.Options
		cookie string
		secure bool
	}{
		{"plain", web.Options{Desk: idle{}}, "supervise-9101", false},
		{"TLS", web.Options{Desk: idle{}, TLS: &tls.Config{MinVersion: tls.VersionTLS12}}, "__Host-supervise-9101", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := web.New(tt.o)
			c := ask(s, "POST", "/in", "token="+token(s)).Cookies()[0]
			if c.Name != tt.cookie || !c.HttpOnly || c.SameSite != http.SameSiteStrictMode || c.Path != "/" || c.Domain != "" || c.Secure != tt.secure || len(c.Value) < 26 {
				t.Errorf("cookie is %+v", c)
			}
		})
	}
}

// TestSignInLeadsToTheProposal: a notification's link is followed in a browser that is not signed in.
func TestSignInLeadsToTheProposal(t *testing.T) {
	s := web.New(web.Options{Desk: idle{}, URL: base})
	const proposal = "/p/web/0197f3b2-6d1e-7c3a-9b58-3f6f0a2c4d1e"
	hidden := func(path string) bool {
		b, err := io.ReadAll(ask(s, "GET", path, "").Body)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(string(b), `name="to" value="`+path+`"`)
	}
	if !hidden(proposal) || hidden("/history") || hidden("/") {
		t.Error("the form should lead on to a proposal, and to nothing else")
	}
	for to, want := range map[string]string{
		proposal: proposal, "": "/", "https://evil.example/": "/", "//evil.example/p/web/0197f3b2-6d1e-7c3a-9b58-3f6f0a2c4d1e": "/",
		`/\evil.example`: "/", "/out": "/", proposal + "/approve": "/", proposal + "?x": "/", "/p/../0197f3b2-6d1e-7c3a-9b58-3f6f0a2c4d1e": "/",
	} {
		resp := ask(s, "POST", "/in", "token="+token(s)+"&to="+url.QueryEscape(to))
		if got := resp.Header.Get("Location"); resp.StatusCode != http.StatusSeeOther || got != want {
			t.Errorf("to %q: %s to %q, want %q", to, resp.Status, got, want)
		}
	}
}

func TestLinkIsGoodOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := web.New(web.Options{Desk: idle{}, URL: base})
		if link := s.Link(); !strings.HasPrefix(link, base+"/in?token=") {
			t.Errorf("link is %s", link)
		}
		tok := token(s)
		for range 3 { // a preview, a scanner: looking spends nothing
			if resp := ask(s, "GET", "/in?token="+tok, ""); resp.StatusCode != 200 || len(resp.Cookies()) != 0 {
				t.Errorf("looking at the link: %s with cookies %v", resp.Status, resp.Cookies())
			}
		}
		if resp := ask(s, "POST", "/in", "token="+url.QueryEscape(" "+base+"/in?token="+tok+"\n")); resp.StatusCode != http.StatusSeeOther {
			t.Errorf("a pasted link: %s", resp.Status)
		}
		if resp := ask(s, "POST", "/in", "token="+tok); resp.StatusCode != http.StatusForbidden || len(resp.Cookies()) != 0 {
			t.Errorf("the second time: %s with cookies %v", resp.Status, resp.Cookies())
		}
		old, young := token(s), token(s)
		time.Sleep(web.LinkLife - time.Second)
		if resp := ask(s, "POST", "/in", "token="+young); resp.StatusCode != http.StatusSeeOther {
			t.Errorf("just in time: %s", resp.Status)
		}
		time.Sleep(2 * time.Second)
		if resp := ask(s, "POST", "/in", "token="+old); resp.StatusCode != http.StatusForbidden {
			t.Errorf("too late: %s", resp.Status)
		}
		first := token(s)
		for range 16 { // more links than are kept
			time.Sleep(time.Second)
			s.Link()
		}
		if resp := ask(s, "POST", "/in", "token="+first); resp.StatusCode != http.StatusForbidden {
			t.Errorf("an old one of many: %s", resp.Status)
		}
	})
}

func TestSessionEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := web.New(web.Options{Desk: idle{}, URL: base})
		in := func(cookie string, header ...string) bool {
			return ask(s, "GET", "/", "", append([]string{"Cookie", cookie}, header...)...).StatusCode == 200
		}
		c := signIn(t, s)
		for day := range 14 { // used twice a day it lives for a week
			time.Sleep(12*time.Hour - time.Minute)
			if !in(c) {
				t.Fatalf("it ended after %d half days", day+1)
			}
		}
		time.Sleep(15 * time.Minute)
		if in(c) {
			t.Error("it lives longer than a week")
		}
		c = signIn(t, s)
		for range 12 { // what the page asks by itself does not count as use
			time.Sleep(time.Hour)
			in(c, "Supervise-Live", "1")
		}
		time.Sleep(time.Second)
		if in(c) {
			t.Error("the page's script kept it alive")
		}
		c = signIn(t, s)
		out := ask(s, "POST", "/out", "", "Cookie", c)
		if out.StatusCode != http.StatusSeeOther || out.Cookies()[0].MaxAge >= 0 {
			t.Errorf("signing out: %s with %v", out.Status, out.Cookies())
		}
		if in(c) {
			t.Error("signed out, and still in")
		}
		first := signIn(t, s)
		for range 64 {
			time.Sleep(time.Second)
			signIn(t, s)
		}
		if in(first) {
			t.Error("there are more sessions than are kept")
		}
	})
}

func TestSignInAttempts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := web.New(web.Options{Desk: idle{}, URL: base})
		try := func(tok, from string) *http.Response { return ask(s, "POST", "/in", "token="+tok, "From", from) }
		good := token(s)
		for i := range 10 {
			if resp := try(fmt.Sprint("wrong", i), "192.0.2.1:5"); resp.StatusCode != http.StatusForbidden {
				t.Fatalf("attempt %d: %s", i+1, resp.Status)
			}
		}
		resp := try("wrong", "192.0.2.1:6")
		if resp.StatusCode != http.StatusTooManyRequests || resp.Header.Get("Retry-After") != "6" {
			t.Errorf("after ten failures: %s, Retry-After %q", resp.Status, resp.Header.Get("Retry-After"))
		}
		if resp := try(token(s), "192.0.2.2:5"); resp.StatusCode != http.StatusSeeOther {
			t.Errorf("from elsewhere: %s", resp.Status)
		}
		if resp := try(good, "192.0.2.1:7"); resp.StatusCode != http.StatusSeeOther {
			t.Errorf("a good link from where others failed: %s", resp.Status)
		}
		if resp := try(good, "192.0.2.1:7"); resp.StatusCode != http.StatusTooManyRequests {
			t.Errorf("the same once more: %s", resp.Status)
		}
		time.Sleep(7 * time.Second)
		if resp := try("wrong", "192.0.2.1:7"); resp.StatusCode != http.StatusForbidden {
			t.Errorf("after waiting: %s", resp.Status)
		}
		for i := range 10 { // one machine has a whole network of version 6
			try("wrong", fmt.Sprintf("[2001:db8::%d]:5", i))
		}
		if resp := try("wrong", "[2001:db8::ffff]:5"); resp.StatusCode != http.StatusTooManyRequests {
			t.Errorf("from another address of the network: %s", resp.Status)
		}
		if resp := try("wrong", "[2001:db8:0:1::1]:5"); resp.StatusCode != http.StatusForbidden {
			t.Errorf("from another network: %s", resp.Status)
		}
	})
}

// everyPath is what wants a session.
var everyPath = []struct{ method, path string }{
	{"GET", "/"}, {"GET", "/events"}, {"GET", "/history"}, {"GET", "/ledger"}, {"GET", "/bottles"}, {"GET", "/b/web"}, {"GET", "/review"},
	{"GET", "/p/web/0197f3b2-6d01-7c3a-9b58-3f6f0a2c4d01"}, {"GET", "/p/web/0197f3b2-6d01-7c3a-9b58-3f6f0a2c4d01/edit"}, {"GET", "/nowhere"},
	{"POST", "/p/web/0197f3b2-6d01-7c3a-9b58-3f6f0a2c4d01/approve"}, {"POST", "/p/web/0197f3b2-6d01-7c3a-9b58-3f6f0a2c4d01/reject"},
	{"POST", "/p/web/0197f3b2-6d01-7c3a-9b58-3f6f0a2c4d01/undo"}, {"POST", "/p/web/0197f3b2-6d01-7c3a-9b58-3f6f0a2c4d01/edit"},
	{"POST", "/review"}, {"POST", "/dismiss"}, {"POST", "/link"}, {"POST", "/out"},
}

func TestNothingWithoutSession(t *testing.T) {
	s := web.New(web.Options{Desk: idle{}, URL: base}) // any verb of it would panic
	for _, p := range everyPath {
		for _, cookie := range []string{"", "supervise-9101=", "supervise-9101=AAAAAAAAAAAAAAAAAAAAAAAAAA", "supervise=x"} {
			resp := ask(s, p.method, p.path, "", "Cookie", cookie)
			body, _ := io.ReadAll(resp.Body)
			if resp.StatusCode != http.StatusUnauthorized || !strings.Contains(string(body), "Sign in") {
				t.Errorf("%s %s with cookie %q: %s", p.method, p.path, cookie, resp.Status)
			}
		}
	}
}

func TestWhereRequestsComeFrom(t *testing.T) {
	s := web.New(web.Options{Desk: idle{}, URL: base, Hosts: []string{"desk.example.com", "192.0.2.7"}})
	c := signIn(t, s)
	for _, tt := range []struct {
		name, method string
		header       []string
		want         int
	}{
		{"ours", "GET", nil, 200},
		{"ours by name", "GET", []string{"Host", "localhost:9101"}, 401}, // answered, and not signed in there
		{"a port that is forwarded", "GET", []string{"Host", "127.0.0.1:7777"}, 401},
		{"version 6", "GET", []string{"Host", "[::1]:9101"}, 401},
		{"a configured name", "GET", []string{"Host", "Desk.Example.com.:9101"}, 401},
		{"a configured address", "GET", []string{"Host", "192.0.2.7:9101"}, 401},
		{"a name that nobody configured", "GET", []string{"Host", "supervise-aaaaaaaa.localhost:9101"}, 403},
		{"a rebound name", "GET", []string{"Host", "evil.example:9101"}, 403},
		{"a name that ends as ours", "GET", []string{"Host", "127.0.0.1.evil.example"}, 403},
		{"another address", "GET", []string{"Host", "192.0.2.8"}, 403},
		{"no host", "GET", []string{"Host", ""}, 403},
		{"a script of another site", "GET", []string{"Origin", "https://evil.example"}, 403},
		{"our script", "GET", []string{"Origin", base}, 200},
		{"our form", "POST", nil, 303},
		{"our form, by another header", "POST", []string{"Origin", "", "Sec-Fetch-Site", "same-origin"}, 303},
		{"a form of another port", "POST", []string{"Origin", "http://127.0.0.1:3000", "Sec-Fetch-Site", "same-site"}, 403},
		{"a form of another port that hides", "POST", []string{"Origin", "null", "Sec-Fetch-Site", "same-site"}, 403},
		{"a form of another site", "POST", []string{"Origin", "https://evil.example", "Sec-Fetch-Site", "cross-site"}, 403},
		{"a form of an old browser's other site", "POST", []string{"Origin", "https://evil.example"}, 403},
		{"a form of a sandboxed frame", "POST", []string{"Origin", "null"}, 403},
		{"a form of nobody", "POST", []string{"Origin", ""}, 403},
		{"no form at all", "PUT", []string{"Origin", base}, 405},
		{"an unknown method", "DELETE", []string{"Origin", base}, 405},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := "/"
			if tt.method != "GET" {
				path = "/dismiss"
			}
			resp := ask(s, tt.method, path, "", append([]string{"Cookie", c}, tt.header...)...)
			if resp.StatusCode != tt.want {
				b, _ := io.ReadAll(resp.Body)
				t.Errorf("%s, want %d: %.80s", resp.Status, tt.want, b)
			}
		})
	}
}

func TestHeaders(t *testing.T) {
	s := web.New(web.Options{Desk: idle{}, URL: base})
	c := signIn(t, s)
	for _, path := range []string{"/", "/in", "/in?token=x", "/nowhere", "/assets/app.js", "/favicon.svg?n=3", "/assets/none"} {
		resp := ask(s, "GET", path, "", "Cookie", c)
		for name, want := range map[string]string{
			"Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
			"X-Content-Type-Options":  "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "same-origin", "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Resource-Policy": "same-origin",
		} {
			if got := resp.Header.Get(name); got != want {
				t.Errorf("%s: %s is %q, want %q", path, name, got, want)
			}
		}
		if cc := resp.Header.Get("Cache-Control"); cc != "no-store" && path != "/favicon.svg?n=3" {
			t.Errorf("%s: Cache-Control is %q", path, cc)
		}
		if ct := resp.Header.Get("Content-Type"); ct == "" {
			t.Errorf("%s has no type", path)
		}
	}
}

func TestTooBigAForm(t *testing.T) {
	s := web.New(web.Options{Desk: idle{}, URL: base})
	c := signIn(t, s)
	resp := ask(s, "POST", "/dismiss", "x="+strings.Repeat("a", 1<<20), "Cookie", c)
	if resp.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("%s, want 413", resp.Status)
	}
	if resp := ask(s, "POST", "/dismiss", "%zz", "Cookie", c); resp.StatusCode != http.StatusBadRequest {
		t.Errorf("%s, want 400", resp.Status)
	}
}

// TestSessionIsOfOneHost: a browser sends the cookie to every port of the host it is of. Whoever gets it there can use it
// under that host only; and under the desk's own name nothing else listens.
func TestSessionIsOfOneHost(t *testing.T) {
	const name = "supervise-2k7qd3xa.localhost:9101"
	s := web.New(web.Options{Desk: idle{}, URL: "http://" + name, Plain: base, Hosts: []string{"supervise-2k7qd3xa.localhost"}})
	hosts := []string{"127.0.0.1:9101", "localhost:9101", name}
	for _, host := range hosts {
		in := ask(s, "POST", "/in", "token="+token(s), "Host", host, "Origin", "http://"+host)
		if in.StatusCode != http.StatusSeeOther {
			t.Fatalf("signing in at %s: %s", host, in.Status)
		}
		c := in.Cookies()[0].Name + "=" + in.Cookies()[0].Value
		for _, other := range hosts {
			want := http.StatusUnauthorized
			if other == host {
				want = http.StatusOK
			}
			if resp := ask(s, "GET", "/", "", "Cookie", c, "Host", other); resp.StatusCode != want {
				t.Errorf("the cookie of %s at %s: %s, want %d", host, other, resp.Status, want)
			}
		}
		if resp := ask(s, "GET", "/", "", "Cookie", c, "Host", strings.ToUpper(host)); resp.StatusCode != http.StatusOK {
			t.Errorf("the cookie of %s in capitals: %s", host, resp.Status)
		}
	}
}

// TestTwoLinks: one of the two names has the token, whichever resolves.
func TestTwoLinks(t *testing.T) {
	s := web.New(web.Options{Desk: idle{}, URL: "http://supervise-2k7qd3xa.localhost:9101", Plain: base, Hosts: []string{"supervise-2k7qd3xa.localhost"}})
	link, plain := s.Links()
	tok, ok := strings.CutPrefix(link, "http://supervise-2k7qd3xa.localhost:9101/in?token=")
	if !ok || plain != base+"/in?token="+tok {
		t.Errorf("links are %s and %s", link, plain)
	}
	c := signIn(t, s)
	b, err := io.ReadAll(ask(s, "POST", "/link", "", "Cookie", c).Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"http://supervise-2k7qd3xa.localhost:9101/in?token=", base + "/in?token="} {
		if !strings.Contains(string(b), part) {
			t.Errorf("%s is not on the page", part)
		}
	}
}

func TestSecondBrowser(t *testing.T) {
	s := web.New(web.Options{Desk: idle{}, URL: base})
	c := signIn(t, s)
	b, err := io.ReadAll(ask(s, "POST", "/link", "", "Cookie", c).Body)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(b), base+"/in?token=")
	if !ok || len(rest) < 26 {
		t.Fatalf("no link on\n%s", b)
	}
	if resp := ask(s, "POST", "/in", "token="+rest[:26]); resp.StatusCode != http.StatusSeeOther {
		t.Errorf("its link: %s", resp.Status)
	}
}

// TestConnectionsMakeWay: whoever opens many connections, or asks without a session, keeps nobody out and ends no page's stream.
func TestConnectionsMakeWay(t *testing.T) {
	s, u := serve(t, web.Options{Desk: idle{}, MaxConns: 2})
	c := signedIn(t, s, u)
	events, status := stream(t, c)
	if status != http.StatusOK {
		t.Fatalf("the stream: %d", status)
	}
	c.http.CloseIdleConnections()
	for _, text := range []string{"", "GET /in HTTP/1.1\r\nHo", "POST /in HTTP/1.1\r\nHost: 127.0.0.1\r\nSec-Fetch-Site: same-origin\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 99\r\n\r\nhalf"} {
		silent, err := net.Dial("tcp", strings.TrimPrefix(u, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer silent.Close()
		if _, err := io.WriteString(silent, text); err != nil {
			t.Fatal(err)
		}
		other := newClient(t, u)
		other.get("/in").want(http.StatusOK)
		other.http.CloseIdleConnections()
		silent.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := silent.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("after %q: %v, want the end of the connection", text, err)
		}
	}
	c.get("/").want(http.StatusOK)
	for open := true; open; {
		select {
		case _, ok := <-events:
			if open = ok; !ok {
				t.Error("the stream has ended")
			}
		default:
			open = false
		}
	}
}

// stream reads the events of one page until it ends.
func stream(t testing.TB, c *client) (events <-chan string, status int) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, c.base+"/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Client{Jar: c.http.Jar}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	ch := make(chan string, 100)
	go func() { // ends with the stream
		defer close(ch)
		for sc := bufio.NewScanner(resp.Body); sc.Scan(); {
			if data, ok := strings.CutPrefix(sc.Text(), "data: "); ok {
				ch <- data
			}
		}
	}()
	return ch, resp.StatusCode
}

func next(t testing.TB, ch <-chan string) (string, bool) {
	t.Helper()
	select {
	case s, ok := <-ch:
		return s, ok
	case <-time.After(10 * time.Second):
		t.Fatal("no event in ten seconds")
		return "", false
	}
}

func TestStream(t *testing.T) {
	r := newRig(t)
	a, b := r.client(), r.client()
	ea, _ := stream(t, a)
	eb, _ := stream(t, b)
	for _, ch := range []<-chan string{ea, eb} {
		if s, _ := next(t, ch); !strings.Contains(s, `"open":0`) {
			t.Errorf("the first event is %s", s)
		}
	}
	ref := r.put(withPaths("a.example.com", "/<b>"))
	for _, ch := range []<-chan string{ea, eb} {
		if s, _ := next(t, ch); !strings.Contains(s, `"open":1`) || !strings.Contains(s, string(ref.ID)) {
			t.Errorf("the arrival is %s", s)
		}
	}
	// A terminal decides, and both pages hear of it soon.
	cli := r.openDesk("bob@host", "cli")
	start := time.Now()
	if _, err := cli.Reject(t.Context(), ref, ""); err != nil {
		t.Fatal(err)
	}
	for _, ch := range []<-chan string{ea, eb} {
		for s := `"open":1`; strings.Contains(s, `"open":1`); s, _ = next(t, ch) {
			continue
		}
	}
	t.Logf("both had heard of it after %v", time.Since(start))
	a.post("/out", nil)
	for ok := true; ok; _, ok = next(t, ea) {
		continue
	}
	ref = r.put(withPaths("b.example.com"))
	for s := ""; !strings.Contains(s, string(ref.ID)); {
		var ok bool
		if s, ok = next(t, eb); !ok {
			t.Fatal("one browser signed out, and the other's stream ended")
		}
	}
}

func TestTooManyStreams(t *testing.T) {
	r := newRig(t)
	s, u := r.serve(web.Options{Desk: r.desk, MaxStreams: 2})
	c := signedIn(t, s, u)
	first, _ := stream(t, c)
	stream(t, c)
	if _, status := stream(t, c); status != http.StatusServiceUnavailable {
		t.Errorf("the third stream: %d", status)
	}
	if s, _ := next(t, first); s == "" {
		t.Error("the first stream is silent")
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodHead, u+"/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusNoContent {
		t.Errorf("asking about the stream: %s", resp.Status)
	}
}
