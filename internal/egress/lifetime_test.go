package egress

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestShutdown: requests in flight get their grace, everything else is cut at once, and nothing is left.
func TestShutdown(t *testing.T) {
	w := newWorld(t)
	release := make(chan struct{})
	w.serve("whole.example.com", "9.9.9.1", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		io.WriteString(rw, "begin\n")
		http.NewResponseController(rw).Flush()
		switch r.URL.Path {
		case "/finishes":
			<-release
			io.WriteString(rw, "end\n")
		case "/never":
			<-r.Context().Done()
		}
	}))
	for _, tt := range []struct {
		path  string
		grace time.Duration
		want  string
		ok    bool
	}{
		{"/finishes", 20 * time.Second, "end\n", true},
		{"/never", 20 * time.Millisecond, "", false},
	} {
		for _, mode := range []struct {
			scheme string
			withCA bool
		}{{"http", false}, {"https", true}} {
			t.Run(tt.path+" "+mode.scheme, func(t *testing.T) {
				release = make(chan struct{})
				p := w.start(table1, mode.withCA, Options{Timings: Timings{Grace: tt.grace}})
				p.connectTo("whole.example.com:443") // says nothing more
				p.raw("GET http://who")              // nor does this
				res, err := p.client().Get(mode.scheme + "://whole.example.com" + tt.path)
				if err != nil {
					t.Fatal(err)
				}
				defer res.Body.Close()
				br := bufio.NewReader(res.Body)
				if line, err := br.ReadString('\n'); line != "begin\n" {
					t.Fatalf("read %q, %v", line, err)
				}
				stopped := make(chan error, 1)
				go func() { stopped <- p.stop() }()
				until(t, "the listener to close", func() bool {
					c, err := net.Dial("tcp", p.Addr().String())
					if err == nil {
						c.Close()
					}
					return err != nil
				})
				close(release)
				rest, err := io.ReadAll(br)
				if string(rest) != tt.want || (err == nil) != tt.ok {
					t.Errorf("the rest = %q, %v; want %q and %v", rest, err, tt.want, tt.ok)
				}
				if err := <-stopped; err != nil {
					t.Errorf("Run = %v, want nil", err)
				}
			})
		}
	}
}

// TestNoLeak: after every kind of connection, goroutines are back where they were.
func TestNoLeak(t *testing.T) {
	w := newWorld(t)
	w.serve("whole.example.com", "9.9.9.1", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") == "" {
			return
		}
		c, buf, err := http.NewResponseController(rw).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		io.Copy(io.Discard, buf)
	}))
	before := runtime.NumGoroutine()
	for _, withCA := range []bool{false, true} {
		p := w.start(table1, withCA, Options{Timings: Timings{Grace: 10 * time.Millisecond}})
		var open []net.Conn
		for range 5 {
			c, _ := p.connectTo("whole.example.com:443")
			open = append(open, c)
			pool := p.caPool
			if !withCA {
				pool = w.originPEM
			}
			if err := tls.Client(c, &tls.Config{ServerName: "whole.example.com", RootCAs: pool}).Handshake(); err != nil {
				t.Fatal(err)
			}
			c = p.raw("GET http://whole.example.com/ HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
			open = append(open, c)
			if res, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || res.StatusCode != 101 {
				t.Fatalf("upgrade: %v, %v", res, err)
			}
		}
		if err := p.stop(); err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
		for _, c := range open {
			if _, err := io.Copy(io.Discard, c); err != nil && strings.Contains(err.Error(), "timeout") {
				t.Errorf("a connection is still open after Run: %v", err)
			}
			c.Close()
		}
		p.client().CloseIdleConnections()
	}
	var stacks string
	until(t, "goroutines to end", func() bool {
		buf := make([]byte, 1<<20)
		stacks = string(buf[:runtime.Stack(buf, true)])
		return runtime.NumGoroutine() <= before
	})
	if strings.Contains(stacks, "egress.(*Proxy)") {
		t.Errorf("goroutines of a proxy are left:\n%s", stacks)
	}
}

