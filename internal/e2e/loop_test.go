package e2e

import (
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

var versions = []string{"2025-11-25", "2026-07-28"}

// modifiedLine is promised word for word.
const modifiedLine = "the operator modified your proposal before approving; the final config is now what's been applied"

// TestDecisions: propose, held, decided by another process, answered, with the texts as promised.
func TestDecisions(t *testing.T) {
	w := newWorld(t)
	w.startProxy()
	w.startSide()
	n := 0
	clients := map[string]func(host string) <-chan answer{}
	for _, v := range versions {
		s := w.connect(v)
		clients["go-sdk "+v] = func(host string) <-chan answer {
			return ask(t.Context(), s, "egress-block", map[string]any{"host": host, "justification": "tests"})
		}
	}
	clients["bare"] = func(host string) <-chan answer { return w.bareAsk(host) }
	for name, call := range clients {
		t.Run(name, func(t *testing.T) {
			tests := []struct {
				name    string
				decide  func(id string)
				want    string
				isError bool
				status  string
			}{
				{"approved", func(id string) { w.must("approve", id, "--yes", "--notes", "go ahead") },
					"status: approved\nnotes: go ahead\n", false, "approved"},
				{"approved without notes", func(id string) { w.must("approve", id, "--yes") },
					"status: approved\n\n", false, "approved"},
				{"modified", func(id string) {
					w.write("edit.json", fmt.Sprintf(`{"host": "h%d.example.com", "path_allowlist": ["/only/"]}`, n))
					w.must("modify", id, "--file", w.path("edit.json"), "--yes", "--notes", "just this")
				}, "status: modified\nnotes: just this\n" + modifiedLine + "\n", false, "modified"},
				{"rejected", func(id string) { w.must("reject", id, "--notes", "use the mirror") },
					"status: rejected\nnotes: use the mirror\n", true, "rejected"},
			}
			for _, tt := range tests {
				t.Run(tt.name, func(t *testing.T) {
					n++
					ch := call(fmt.Sprintf("h%d.example.com", n))
					id := w.queued(n)
					held(t, ch)
					tt.decide(id)
					a := get(t, ch)
					if !strings.HasPrefix(a.text, tt.want) || a.isError != tt.isError {
						t.Errorf("answer (error %v):\n%s\nwant it to begin with (error %v):\n%s", a.isError, a.text, tt.isError, tt.want)
					}
					meta, _ := a.meta["supervise/decision"].(map[string]any)
					if meta["status"] != tt.status || meta["proposal_id"] != id {
						t.Errorf("_meta has %v, want status %s of %s", meta, tt.status, id)
					}
					if live := strings.Contains(w.read("egress/routes.yaml"), fmt.Sprintf("h%d.example.com", n)); live == tt.isError {
						t.Errorf("after %s the route is there: %v", tt.name, live)
					}
				})
			}
		})
	}
	if got := w.must("audit", "verify"); !strings.Contains(got, "OK") {
		t.Errorf("audit verify says %s", got)
	}
}

// TestLoop: refused by a real proxy, asked, approved, live, through.
func TestLoop(t *testing.T) {
	for _, secure := range []bool{false, true} {
		t.Run(map[bool]string{false: "http", true: "https"}[secure], func(t *testing.T) {
			site, port := origin(t, secure, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				fmt.Fprintf(w, "%s %s", r.Host, r.URL.Path)
			}))
			w := newWorld(t)
			if secure {
				root := filepath.Join(t.TempDir(), "origin.pem")
				if err := os.WriteFile(root, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: site.Certificate().Raw}), 0o644); err != nil {
					t.Fatal(err)
				}
				w.env = append(w.env, "SSL_CERT_FILE="+root) // what the proxy trusts; httptest's certificate is for 127.0.0.1
			}
			w.startProxy("--ports", port)
			w.startSide()
			agent := w.agentHTTP()
			code, body := fetch(t, agent, site.URL+"/v1/x")
			if code != http.StatusForbidden || !strings.Contains(body, "egress-block") || !strings.Contains(body, `"host": "127.0.0.1"`) {
				t.Fatalf("before: %d\n%s\nwant 403 that names the tool and its arguments", code, body)
			}
			s := w.connect("2026-07-28")
			ch := ask(t.Context(), s, "egress-block", map[string]any{"host": "127.0.0.1", "path_allowlist": []string{"/v1/"}, "justification": "tests"})
			id := w.queued(1)
			out, errs, exit := w.run("approve", id, "--yes")
			if exit != 1 || !strings.Contains(errs, "loopback") {
				t.Fatalf("a loopback address is approved without naming the danger: exit %d\n%s%s", exit, out, errs)
			}
			held(t, ch)
			w.must("approve", id, "--yes", "--accept", "loopback,ip-literal")
			// The table is live before the agent has its answer, so it is now, however fast we look.
			if a := get(t, ask(t.Context(), s, "list-egress-routes", nil)); !strings.Contains(a.text, `"127.0.0.1"`) || a.isError {
				t.Errorf("list-egress-routes: %s", a.text)
			}
			if a := get(t, ch); !strings.HasPrefix(a.text, "status: approved\n") || !strings.Contains(a.text, "live now") {
				t.Errorf("answer: %s", a.text)
			}
			if code, body := fetch(t, agent, site.URL+"/v1/x"); code != http.StatusOK || !strings.HasSuffix(body, "/v1/x") {
				t.Errorf("after: %d %s", code, body)
			}
			if secure {
				w.openssl(site.URL + "/v1/x")
			}
			if code, _ := fetch(t, agent, site.URL+"/v2/x"); code != http.StatusForbidden {
				t.Errorf("another path: %d, want 403", code)
			}
			w.must("undo", id)
			if code, _ := fetch(t, agent, site.URL+"/v1/x"); code != http.StatusForbidden {
				t.Errorf("after undo: %d, want 403", code)
			}
		})
	}
}

