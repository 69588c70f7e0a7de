package conns

import (
	"net"
	"slices"
	"testing"
	"testing/synctest"
)

// queue is a listener whose clients come when the test says so.
type queue chan net.Conn

func (q queue) Accept() (net.Conn, error) {
	if c, ok := <-q; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}
func (q queue) Close() error { close(q); return nil }
func (queue) Addr() net.Addr { return &net.TCPAddr{} }

// client is one that comes from an address.
type client struct {
	net.Conn
	name   string
	ip     byte
	closed bool
}

func (c *client) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(10, 0, 0, c.ip), Port: 1} }
func (c *client) Close() error         { c.closed = true; return nil }

// world accepts everything at once, in a bubble.
type world struct {
	t       *testing.T
	l       *Listener
	q       queue
	clients []*client
	got     map[string]net.Conn // accepted, by name
	ended   chan struct{}
}

func newWorld(t *testing.T, most int) *world {
	w := &world{t: t, q: make(queue, 100), got: map[string]net.Conn{}, ended: make(chan struct{})}
	w.l = New(w.q, most)
	go func() {
		defer close(w.ended)
		for {
			c, err := w.l.Accept()
			if err != nil {
				return
			}
			w.got[c.(*Conn).Conn.(*client).name] = c
		}
	}()
	return w
}

// come lets clients come, one after the other; each name's first letter is its address.
func (w *world) come(names ...string) {
	for _, n := range names {
		c := &client{name: n, ip: n[0]}
		w.clients = append(w.clients, c)
		w.q <- c
		synctest.Wait()
	}
}

// want checks who is open and has been accepted.
func (w *world) want(names ...string) {
	w.t.Helper()
	synctest.Wait()
	var open []string
	for _, c := range w.clients {
		if _, ok := w.got[c.name]; ok && !c.closed {
			open = append(open, c.name)
		}
	}
	if !slices.Equal(open, names) {
		w.t.Errorf("accepted and open are %q, want %q", open, names)
	}
}

// end closes the listener; every owner closes its own.
func (w *world) end() {
	w.l.Close()
	<-w.ended
	w.l.CutAll()
	for _, c := range w.got {
		c.Close()
		c.Close() // harmless
	}
	w.l.Wait()
	if w.l.n != 0 || len(w.l.from) != 0 || w.l.loose.Len() != 0 {
		w.t.Errorf("at the end %d connections, of %v, %d may make way; want none", w.l.n, w.l.from, w.l.loose.Len())
	}
}

func TestTheLongestIdleMakesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3)
		w.come("a1", "b1", "c1")
		w.l.Keep(w.got["a1"])
		w.l.Rest(w.got["b1"]) // after c1 now
		w.come("d1")
		w.want("a1", "b1", "d1")
		w.l.Keep(w.got["c1"]) // it made way: nothing is left to keep
		w.l.Rest(w.got["c1"])
		w.l.Rest(w.got["a1"])
		w.come("e1", "f1")
		w.want("a1", "e1", "f1")
		w.got["e1"].Close()
		w.come("g1")
		w.want("a1", "f1", "g1")
		w.end()
	})
}

// TestOneWaits: while all are kept the next one waits, until one is closed or may make way, or the listener ends.
func TestOneWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2)
		keep := func(names ...string) {
			for _, n := range names {
				w.l.Keep(w.got[n])
			}
		}
		w.come("a1", "b1")
		keep("a1", "b1")
		w.come("c1")
		w.want("a1", "b1")
		w.got["a1"].Close()
		w.want("b1", "c1")
		keep("c1")
		w.come("d1")
		w.want("b1", "c1")
		w.l.Rest(w.got["b1"])
		w.want("c1", "d1")
		keep("d1")
		w.come("e1")
		w.want("c1", "d1")
		w.end()
		if last := w.clients[len(w.clients)-1]; !last.closed {
			t.Error("the one that waited is left open")
		}
	})
}

// TestOneAddressHoldsNotAll: three quarters are the most; its own make way first.
func TestOneAddressHoldsNotAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 4)
		w.come("b1", "a1", "a2", "a3", "a4")
		w.want("b1", "a2", "a3", "a4")
		for _, n := range []string{"a2", "a3", "a4"} {
			w.l.Keep(w.got[n])
		}
		w.come("a5", "c1")
		w.want("a2", "a3", "a4", "c1")
		if !w.clients[5].closed {
			t.Error("a5 waits, and would keep others waiting; want it closed")
		}
		w.end()
	})
}

// wrapped is TLS, or a tunnel.
type wrapped struct{ net.Conn }

func (w wrapped) NetConn() net.Conn { return w.Conn }

func TestUnderTLS(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.come("a1")
		w.l.Keep(wrapped{wrapped{w.got["a1"]}})
		w.l.Keep(&client{}) // not ours
		w.l.Rest(&client{})
		w.come("b1")
		w.want("a1")
		w.l.Rest(wrapped{w.got["a1"]})
		w.want("b1")
		w.end()
	})
}
