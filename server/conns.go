package server

import (
	"container/list"
	"context"
	"net"
	"net/http"
	"sync"
	"syscall"
)

// conns bounds the connections: each costs a descriptor and some kilobytes, also one on which nothing ever comes. Past the
// limit the one makes way that has been without a held call or an event stream for longest, so that whoever opens many
// stops mostly himself, and who was let in with a question keeps his place.
type conns struct {
	max int

	mu    sync.Mutex
	all   map[net.Conn]*conn // guarded by mu
	loose *list.List         // guarded by mu; of those that may make way, longest first
	over  bool               // guarded by mu; no more are let in
}

type conn struct {
	c     net.Conn
	fresh bool          // guarded by conns.mu; nothing has come on it
	taken bool          // guarded by conns.mu; from net/http, and not answered yet
	place *list.Element // guarded by conns.mu; in conns.loose; nil: it is kept
}

// reserved descriptors are for everything else: the mailbox, the proxy, what the runtime has.
const reserved = 128

func newConns(most int) *conns {
	var r syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r) == nil && r.Cur < uint64(most+reserved) {
		most = max(int(r.Cur)-reserved, int(r.Cur)/2)
	}
	return &conns{max: most, all: map[net.Conn]*conn{}, loose: list.New()}
}

type connKey struct{}

// sendBuffer is what the system may keep of an answer that the client does not take. By itself it would keep 4 MiB for each.
const sendBuffer = 32 << 10

// context is a [http.Server.ConnContext]. It comes before the state StateNew.
func (cs *conns) context(ctx context.Context, c net.Conn) context.Context {
	if tcp, ok := c.(*net.TCPConn); ok {
		tcp.SetWriteBuffer(sendBuffer) // an error means that the connection is gone
	}
	return context.WithValue(ctx, connKey{}, func() { cs.keep(c) })
}

// keep has the connection of a request stay until the request is over.
func keep(ctx context.Context) {
	if f, ok := ctx.Value(connKey{}).(func()); ok {
		f()
	}
}

func (cs *conns) keep(nc net.Conn) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if c := cs.all[nc]; c != nil && c.place != nil {
		cs.loose.Remove(c.place)
		c.place = nil
	}
}

// state is a [http.Server.ConnState].
func (cs *conns) state(nc net.Conn, state http.ConnState) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	c := cs.all[nc]
	switch state {
	case http.StateNew:
		oldest := cs.loose.Front()
		switch {
		case cs.over, len(cs.all) >= cs.max && oldest == nil:
			nc.Close()
			return
		case len(cs.all) >= cs.max:
			cs.dropLocked(oldest.Value.(*conn))
		}
		c = &conn{c: nc, fresh: true}
		c.place = cs.loose.PushBack(c)
		cs.all[nc] = c
	case http.StateClosed:
		cs.forgetLocked(c)
	case http.StateHijacked: // it is kept until it is gone
		if c != nil {
			c.taken = true
		}
	default:
		if c == nil {
			return // it has made way
		}
		c.fresh = false
		if c.place != nil {
			cs.loose.MoveToBack(c.place)
		} else if state == http.StateIdle {
			c.place = cs.loose.PushBack(c)
		}
	}
}

// answered tells that a connection that was taken from net/http is about to end by itself.
func (cs *conns) answered(nc net.Conn) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if c := cs.all[nc]; c != nil {
		c.taken = false
		c.place = cs.loose.PushBack(c)
	}
}

// gone tells of the end of a connection that was taken from net/http.
func (cs *conns) gone(nc net.Conn) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.forgetLocked(cs.all[nc])
}

func (cs *conns) dropLocked(c *conn) {
	c.c.Close()
	cs.forgetLocked(c)
}

func (cs *conns) forgetLocked(c *conn) {
	if c == nil {
		return
	}
	if c.place != nil {
		cs.loose.Remove(c.place)
		c.place = nil
	}
	delete(cs.all, c.c)
}

// end closes the connections on which nothing has come, and lets no more in: Shutdown would wait 5 s for their first
// request. It closes those that were taken from net/http and are not answered, too: it knows of them no more.
func (cs *conns) end() {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.over = true
	for _, c := range cs.all {
		if c.fresh || c.taken {
			cs.dropLocked(c)
		}
	}
}