// openssl fetches a page as programs do that are not written in Go: with OpenSSL, at its strictest.
func (w *world) openssl(page string) {
	w.t.Helper()
	cmd := exec.CommandContext(w.t.Context(), "python3", "-c", `
import ssl, sys, urllib.request as u
ctx = ssl.create_default_context(cafile=sys.argv[2])
ctx.verify_flags |= ssl.VERIFY_X509_STRICT
with u.build_opener(u.ProxyHandler({"https": sys.argv[1]}), u.HTTPSHandler(context=ctx)).open(sys.argv[3], timeout=60) as r:
    print(r.read().decode())
`, "http://"+w.proxyAt, w.path("ca/public/ca.pem"), page)
	out, err := cmd.CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		w.t.Fatal("python3 is missing: run '.ci/deps'")
	}
	if err != nil || !strings.HasSuffix(strings.TrimSpace(string(out)), "/v1/x") {
		w.t.Errorf("through OpenSSL: %v\n%s", err, out)
	}
}

// TestReloadKinds: each way of telling the proxy makes an approval live, and an open download survives it.
func TestReloadKinds(t *testing.T) {
	for _, kind := range []string{"none", "signal", "docker", "exec"} {
		t.Run(kind, func(t *testing.T) {
			more := make(chan string)
			site, port := origin(t, false, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.(http.Flusher).Flush()
				for {
					select {
					case part, ok := <-more:
						if !ok {
							return
						}
						io.WriteString(w, part)
						w.(http.Flusher).Flush()
					case <-r.Context().Done():
						return
					}
				}
			}))
			w := newWorld(t)
			w.write("egress/routes.yaml", "routes:\n  - host: 127.0.0.1\n")
			w.startProxy("--ports", port)
			pid := strconv.Itoa(w.proxy.cmd.Process.Pid)
			switch kind {
			case "signal":
				w.write("proxy.pid", pid+"\n")
				w.config("{signal: {pid_file: proxy.pid}}")
			case "docker": // the command line that a real engine gets, carried out by a stand-in
				w.write("docker", "#!/bin/sh\n[ \"$*\" = 'kill -s HUP egress-web' ] || exit 64\nexec kill -HUP "+pid+"\n")
				if err := os.Chmod(w.path("docker"), 0o755); err != nil {
					t.Fatal(err)
				}
				t.Setenv("PATH", w.dir+":"+os.Getenv("PATH"))
				w.config(`{docker: "egress-{slug}"}`)
			case "exec":
				w.config(`{exec: [sh, -c, "[ $1 = web ] && kill -HUP $2", sh, "{slug}", "` + pid + `"]}`)
			}
			w.startSide()
			resp, err := w.agentHTTP().Get(site.URL + "/download")
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			more <- "first,"
			first := make([]byte, 6)
			if _, err := io.ReadFull(resp.Body, first); err != nil {
				t.Fatal(err)
			}
			s := w.connect("2025-11-25")
			ch := ask(t.Context(), s, "egress-block", map[string]any{"host": "packages.acme.test", "justification": "tests"})
			w.must("approve", w.queued(1), "--yes")
			if a := get(t, ch); !strings.Contains(a.text, "live now") {
				t.Errorf("answer: %s", a.text)
			}
			more <- "second"
			close(more)
			rest, err := io.ReadAll(resp.Body)
			if err != nil || string(rest) != "second" {
				t.Errorf("the download that was open during the reload ends with %q, %v", rest, err)
			}
		})
	}
}

