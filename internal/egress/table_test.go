package egress

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func sha(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

// TestAllowlist: what operators and agents read, byte for byte, wherever it is asked.
func TestAllowlist(t *testing.T) {
	w := newWorld(t)
	p := w.start(table1+"  - host: _egress.local\n", true, Options{Env: env})
	_, _, viaProxy := ask(t, p.client(), "GET", "http://_egress.local/allowlist")
	golden(t, "allowlist.json", viaProxy)
	for _, tt := range []struct {
		name   string
		client *http.Client
		url    string
	}{
		{"at the listener", http.DefaultClient, "http://" + p.Addr().String() + "/allowlist"},
		{"over TLS", p.client(), "https://_egress.local/allowlist"},
		{"odd spelling", p.client(), "http://_EGRESS.local.:80/allowlist"},
	} {
		if status, _, body := ask(t, tt.client, "GET", tt.url); status != 200 || body != viaProxy {
			t.Errorf("%s: %d\n%s\nwant the same as through the proxy", tt.name, status, body)
		}
	}
	for _, tt := range []struct {
		method, url string
		status      int
	}{
		{"POST", "http://_egress.local/allowlist", 405},
		{"GET", "http://_egress.local/", 404},
		{"GET", "http://_egress.local/health", 200},
	} {
		if status, _, _ := ask(t, p.client(), tt.method, tt.url); status != tt.status {
			t.Errorf("%s %s = %d, want %d", tt.method, tt.url, status, tt.status)
		}
	}
	if touched := w.touched(); len(touched) > 0 {
		t.Errorf("resolved and dialled %v, want nothing", touched)
	}
	http.DefaultClient.CloseIdleConnections()
}

// TestRebindingOfTheListener: a site that points its own name at the listener learns nothing of the table; whoever asks
// by address, by a container's name or through the proxy does.
func TestRebindingOfTheListener(t *testing.T) {
	p := newWorld(t).start(tableA, false, Options{})
	p.opts.Addr = "proxy.corp.example:9099" // as if it had been listened on
	for _, tt := range []struct {
		path, host, header string
		status             int
	}{
		{"/allowlist", "attacker.example:9099", "", 403},
		{"/allowlist", "attacker.example.", "", 403},
		{"/allowlist", "127.0.0.1.attacker.example", "", 403},
		{"/allowlist", "_egress.local.attacker.example", "", 403},
		{"/", "attacker.example:9099", "", 403},
		{"/health", "attacker.example:9099", "", 200},
		{"/allowlist", "127.0.0.1:9099", "Origin: http://attacker.example", 403},
		{"/allowlist", "127.0.0.1:9099", "Origin: null", 403},
		{"/health", "127.0.0.1:9099", "Origin: http://attacker.example", 403},
		{"/allowlist", "127.0.0.1:9099", "", 200},
		{"/allowlist", "10.1.2.3", "", 200},
		{"/allowlist", "[::1]:9099", "", 200},
		{"/allowlist", "[::1]", "", 200},
		{"/allowlist", "LocalHost:9099", "", 200},
		{"/allowlist", "egress:9099", "", 200},
		{"/allowlist", "_Egress.local.", "", 200},
		{"/allowlist", "proxy.corp.example:9099", "", 200},
		{"http://_egress.local/allowlist", "attacker.example:9099", "Origin: http://attacker.example", 200}, // a proxy's request: the URL governs
	} {
		text := "GET " + tt.path + " HTTP/1.1\r\nHost: " + tt.host + "\r\n"
		if tt.header != "" {
			text += tt.header + "\r\n"
		}
		res, err := http.ReadResponse(bufio.NewReader(p.raw(text+"\r\n")), nil)
		if err != nil {
			t.Fatal(err)
		}
		status, _, body := answer(t, res)
		if status != tt.status || status != 200 && strings.Contains(body, "a.example.com") {
			t.Errorf("GET %s, Host %s, %q = %d %q, want %d", tt.path, tt.host, tt.header, status, body, tt.status)
		}
	}
}

func (r *running) list() allowlist {
	r.t.Helper()
	c := r.client()
	defer c.CloseIdleConnections() // it is asked many times over
	_, _, body := ask(r.t, c, "GET", "http://_egress.local/allowlist")
	var a allowlist
	if err := json.Unmarshal([]byte(body), &a); err != nil {
		r.t.Fatal(err)
	}
	return a
}

const (
	tableA = "routes:\n  - host: a.example.com\n"
	tableB = "routes:\n  - host: a.example.com\n  - host: b.example.com\n"
)

// TestReload: each way a file changes, and each way it can be wrong.
func TestReload(t *testing.T) {
	for _, tt := range []struct {
		name   string
		poll   time.Duration // an hour: only events and signals are left
		change func(t *testing.T, p *running, hup chan<- os.Signal)
		want   string // the table in force afterwards
		err    string // in last_error; "": none
	}{
		{"renamed over", time.Hour, func(t *testing.T, p *running, _ chan<- os.Signal) { p.rewrite(tableB) }, tableB, ""},
		{"written in place", time.Hour, func(t *testing.T, p *running, _ chan<- os.Signal) {
			if err := os.WriteFile(p.file, []byte(tableB), 0o644); err != nil {
				t.Fatal(err)
			}
		}, tableB, ""},
		{"signal", time.Hour, func(t *testing.T, p *running, hup chan<- os.Signal) { p.rewrite(tableB); hup <- syscall.SIGHUP }, tableB, ""},
		{"poll", time.Millisecond, func(t *testing.T, p *running, _ chan<- os.Signal) { p.rewrite(tableB) }, tableB, ""},
		{"through a symlink elsewhere", time.Millisecond, func(t *testing.T, p *running, _ chan<- os.Signal) {
			other := t.TempDir() + "/other.yaml"
			if err := os.WriteFile(other, []byte(tableA), 0o644); err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(p.file); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(other, p.file); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(other+".new", []byte(tableB), 0o644); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(other+".new", other); err != nil {
				t.Fatal(err)
			}
		}, tableB, ""},
		{"invalid", time.Hour, func(t *testing.T, p *running, _ chan<- os.Signal) { p.rewrite("routes: [\n") }, tableA, "routes.yaml: line "},
		{"no routes.yaml any more", time.Hour, func(t *testing.T, p *running, _ chan<- os.Signal) {
			if err := os.Remove(p.file); err != nil {
				t.Fatal(err)
			}
		}, tableA, "routes.yaml: no such file or directory"},
		{"too big", time.Hour, func(t *testing.T, p *running, _ chan<- os.Signal) { p.rewrite(strings.Repeat("#\n", 1<<20)) }, tableA, "routes.yaml: over 262144 bytes"},
		{"a directory", time.Millisecond, func(t *testing.T, p *running, _ chan<- os.Signal) {
			if err := os.Remove(p.file); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(p.file, 0o755); err != nil {
				t.Fatal(err)
			}
		}, tableA, "routes.yaml: not a regular file"},
		{"a FIFO", time.Millisecond, func(t *testing.T, p *running, _ chan<- os.Signal) {
			if err := os.Remove(p.file); err != nil {
				t.Fatal(err)
			}
			if err := syscall.Mkfifo(p.file, 0o644); err != nil {
				t.Fatal(err)
			}
		}, tableA, "routes.yaml: not a regular file"},
		{"invalid and mended", time.Hour, func(t *testing.T, p *running, _ chan<- os.Signal) {
			p.rewrite("routes: [\n")
			until(t, "the error to show", func() bool { return p.list().LastError != nil })
			p.rewrite(tableB)
		}, tableB, ""},
		{"invalid and as before", time.Hour, func(t *testing.T, p *running, _ chan<- os.Signal) {
			p.rewrite("routes: [\n")
			until(t, "the error to show", func() bool { return p.list().LastError != nil })
			p.rewrite(tableA)
		}, tableA, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			hup := make(chan os.Signal, 1)
			p := newWorld(t).start(tableA, false, Options{HUP: hup, Timings: Timings{Poll: tt.poll}})
			before := p.list()
			if before.Generation != 1 || before.SHA256 != sha(tableA) || before.LastError != nil {
				t.Fatalf("at first: %+v, want generation 1 of table A", before)
			}
			tt.change(t, p, hup)
			until(t, "the change to show", func() bool {
				a := p.list()
				if tt.err == "" {
					return a.LastError == nil && a.SHA256 == sha(tt.want)
				}
				return a.LastError != nil && strings.HasPrefix(*a.LastError, tt.err)
			})
			after := p.list()
			generation, hosts := 1, 1
			if tt.want == tableB {
				generation, hosts = 2, 2
			}
			if tt.name == "written in place" { // empty in between, and perhaps seen so
				generation = max(generation, after.Generation)
			}
			if after.SHA256 != sha(tt.want) || after.Generation != generation || len(after.Routes) != hosts {
				t.Errorf("afterwards: %+v, want generation %d with %d hosts and sha256 %s", after, generation, hosts, sha(tt.want))
			}
		})
	}
}

