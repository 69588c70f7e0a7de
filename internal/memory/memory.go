// Package memory has the collector run less often in a small program, and gives memory that a peak took back to the system.
package memory

import (
	"context"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"

	"golang.org/x/sys/unix"
)

// ballast is counted in the heap and never touched, so that it takes no memory. The collector runs when the heap has doubled:
// without ballast, in a program of two or three MiB, a few requests after the last time, which was more than half of all that a
// request took.
const ballast = 24 << 20

const (
	every = 2 * time.Second
	least = 4 << 20          // bytes that are worth a collection
	busy  = 16 << 20         // bytes allocated between two looks: they would be needed again at once
	large = 64 << 20         // bytes found in use by the last collection, which may have been at a peak
	again = 10 * time.Second // after the last time, to look whether it still is; twice as long each time that most is
	late  = 2 * time.Minute  // when the runtime collects by itself
)

// heap is what the runtime says of its memory, in bytes.
type heap struct {
	live      uint64 // found in use by the last collection
	held      uint64 // objects, dead ones too, and what is free and not given back
	allocated uint64 // ever
}

// Run carries the ballast, and gives memory back to the system while little is allocated, until ctx ends. What it took to begin
// many calls, or to answer them, is many times what it takes to wait; the runtime by itself keeps it for the next peak, which
// may never come, and lets as much again pile up before it collects.
func Run(ctx context.Context) { carry(ctx, now, debug.FreeOSMemory) }

func carry(ctx context.Context, now func() heap, free func()) {
	select { // so much at once has the collector run, and somebody may wait for the start
	case <-ctx.Done():
		return
	case <-time.After(every):
	}
	b := load()
	run(ctx, func() heap {
		h := now()
		h.live -= min(h.live, ballast)
		h.held -= min(h.held, ballast)
		return h
	}, free)
	runtime.KeepAlive(b)
}

// load makes the ballast. Where something else was before, making it has touched it.
func load() []byte {
	b := make([]byte, ballast)
	unix.Madvise(b, unix.MADV_DONTNEED) // an error means that it costs memory
	return b
}

func run(ctx context.Context, look func() heap, free func()) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	before := look()
	last, wait := time.Now(), again
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := look()
		calm, much := now.allocated-before.allocated < busy, now.held > now.live+max(least, now.live/4)
		if !calm || much {
			wait = again
		}
		if calm && (much || now.live > large && time.Since(last) >= wait) {
			had := now.live
			// Again while it helps: net/http keeps the buffers of connections that are gone over one collection, 10 KiB each.
			for was := now.live + least; now.live+least <= was; {
				was = now.live
				free()
				now = look()
			}
			if last = time.Now(); !much && now.live > had/4*3 {
				wait = min(2*wait, late)
			}
		}
		before = now
	}
}

// now reads the heap.
func now() heap {
	s := []metrics.Sample{
		{Name: "/gc/heap/live:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/heap/free:bytes"},
		{Name: "/gc/heap/allocs:bytes"},
	}
	metrics.Read(s)
	return heap{live: s[0].Value.Uint64(), held: s[1].Value.Uint64() + s[2].Value.Uint64(), allocated: s[3].Value.Uint64()}
}
