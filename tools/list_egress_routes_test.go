package tools

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestListRoutes(t *testing.T) {
	var handler http.HandlerFunc
	var asked string
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = r.Method + " " + r.RequestURI
		handler(w, r)
	}))
	defer proxy.Close()
	t.Setenv("http_proxy", "http://127.0.0.1:1") // not asked
	t.Setenv("no_proxy", "*")
	const url = "http://_egress.local/allowlist"
	prefix := fmt.Sprintf("list-egress-routes: could not reach '%s' via '%s': ", url, proxy.URL)
	tests := []struct {
		name    string
		handler http.HandlerFunc
		want    string
		isError bool
	}{
		{"as it is", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, " {\"routes\": [] }\n\n") }, " {\"routes\": [] }\n\n", false},
		{"other 2xx", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(203); fmt.Fprint(w, "x") }, "x", false},
		{"at the limit", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, strings.Repeat("x", 1<<20)) }, strings.Repeat("x", 1<<20), false},
		{"over the limit", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, strings.Repeat("x", 1<<20+1)) }, prefix + "the answer is over 1048576 bytes", true},
		{"403", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(403) }, prefix + "status 403 Forbidden", true},
		{"redirect", func(w http.ResponseWriter, r *http.Request) {
			if r.RequestURI != url {
				t.Errorf("the redirect to %s was followed", r.RequestURI)
			}
			http.Redirect(w, r, "http://evil.example/", http.StatusFound)
		}, prefix + "status 302 Found", true},
		{"cut", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "10")
			fmt.Fprint(w, "x")
		}, prefix + "unexpected EOF", true},
	}
	r := newRig(t, newBox(), Options{EgressProxy: proxy.URL})
	defer r.close()
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			handler = tt.handler
			got := r.do(ListRoutes, nil)
			if got.err != nil || got.text != tt.want || got.isError != tt.isError {
				t.Errorf("answer = %.200q, isError %v, %v\nwant %.200q", got.text, got.isError, got.err, tt.want)
			}
			if asked != "GET "+url {
				t.Errorf("the proxy was asked %q, want GET %s", asked, url)
			}
		})
	}
	if r.box.puts() != 0 {
		t.Errorf("%d proposals, want none", r.box.puts())
	}
}

func TestListRoutesUnreachable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	r := newRig(t, newBox(), Options{EgressProxy: "http://user:secret@" + addr})
	defer r.close()
	got := r.do(ListRoutes, args{})
	want := fmt.Sprintf("list-egress-routes: could not reach 'http://_egress.local/allowlist' via 'http://user:xxxxx@%[1]s': proxyconnect tcp: dial tcp %[1]s: connect: connection refused", addr)
	if !got.isError || got.text != want {
		t.Errorf("answer\n got %s\nwant %s", got.text, want)
	}
}

func TestListRoutesTimesOut(t *testing.T) {
	release := make(chan struct{})
	proxy := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer proxy.Close()
	defer close(release)
	r := newRig(t, newBox(), Options{EgressProxy: proxy.URL})
	defer r.close()
	if got, want := r.tools.client.Timeout, 5*time.Second; got != want {
		t.Errorf("timeout = %v, want %v", got, want)
	}
	r.tools.client.Timeout = 50 * time.Millisecond
	got := r.do(ListRoutes, nil)
	want := fmt.Sprintf("list-egress-routes: could not reach 'http://_egress.local/allowlist' via '%s': no complete answer within 50ms", proxy.URL)
	if !got.isError || got.text != want {
		t.Errorf("answer\n got %s\nwant %s", got.text, want)
	}
}