// TestStartsWithoutRoutes: refuses everything, says why, and needs no restart.
func TestStartsWithoutRoutes(t *testing.T) {
	w := newEchoWorld(t)
	p := w.start("routes: 5\n", false, Options{})
	a := p.list()
	if a.Generation != 0 || a.SHA256 != "" || a.LastError == nil || len(a.Routes) != 0 {
		t.Errorf("allowlist = %+v, want no routes, generation 0 and an error", a)
	}
	if status, kind, _ := ask(t, p.client(), "GET", "http://whole.example.com/"); status != 403 || kind != "host" {
		t.Errorf("GET = %d %q, want 403 host", status, kind)
	}
	p.rewrite(table1)
	until(t, "the mended table", func() bool { return p.list().Generation == 1 })
	if status, _, body := ask(t, p.client(), "GET", "http://whole.example.com/"); status != 200 {
		t.Errorf("GET = %d %q, want 200", status, body)
	}
}

// TestReloadKeepsConnections: a download and a tunnel outlive the route they came by; the next request does not.
func TestReloadKeepsConnections(t *testing.T) {
	w := newWorld(t)
	more := make(chan string)
	w.serve("a.example.com", "9.9.9.1", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		for s := range more {
			io.WriteString(rw, s)
			http.NewResponseController(rw).Flush()
		}
	}))
	for _, mode := range []struct {
		scheme string
		withCA bool
	}{{"http", false}, {"https", false}, {"https", true}} {
		t.Run(fmt.Sprint(mode), func(t *testing.T) {
			more = make(chan string)
			p := w.start(tableA, mode.withCA, Options{})
			c := p.client()
			began := make(chan struct{})
			go func() { more <- "before\n"; close(began) }()
			res, err := c.Get(mode.scheme + "://a.example.com/")
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			br := bufio.NewReader(res.Body)
			if line, err := br.ReadString('\n'); err != nil || line != "before\n" {
				t.Fatalf("read %q, %v", line, err)
			}
			<-began
			p.rewrite("routes: []\n")
			until(t, "the empty table", func() bool { return p.list().Generation == 2 })
			more <- "after\n"
			close(more)
			if rest, err := io.ReadAll(br); err != nil || string(rest) != "after\n" {
				t.Errorf("after the reload: %q, %v; want the rest of the download", rest, err)
			}
			if mode.scheme == "https" && !mode.withCA {
				return // what is in a tunnel is not seen
			}
			// On the same, kept-alive connection.
			if status, kind, _ := ask(t, c, "GET", mode.scheme+"://a.example.com/"); status != 403 || kind != "host" {
				t.Errorf("next GET = %d %q, want 403 host", status, kind)
			}
		})
	}
}