// A proxy that does not take the new table: everything is put back, the agent goes on waiting, the operator is told why.
func TestProxyThatDoesNotReload(t *testing.T) {
	w := newWorld(t)
	w.startProxy()
	w.startSide()
	other := newWorld(t) // its proxy has a table of its own
	other.startProxy()
	w.proxyAt = other.proxyAt
	w.config("none")
	before := w.read("egress/routes.yaml")
	ch := ask(t.Context(), w.connect("2026-07-28"), "egress-block", map[string]any{"host": "packages.acme.test", "justification": "tests"})
	id := w.queued(1)
	_, errs, code := w.run("approve", id, "--yes")
	if code != 1 || !strings.Contains(errs, "not seen live") || !strings.Contains(errs, "hint:") {
		t.Errorf("approve: exit %d\n%s", code, errs)
	}
	if got := w.read("egress/routes.yaml"); got != before {
		t.Errorf("routes.yaml is not as before:\n%s", got)
	}
	held(t, ch)
	items := w.open(1)
	if items[0].State != "failed" || !strings.Contains(items[0].Error, "not seen live") {
		t.Errorf("list shows %+v", items[0])
	}
	w.must("reject", id, "--notes", "the proxy is broken, try tomorrow")
	if a := get(t, ch); !a.isError || !strings.Contains(a.text, "try tomorrow") {
		t.Errorf("answer: %s", a.text)
	}
}

// TestDigest: an unrelated edit between show and approve does not matter, one of the touched entry does.
func TestDigest(t *testing.T) {
	w := newWorld(t)
	w.write("egress/routes.yaml", "routes:\n  - host: a.example.com\n    path_allowlist: [/x]\n")
	w.startProxy()
	w.startSide()
	s := w.connect("2026-07-28")
	ch := ask(t.Context(), s, "egress-block", map[string]any{"host": "a.example.com", "path_allowlist": []string{"/y/"}, "justification": "tests"})
	id := w.queued(1)
	digest := func() string {
		for line := range strings.Lines(w.must("show", id)) {
			if f := strings.Fields(line); len(f) == 2 && f[0] == "digest" {
				return f[1]
			}
		}
		t.Fatal("show prints no digest")
		return ""
	}
	d := digest()
	w.write("egress/routes.yaml", "routes:\n  - host: a.example.com\n    path_allowlist: [/x, /z]\n")
	out, errs, code := w.run("approve", id, "--digest", d)
	if code != 3 || !strings.Contains(out+errs, "/z") {
		t.Fatalf("the touched entry changed: exit %d, want 3 and what changed\n%s%s", code, out, errs)
	}
	held(t, ch)
	d = digest()
	w.write("egress/routes.yaml", "# new\nroutes:\n  - host: b.example.com\n  - host: a.example.com\n    path_allowlist: [/x, /z]\n")
	w.must("approve", id, "--digest", d)
	if a := get(t, ch); !strings.HasPrefix(a.text, "status: approved\n") {
		t.Errorf("answer: %s", a.text)
	}
	out, errs, code = w.run("approve", id, "--digest", d)
	if code != 4 || !strings.Contains(errs, "already approved by") {
		t.Errorf("a second approve: exit %d, want 4 and by whom\n%s%s", code, out, errs)
	}
}

// A SIGHUP that comes before the proxy is ready must not kill it, nor one to the sidecar at any time.
func TestSIGHUP(t *testing.T) {
	w := newWorld(t)
	w.startProxy()
	w.startSide()
	w.side.signal(syscall.SIGHUP)
	w.side.says(`(?i)(SIGHUP)`)
	if a := get(t, ask(t.Context(), w.connect("2026-07-28"), "list-egress-routes", nil)); a.isError {
		t.Errorf("after SIGHUP: %s", a.text)
	}
	for range 5 {
		p := start(t, nil, "egress", "--listen", "127.0.0.1:0", "--routes", w.path("egress/routes.yaml"))
		// Before the program's first line the kernel's default holds, and no program can change that.
		p.says("routes loaded")
		for p.running() && !strings.Contains(p.output(), "egress listening") {
			_ = p.cmd.Process.Signal(syscall.SIGHUP)
		}
		for range 100 {
			p.signal(syscall.SIGHUP)
		}
		p.says("egress listening")
		if code := p.end(syscall.SIGTERM); code != 0 {
			t.Errorf("exit %d after early SIGHUPs", code)
		}
	}
}

func (p *process) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}