// TestIdleMakeWay: at the limit the longest idle connection makes way, whatever kind of idle it is; a request in progress,
// a tunnel and a WebSocket stay.
func TestIdleMakeWay(t *testing.T) {
	w := newWorld(t)
	arrived, release := make(chan struct{}, 1), make(chan struct{})
	w.serve("whole.example.com", "9.9.9.1", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hang" {
			arrived <- struct{}{}
			<-release
		}
		if r.Header.Get("Upgrade") != "" {
			rw.Header().Set("Connection", "Upgrade")
			rw.Header().Set("Upgrade", "websocket")
			rw.WriteHeader(http.StatusSwitchingProtocols)
			c, _, err := http.NewResponseController(rw).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			io.Copy(c, c)
		}
	}))
	const get = "GET http://_egress.local/health HTTP/1.1\r\nHost: x\r\n\r\n"
	status := func(c net.Conn, text string) (int, error) {
		if _, err := io.WriteString(c, text); err != nil {
			return 0, err
		}
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			return 0, err
		}
		_, err = io.Copy(io.Discard, res.Body)
		return res.StatusCode, err
	}
	secure := func(p *running, sni string) net.Conn {
		c, _ := p.connectTo(sni + ":443")
		pool := p.caPool
		if pool == nil {
			pool = w.originPEM
		}
		s := tls.Client(c, &tls.Config{ServerName: sni, RootCAs: pool})
		if err := s.Handshake(); err != nil {
			t.Fatal(err)
		}
		return s
	}
	idle := map[string]func(*running) net.Conn{
		"silent": func(p *running) net.Conn { return p.raw("") },
		"half a header": func(p *running) net.Conn {
			return p.raw("GET http://whole.example.com/ HTTP/1.1\r\nHo")
		},
		"kept alive": func(p *running) net.Conn {
			c := p.raw("")
			if n, err := status(c, get); n != 200 || err != nil {
				t.Fatal(n, err)
			}
			return c
		},
		"silent after CONNECT": func(p *running) net.Conn { c, _ := p.connectTo("whole.example.com:443"); return c },
	}
	inspected := map[string]func(*running) net.Conn{
		"silent after a handshake": func(p *running) net.Conn { return secure(p, "whole.example.com") },
		"kept alive inside CONNECT": func(p *running) net.Conn {
			c := secure(p, "whole.example.com")
			if n, err := status(c, "GET / HTTP/1.1\r\nHost: whole.example.com\r\n\r\n"); n != 200 || err != nil {
				t.Fatal(n, err)
			}
			return c
		},
	}
	for _, withCA := range []bool{false, true} {
		all := maps.Clone(idle)
		if withCA {
			maps.Copy(all, inspected)
		}
		for name, open := range all {
			p := w.start(table1, withCA, Options{MaxConns: 1})
			first := open(p)
			if n, err := status(p.raw(""), get); n != 200 || err != nil {
				t.Errorf("%s (CA %v): the next client gets %d, %v; want 200", name, withCA, n, err)
			}
			if rest, err := io.ReadAll(first); err == nil && len(rest) > 0 {
				t.Errorf("%s (CA %v): got %q, want the end of the connection", name, withCA, rest)
			} else if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
				t.Errorf("%s (CA %v) is still open", name, withCA)
			}
		}

		// These stay.
		p := w.start(table1, withCA, Options{MaxConns: 3})
		busy := p.raw("GET http://whole.example.com/hang HTTP/1.1\r\nHost: x\r\n\r\n")
		<-arrived
		socket := p.raw("GET http://whole.example.com/ HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		back := bufio.NewReader(socket)
		if res, err := http.ReadResponse(back, nil); err != nil || res.StatusCode != 101 {
			t.Fatalf("upgrade: %v, %v", res, err)
		}
		third := secure(p, "whole.example.com")
		const inside = "GET / HTTP/1.1\r\nHost: whole.example.com\r\n\r\n"
		if n, err := status(third, inside); n != 200 || err != nil {
			t.Errorf("inside CONNECT: %d, %v", n, err)
		}
		if withCA { // it is idle now, and makes way
			if n, err := status(p.raw(""), get); n != 200 || err != nil {
				t.Errorf("the next client gets %d, %v; want 200", n, err)
			}
		} else { // what is in a tunnel is not seen: it stays, and the next client waits until the request is over
			next := p.raw("")
			answered := make(chan error, 1)
			go func() { _, err := status(next, get); answered <- err }()
			if n, err := status(third, inside); n != 200 || err != nil {
				t.Errorf("through the tunnel: %d, %v", n, err)
			}
			select {
			case err := <-answered:
				t.Errorf("a fourth client was served (%v) while three were busy", err)
			default:
			}
			release <- struct{}{}
			if err := <-answered; err != nil {
				t.Errorf("the fourth client, once there was room: %v", err)
			}
		}
		if _, err := io.WriteString(socket, "x"); err != nil {
			t.Error(err)
		}
		if b, err := back.ReadByte(); b != 'x' || err != nil {
			t.Errorf("through the WebSocket: %q, %v", b, err)
		}
		if withCA {
			release <- struct{}{}
			if n, err := status(busy, ""); n != 200 || err != nil {
				t.Errorf("the request in progress: %d, %v", n, err)
			}
		}
	}
}