// TestEarlyHUP: a signal that came before Run is a reload, and one in flight does no harm.
func TestEarlyHUP(t *testing.T) {
	hup := make(chan os.Signal, 1)
	hup <- syscall.SIGHUP
	p := newWorld(t).start(tableA, false, Options{HUP: hup, Timings: Timings{Poll: time.Hour}})
	until(t, "the signal to be taken", func() bool { return strings.Contains(p.log.String(), "reload asked for by signal") })
	if a := p.list(); a.Generation != 1 {
		t.Errorf("generation %d, want 1: the file is the same", a.Generation)
	}
}

func TestNewRefuses(t *testing.T) {
	dir := t.TempDir()
	ln := newWorld(t).start(tableA, false, Options{})
	for _, tt := range []struct {
		name string
		opts Options
		want string
	}{
		{"no routes", Options{}, "egress: RoutesFile is empty: name the file with the routes"},
		{"half a CA", Options{RoutesFile: "x", CACert: "x"}, "egress: a CA needs both its certificate and its key, or neither"},
		{"no CA there", Options{RoutesFile: "x", CACert: dir + "/no.pem", CAKey: dir + "/no.key"}, "egress: CA key: open " + dir + "/no.key: no such file or directory"},
		{"port", Options{RoutesFile: "x", Ports: []int{80, 65536}}, "egress: port 65536 must be between 1 and 65535"},
		{"private", Options{RoutesFile: "x", AllowPrivate: []string{"10.0.0.0/8"}}, `egress: allow-private "10.0.0.0/8" must be a host name or an IP address`},
		{"connections", Options{RoutesFile: "x", MaxConns: -1}, "egress: max-conns -1 must be positive"},
		{"taken", Options{RoutesFile: "x", Addr: ln.Addr().String()}, "egress: listening on " + ln.Addr().String() + ": listen tcp " + ln.Addr().String() + ": bind: address already in use"},
	} {
		_, err := New(tt.opts)
		if err == nil {
			t.Errorf("%s: New succeeded, want %s", tt.name, tt.want)
		} else if diff := cmp.Diff(tt.want, err.Error()); diff != "" {
			t.Errorf("%s: (-want +got):\n%s", tt.name, diff)
		}
	}
}
