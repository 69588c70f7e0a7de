package egress

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// world is a small internet: names, their addresses, and servers that listen on loopback in
// truth. It remembers what was resolved and dialled.
type world struct {
	t         *testing.T
	originCA  *authority
	originPEM *x509.CertPool

	mu      sync.Mutex
	names   map[string][]netip.Addr // guarded by mu
	servers map[string]string       // guarded by mu; dialled address to true address
	dialled []string                // guarded by mu
	looked  []string                // guarded by mu
}

func newWorld(t *testing.T) *world {
	t.Helper()
	ca, pool := newCA(t, t.TempDir())
	return &world{t: t, originCA: ca, originPEM: pool, names: map[string][]netip.Addr{}, servers: map[string]string{}}
}

// newCA makes a CA in dir, as ca.pem and ca.key.
func newCA(t *testing.T, dir string) (*authority, *x509.CertPool) {
	t.Helper()
	cert, key := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca.key")
	if err := EnsureCA(cert, key); err != nil {
		t.Fatal(err)
	}
	ca, err := loadCA(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	return ca, pool
}

func (w *world) resolve(_ context.Context, host string) ([]netip.Addr, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.looked = append(w.looked, host)
	if a, ok := w.names[host]; ok {
		return a, nil
	}
	return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
}

func (w *world) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	w.mu.Lock()
	w.dialled = append(w.dialled, addr)
	to, ok := w.servers[addr]
	w.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("dial %s: connection refused", addr)
	}
	return new(net.Dialer).DialContext(ctx, network, to)
}

// touched is every address that was dialled and every name that was resolved.
func (w *world) touched() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append(append([]string(nil), w.looked...), w.dialled...)
}

// serve puts a host with ports 80 and 443 into the world.
func (w *world) serve(host, addr string, h http.Handler) {
	w.t.Helper()
	plain := httptest.NewServer(h)
	w.t.Cleanup(plain.Close)
	secure := httptest.NewUnstartedServer(h)
	leaf, err := w.originCA.leaf(host)
	if err != nil {
		w.t.Fatal(err)
	}
	secure.TLS = &tls.Config{Certificates: []tls.Certificate{*leaf}}
	secure.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	secure.StartTLS()
	w.t.Cleanup(secure.Close)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.names[host] = []netip.Addr{netip.MustParseAddr(addr)}
	w.servers[net.JoinHostPort(addr, "80")] = plain.Listener.Addr().String()
	w.servers[net.JoinHostPort(addr, "443")] = secure.Listener.Addr().String()
}

// running is a proxy under test.
type running struct {
	*Proxy
	t      *testing.T
	file   string
	log    *lockedBuffer
	caPool *x509.CertPool // nil: no CA
	stop   func() error   // once more is harmless
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// start runs a proxy in the world, with a CA if asked for, until the test ends.
func (w *world) start(routes string, withCA bool, opts Options) *running {
	w.t.Helper()
	r := &running{t: w.t, file: filepath.Join(w.t.TempDir(), "routes.yaml"), log: new(lockedBuffer)}
	if err := os.WriteFile(r.file, []byte(routes), 0o644); err != nil {
		w.t.Fatal(err)
	}
	opts.Addr, opts.RoutesFile = "127.0.0.1:0", r.file
	opts.Logger = slog.New(slog.NewTextHandler(io.MultiWriter(r.log, w.t.Output()), &slog.HandlerOptions{Level: slog.LevelDebug}))
	opts.Resolve, opts.Dial, opts.RootCAs = w.resolve, w.dial, w.originPEM
	if withCA {
		dir := w.t.TempDir()
		_, r.caPool = newCA(w.t, dir)
		opts.CACert, opts.CAKey = filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca.key")
	}
	p, err := New(opts)
	if err != nil {
		w.t.Fatal(err)
	}
	r.Proxy = p
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	r.stop = sync.OnceValue(func() error { cancel(); return <-ended })
	w.t.Cleanup(func() {
		if err := r.stop(); err != nil {
			w.t.Errorf("Run = %v, want nil", err)
		}
	})
	return r
}

// client sends everything through the proxy, trusting its CA and the world's.
func (r *running) client() *http.Client {
	pool := r.caPool
	if pool == nil {
		pool = r.opts.RootCAs
	}
	tr := &http.Transport{
		Proxy:           http.ProxyURL(&url.URL{Scheme: "http", Host: r.Addr().String()}),
		TLSClientConfig: &tls.Config{RootCAs: pool},
	}
	r.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// rewrite replaces the routes file by rename.
func (r *running) rewrite(routes string) {
	r.t.Helper()
	if err := os.WriteFile(r.file+".new", []byte(routes), 0o644); err != nil {
		r.t.Fatal(err)
	}
	if err := os.Rename(r.file+".new", r.file); err != nil {
		r.t.Fatal(err)
	}
}

// raw sends text to the proxy on a connection of its own and returns that, for what comes back.
func (r *running) raw(text string) net.Conn {
	r.t.Helper()
	c, err := net.Dial("tcp", r.Addr().String())
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(c, text); err != nil {
		r.t.Fatal(err)
	}
	return c
}

// until waits for a condition that another goroutine brings about.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("still waiting after 20 s: %s", what)
		}
	}
}

// ask returns an answer's status, refusal kind and body.
func ask(t *testing.T, c *http.Client, method, url string) (status int, kind, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := c.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	return answer(t, res)
}

func answer(t *testing.T, res *http.Response) (status int, kind, body string) {
	t.Helper()
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, res.Header.Get(Header), string(b)
}