// TestHeaderLimits: a header that is too big, of too many lines or too slow ends the connection, and what an origin answers with
// such a one is not passed on.
func TestHeaderLimits(t *testing.T) {
	w := newEchoWorld(t)
	w.serve("big.example.com", "9.9.9.20", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header()["X-Big"] = []string{strings.Repeat("a", maxResponseHeader)}
	}))
	w.serve("lines.example.com", "9.9.9.21", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header()["X-Line"] = make([]string, maxFields)
	}))
	w.serve("trailers.example.com", "9.9.9.22", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		for i := range maxFields {
			rw.Header().Add("Trailer", fmt.Sprint("X-", i))
		}
	}))
	p := w.start(table1+"  - host: big.example.com\n  - host: lines.example.com\n  - host: trailers.example.com\n", true, Options{})
	get := func(host string) string { return "GET http://" + host + "/ HTTP/1.1\r\nHost: x\r\n" }
	var names []string
	for i := range maxFields + 1 {
		names = append(names, fmt.Sprint("X-", i))
	}
	const unsent = "Content-Length: 100\r\n" // its body does not come
	for _, tt := range []struct {
		name, request string
		want          int
	}{
		{"few", get("whole.example.com") + strings.Repeat("X-Line:\r\n", maxFields), 200},
		{"large", get("whole.example.com") + "X-Big: " + strings.Repeat("a", maxHeader-100) + "\r\n", 200},
		{"too large", get("whole.example.com") + "X-Big: " + strings.Repeat("a", maxHeader+4<<10) + "\r\n", 431},
		{"too many", get("whole.example.com") + strings.Repeat("X-Line:\r\n", maxFields+1), 431},
		{"too many, refused besides", get("new.example.com") + strings.Repeat("X-Line:\r\n", maxFields+1), 431},
		{"too many, and a large body", "POST" + get("whole.example.com")[3:] + "Expect: 100-continue\r\n" + unsent + strings.Join(names, ":\r\n") + ":\r\n", 431},
		{"too many trailers", "POST" + get("whole.example.com")[3:] + "Expect: 100-continue\r\nTransfer-Encoding: chunked\r\nTrailer: " + strings.Join(names, ",") + "\r\n", 431},
		{"a large answer", get("big.example.com"), 502},
		{"an answer of many lines", get("lines.example.com"), 502},
		{"an answer of many trailers", get("trailers.example.com"), 502},
	} {
		res, err := http.ReadResponse(bufio.NewReader(p.raw(tt.request+"\r\n")), nil)
		if err != nil {
			t.Fatal(err)
		}
		if res.StatusCode != tt.want || tt.want == 431 && !res.Close {
			t.Errorf("%s = %s, close %v; want %d", tt.name, res.Status, res.Close, tt.want)
		}
	}
	p = w.start(table1, true, Options{Timings: Timings{Header: 50 * time.Millisecond}})
	c := p.raw("GET http://whole.example.com/ HTTP/1.1\r\nHost")
	if rest, err := io.ReadAll(c); err != nil || strings.Contains(string(rest), " 200 ") {
		t.Errorf("half a header: %q, %v; want the end of the connection", rest, err)
	}
	c, _ = p.connectTo("whole.example.com:443")
	if rest, err := io.ReadAll(c); err != nil || len(rest) > 0 {
		t.Errorf("a silent tunnel: %q, %v; want the end of the connection", rest, err)
	}
}

