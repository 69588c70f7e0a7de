package memory

import (
	"context"
	"runtime"
	"runtime/debug"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// fakeHeap is one whose collection finds live bytes in use.
type fakeHeap struct {
	mu    sync.Mutex
	live  uint64
	pool  uint64 // what a sync.Pool keeps over one collection more
	now   heap
	freed int
}

func (h *fakeHeap) look() heap {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.now
}

func (h *fakeHeap) free() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.freed++
	h.now.live = h.live + h.pool
	h.now.held = h.now.live
	h.pool = 0
}

func (h *fakeHeap) allocate(n, live uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.now.allocated += n
	h.now.held += n
	h.live = live
}

func TestTrim(t *testing.T) {
	const mib = 1 << 20
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		var h fakeHeap
		go run(ctx, h.look, h.free)
		for _, step := range []struct {
			each, live uint64 // allocated in each tick, and what of all is in use, MiB
			ticks      int
			freed      int
			why        string
		}{
			{0, 0, 100, 0, "nothing happens"},
			{1, 1, 4, 0, "little is not worth it"},
			{100, 40, 5, 0, "a crowd comes"},
			{0, 40, 3, 1, "a crowd waits"},
			{1, 40, 9, 1, "waiting takes a little"},
			{1, 40, 3, 2, "which piles up"},
			{100, 1, 5, 2, "the crowd is answered"},
			{0, 1, 3, 5, "the crowd has gone, and its buffers go with the second collection; the third finds no more"},
			{0, 1, 1000, 5, "nothing happens"},
			{100, 100, 5, 5, "a large crowd comes"},
			{0, 100, 1, 6, "it waits"},
			{0, 1, 4, 6, "it goes, of which the heap says nothing"},
			{0, 1, 1, 8, "but one looks after ten seconds, and once more, since that helped"},
			{100, 200, 5, 8, "another comes"},
			{0, 200, 1, 9, "it waits"},
			{0, 200, 300, 16, "and stays: after 10, 30, 70, 150 s, and then every two minutes one looks in vain"},
			{20, 200, 1, 16, "something is begun"},
			{0, 200, 1, 17, "which may have been the end of it: one looks as soon as after a crowd"},
			{0, 1, 60, 19, "until it goes"},
		} {
			for range step.ticks {
				h.allocate(step.each*mib, step.live*mib)
				if step.each == 100 && step.live == 1 {
					h.pool = 10 * mib // of connections that are gone
				}
				time.Sleep(every)
				synctest.Wait()
			}
			if h.freed != step.freed {
				t.Errorf("%s: freed %d times, want %d", step.why, h.freed, step.freed)
			}
		}
		if got := h.look(); got.live != mib || got.held != mib {
			t.Errorf("in the end %d bytes are in use and %d held, want 1 MiB", got.live, got.held)
		}
		stop()
		synctest.Wait()
	})
}

// TestBallast: it counts neither as used nor as held.
func TestBallast(t *testing.T) {
	const mib = 1 << 20
	for _, tt := range []struct {
		name       string
		live, held uint64 // besides the ballast
		freed      bool
	}{
		{"a small program", 1 * mib, 2 * mib, false},
		{"one that holds much", 1 * mib, 10 * mib, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, stop := context.WithCancel(t.Context())
				h := heap{live: ballast + tt.live, held: ballast + tt.held}
				freed := false
				go carry(ctx, func() heap { return h }, func() { freed, h.held = true, h.live })
				time.Sleep(5 * every)
				synctest.Wait()
				if freed != tt.freed {
					t.Errorf("memory was given back: %v, want %v", freed, tt.freed)
				}
				stop()
				synctest.Wait()
			})
		})
	}
}

// TestNow: the runtime's names are those we know.
func TestNow(t *testing.T) {
	before := now()
	keep := make([]byte, 32<<20)
	debug.FreeOSMemory()
	after := now()
	runtime.KeepAlive(keep)
	if after.live < 32<<20 || after.held < 32<<20 || after.allocated < before.allocated+32<<20 {
		t.Errorf("with %d bytes in use the heap is %+v, before %+v", len(keep), after, before)
	}
}
