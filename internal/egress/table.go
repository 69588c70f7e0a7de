package egress

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/bot-bottle/supervise/internal/routes"
)

// state is the table in force. It is never changed, only replaced.
type state struct {
	table      routes.Table
	byHost     map[string]*routes.Route // by routes.Key
	generation int                      // 0: nothing was ever loaded
	sha256     string                   // of the bytes in force; "" at generation 0
	lastError  string                   // why the file as it is now is not in force; "" if it is
}

func (st *state) parse(data []byte) (err error) {
	if st.table, err = routes.Parse(data); err != nil {
		return err
	}
	st.byHost = make(map[string]*routes.Route, len(st.table.Routes))
	for i := range st.table.Routes {
		r := &st.table.Routes[i]
		st.byHost[routes.Key(r.Host)] = r
	}
	return nil
}

type table struct {
	file string
	mu   sync.Mutex // one reload at a time
	now  atomic.Pointer[state]
}

func (t *table) load() *state {
	if st := t.now.Load(); st != nil {
		return st
	}
	return new(state)
}

// reload tells whether anything differs from the last time: another table, or another error.
func (t *table) reload() (changed bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.load()
	next := *old
	data, err := readRoutes(t.file)
	if err == nil {
		sum := sha256.Sum256(data)
		if next.sha256 = hex.EncodeToString(sum[:]); next.sha256 != old.sha256 {
			next.generation++
			err = next.parse(data)
		}
	}
	if err != nil {
		// The base name only: a bottle reads last_error, and the host's directories are not its affair.
		err = fmt.Errorf("%s: %w", filepath.Base(t.file), err)
		next = *old
		next.lastError = err.Error()
	} else {
		next.lastError = ""
	}
	t.now.Store(&next)
	return next.generation != old.generation || next.lastError != old.lastError, err
}

func readRoutes(name string) ([]byte, error) {
	// Nonblocking: a FIFO in its place must not hang us.
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, cause(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, cause(err)
	}
	if !st.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	data, err := io.ReadAll(io.LimitReader(f, routes.MaxFile+1))
	if err != nil {
		return nil, cause(err)
	}
	if len(data) > routes.MaxFile {
		return nil, fmt.Errorf("over %d bytes", routes.MaxFile)
	}
	return data, nil
}

// cause drops the path of a PathError.
func cause(err error) error {
	if pe, ok := errors.AsType[*os.PathError](err); ok {
		return pe.Err
	}
	return err
}

// watch reloads on a signal, on any event in the file's directory (it is replaced by rename, perhaps through a
// symlink beside it), and on every poll, which reads and hashes the file: some mounts announce nothing.
func (p *Proxy) watch(ctx context.Context) {
	var events chan fsnotify.Event
	var failures chan error
	w, err := fsnotify.NewWatcher()
	if err == nil {
		defer w.Close()
		events, failures = w.Events, w.Errors
		err = w.Add(filepath.Dir(p.opts.RoutesFile))
	}
	if err != nil {
		p.log.Warn("routes are not watched, only polled", "file", p.opts.RoutesFile, "err", err)
	}
	poll := time.NewTicker(p.opts.Timings.Poll)
	defer poll.Stop()
	// A file that is written in place is empty for a moment, which is a table that allows nothing.
	const settle = 10 * time.Millisecond
	var settled <-chan time.Time // nil: no event since the last reload
	hup := p.opts.HUP
	p.Reload() // what changed between New and the watch
	for {
		select {
		case <-ctx.Done():
			return
		case _, ok := <-hup:
			if !ok {
				hup = nil
				continue
			}
			p.log.Info("reload asked for by signal")
			p.Reload()
		case _, ok := <-events:
			if !ok {
				events = nil
				continue
			}
			if settled == nil {
				settled = time.After(settle)
			}
		case <-settled:
			settled = nil
			p.Reload()
		case err, ok := <-failures:
			if !ok {
				failures = nil
				continue
			}
			p.log.Warn("watching routes", "err", err)
			p.Reload() // an overflow dropped events
		case <-poll.C:
			p.Reload()
		}
	}
}

// The answer of http://_egress.local/allowlist. Names and types are a contract with operators and agents.
type allowlist struct {
	Routes     []allowedRoute `json:"routes"`
	Generation int            `json:"generation"`
	SHA256     string         `json:"sha256"`
	LastError  *string        `json:"last_error"`
}

type allowedRoute struct {
	Host          string   `json:"host"`
	PathAllowlist []string `json:"path_allowlist"`
	Auth          bool     `json:"auth"`
	Token         string   `json:"token"` // none, present or missing
}

func (p *Proxy) allowlist() allowlist {
	st := p.table.load()
	a := allowlist{Routes: []allowedRoute{}, Generation: st.generation, SHA256: st.sha256}
	if st.lastError != "" {
		a.LastError = &st.lastError
	}
	for _, r := range st.table.Routes {
		ar := allowedRoute{Host: routes.Key(r.Host), PathAllowlist: append([]string{}, r.PathAllowlist...), Token: "none"}
		if r.Auth != nil {
			ar.Auth, ar.Token = true, "present"
			if _, err := p.credential(r.Auth); err != nil {
				ar.Token = "missing"
			}
		}
		a.Routes = append(a.Routes, ar)
	}
	return a
}

// serveDirect answers what is asked of the listener as of a server. Browsers can be led here by any site, with a name
// of its own that it points at us (DNS rebinding): they are told whether we live, and nothing else.
func (p *Proxy) serveDirect(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Origin") != "" {
		http.Error(w, "egress: a page of another site gets nothing here", http.StatusForbidden)
		return
	}
	if r.URL.Path != "/health" && !p.ownHost(r.Host) {
		http.Error(w, "egress: unknown Host: ask by address, or through this proxy for http://"+selfHost+"/allowlist", http.StatusForbidden)
		return
	}
	p.serveSelf(w, r)
}

// ownHost tells whether a Host header holds no name that somebody else could point at us: addresses and names without
// a dot, such as a container's, are nobody's domain.
func (p *Proxy) ownHost(hostport string) bool {
	host := routes.Key(hostname(hostport))
	_, err := netip.ParseAddr(host)
	return err == nil || !strings.Contains(host, ".") || host == selfHost || host == routes.Key(hostname(p.opts.Addr))
}

func hostname(hostport string) string {
	if host, _, err := net.SplitHostPort(hostport); err == nil {
		return host
	}
	return strings.Trim(hostport, "[]")
}

// serveSelf answers what is asked of the proxy itself.
func (p *Proxy) serveSelf(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "egress: use GET", http.StatusMethodNotAllowed)
	case r.URL.Path == "/allowlist":
		writeJSON(w, p.allowlist())
	case r.URL.Path == "/health":
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		io.WriteString(w, "ok\n")
	default:
		http.Error(w, "egress: this is a forward proxy: send requests through it (curl -x), or GET /allowlist to see what it allows", http.StatusNotFound)
	}
}