// TestBigBody: what is far bigger than any buffer arrives whole.
func TestBigBody(t *testing.T) {
	const size = 64 << 20
	w := newWorld(t)
	w.serve("whole.example.com", "9.9.9.1", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if err := http.NewResponseController(rw).EnableFullDuplex(); err != nil {
			t.Error(err)
		}
		n, err := io.Copy(rw, io.LimitReader(r.Body, size+1))
		if err != nil || n != size {
			t.Errorf("the origin copied %d, %v; want %d", n, err, size)
		}
	}))
	p := w.start(table1, true, Options{})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	res, err := p.client().Post("https://whole.example.com/", "application/octet-stream", io.LimitReader(zeros{}, size))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if n, err := io.Copy(io.Discard, res.Body); err != nil || n != size {
		t.Errorf("read %d, %v; want %d", n, err, size)
	}
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapInuse) - int64(before.HeapInuse); grown > size/2 {
		t.Errorf("the heap grew by %d bytes, want streaming", grown)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func TestEnsureCA(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "public", "ca.pem"), filepath.Join(dir, "secret", "ca.key")
	if err := EnsureCA(cert, key); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]os.FileMode{cert: 0o644, key: 0o600} {
		st, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode() != want {
			t.Errorf("%s has mode %v, want %v", name, st.Mode(), want)
		}
	}
	read := func(name string) []byte {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	cert1, key1 := read(cert), read(key)
	if err := EnsureCA(cert, key); err != nil || !bytes.Equal(read(cert), cert1) || !bytes.Equal(read(key), key1) {
		t.Errorf("once more: %v; want the same files", err)
	}
	// A crash between the two leaves the key.
	if err := os.Remove(cert); err != nil {
		t.Fatal(err)
	}
	if err := EnsureCA(cert, key); err != nil || !bytes.Equal(read(key), key1) {
		t.Errorf("with the key alone: %v; want a certificate for that key", err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*", ".*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	otherCert, otherKey := filepath.Join(dir, "other.pem"), filepath.Join(dir, "other.key")
	if err := EnsureCA(otherCert, otherKey); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "junk"), []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, cert, key, want string }{
		{"other key", cert, otherKey, "is not for the key"},
		{"no key", cert, filepath.Join(dir, "none"), "no such file"},
		{"junk key", cert, filepath.Join(dir, "junk"), "no PEM in it"},
		{"certificate as key", cert, otherCert, "not a private key"},
		{"junk certificate", filepath.Join(dir, "junk"), key, "no PEM certificate in it"},
		{"no issuer", issuedByNobody(t, dir, key), key, "names no issuer"},
	} {
		if err := EnsureCA(tt.cert, tt.key); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want an error with %q", tt.name, err, tt.want)
		}
	}
}

// TestEnsureCAAtOnce: whoever else starts with the same directories gets the same CA.
func TestEnsureCAAtOnce(t *testing.T) {
	for range 5 {
		dir := t.TempDir()
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				if err := EnsureCA(filepath.Join(dir, "public", "ca.pem"), filepath.Join(dir, "secret", "ca.key")); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
}

// issuedByNobody is such a certificate as this package once made: Go and curl trust it, OpenSSL finds no issuer.
func issuedByNobody(t *testing.T, dir, keyFile string) string {
	t.Helper()
	key, err := loadKey(keyFile)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "old"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, &x509.Certificate{}, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "old.pem")
	if err := create(name, "CERTIFICATE", der, 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

// A root is its own issuer, by name too: whoever builds chains as OpenSSL does looks for that.
func TestCAIsARoot(t *testing.T) {
	ca, _ := newCA(t, t.TempDir())
	if !bytes.Equal(ca.cert.RawIssuer, ca.cert.RawSubject) || len(ca.cert.Subject.Names) == 0 {
		t.Errorf("subject %q, issuer %q, want one name", ca.cert.Subject, ca.cert.Issuer)
	}
	if err := ca.cert.CheckSignatureFrom(ca.cert); err != nil {
		t.Error(err)
	}
	leaf, err := ca.leaf("example.com")
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(leaf.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(c.RawIssuer, ca.cert.RawSubject) || len(c.AuthorityKeyId) == 0 || !bytes.Equal(c.AuthorityKeyId, ca.cert.SubjectKeyId) {
		t.Errorf("the leaf's issuer is %q with key %x, want %q with %x", c.Issuer, c.AuthorityKeyId, ca.cert.Subject, ca.cert.SubjectKeyId)
	}
}

func TestLeaves(t *testing.T) {
	ca, pool := newCA(t, t.TempDir())
	for _, host := range []string{"example.com", "my_bucket.example.com", "127.0.0.1", "::1", strings.Repeat("a.", 40) + "example.com"} {
		leaf, err := ca.leaf(host)
		if err != nil {
			t.Fatal(err)
		}
		a, b := net.Pipe()
		go func() {
			s := tls.Server(a, &tls.Config{Certificates: []tls.Certificate{*leaf}})
			s.Handshake()
			a.Close()
		}()
		if err := tls.Client(b, &tls.Config{ServerName: host, RootCAs: pool}).HandshakeContext(context.Background()); err != nil {
			t.Errorf("handshake with %s: %v", host, err)
		}
		b.Close()
		if again, err := ca.leaf(host); err != nil || again != leaf {
			t.Errorf("leaf(%s) was minted twice (%v)", host, err)
		}
	}
	for i := range leafMax + 10 {
		if _, err := ca.leaf(fmt.Sprintf("h%d.example.com", i)); err != nil {
			t.Fatal(err)
		}
	}
	if len(ca.leaves) != leafMax || ca.recent.Len() != leafMax {
		t.Errorf("%d leaves in the map, %d in the list; want %d", len(ca.leaves), ca.recent.Len(), leafMax)
	}
}
