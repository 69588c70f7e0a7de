package queue

import (
	"context"
	"errors"
	"hash/maphash"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

// Changes implements Inbox. Its channel is also closed by Close.
func (r *Root) Changes(ctx context.Context) (<-chan struct{}, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	ch := make(chan struct{}, 1)
	ch <- struct{}{} // the first look is due now
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, ErrClosed
	}
	r.subs[ch] = true
	if !r.running {
		r.running = true
		w, err := r.opts.newWatcher()
		if err != nil {
			r.log.Warn("no file events, polling only", "err", err)
		}
		l := &rootLoop{Root: r, w: w, watched: map[string]os.FileInfo{}}
		r.loop.Go(l.run)
	} else {
		select { // to poll, from now on
		case r.wakeLoop <- struct{}{}:
		default:
		}
	}
	context.AfterFunc(ctx, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.subs[ch] {
			delete(r.subs, ch)
			close(ch)
		}
	})
	return ch, nil
}

func (r *Root) ring() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for ch := range r.subs {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

// rootLoop is the one goroutine that watches a Root: with one watcher for it and all bottles, and a poll behind it.
type rootLoop struct {
	*Root
	w        *watcher
	watched  map[string]os.FileInfo // paths and what they led to when they were watched
	watchErr bool                   // reported
	proven   bool                   // an event has announced what a sidecar did
	rang     bool                   // an event came since last was taken
	last     uint64                 // what the poll saw
	polledAt time.Time
	cost     time.Duration
}

func (l *rootLoop) run() {
	defer l.w.close()
	l.rewatch()
	l.poll()
	l.ring() // something may have happened before the watches were there
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		if l.watching() {
			every := l.opts.PollFast
			if l.proven {
				every = l.opts.PollSlow
			}
			timer.Reset(time.Until(l.polledAt.Add(max(every, 20*l.cost))))
		} else {
			timer.Stop()
		}
		select {
		case <-l.done:
			return
		case <-l.wakeLoop:
		case ev, ok := <-l.w.events:
			if !ok {
				l.w.events = nil
				continue
			}
			l.event(ev)
			l.pending()
			l.ring()
		case _, ok := <-l.w.errors:
			if !ok {
				l.w.errors = nil
				continue
			}
			clear(l.watched)
			l.rewatch()
			l.rang = true
			l.ring()
		case <-timer.C:
			if l.pending() {
				l.ring()
			}
			l.rewatch()
			if l.poll() {
				// Even if an event came since the last poll: it may have been for something else.
				l.proven = l.proven && l.rang
				l.ring()
			}
			l.rang = false
		}
	}
}

func (l *rootLoop) watching() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.subs) > 0
}

// pending takes the events that are there already, so that one ring serves for all of them.
func (l *rootLoop) pending() (any bool) {
	for {
		select {
		case ev, ok := <-l.w.events:
			if !ok {
				l.w.events = nil
				return any
			}
			any = true
			l.event(ev)
		default:
			return any
		}
	}
}

func (l *rootLoop) event(ev fsnotify.Event) {
	l.rang = true
	if ev.Name == l.path || filepath.Dir(ev.Name) == l.path {
		if ev.Op&(fsnotify.Create|fsnotify.Remove|fsnotify.Rename) != 0 {
			delete(l.watched, ev.Name)
			l.rewatch()
		}
		return
	}
	// No operator writes these, so a mount that tells of them tells of a sidecar's doings.
	if name := filepath.Base(ev.Name); name == presenceFile || strings.HasSuffix(name, proposalSuffix) {
		l.proven = true
	}
}

// rewatch watches the root and every bottle that is not watched yet, and again what was replaced.
func (l *rootLoop) rewatch() {
	if l.w.events == nil {
		return
	}
	bottles, err := l.Bottles(context.Background())
	if err != nil {
		return
	}
	paths := map[string]bool{l.path: true}
	for _, slug := range bottles {
		paths[filepath.Join(l.path, slug)] = true
	}
	for path := range l.watched {
		if !paths[path] {
			_ = l.w.remove(path)
			delete(l.watched, path)
		}
	}
	for path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			continue
		}
		if was, ok := l.watched[path]; ok && os.SameFile(was, info) {
			continue
		}
		_ = l.w.remove(path) // what is left of a watch on one that was replaced
		if err := l.w.add(path); err == nil {
			l.watched[path] = info
		} else if !errors.Is(err, fs.ErrNotExist) && !l.watchErr {
			l.watchErr = true
			l.log.Warn("no file events for some bottles, polling", "err", limitHint(err))
		}
	}
}

var seed = maphash.MakeSeed()

// poll tells whether anything that the operator looks at differs from the last poll.
func (l *rootLoop) poll() bool {
	start := time.Now()
	sum := l.fingerprint()
	l.polledAt = time.Now()
	l.cost = l.polledAt.Sub(start)
	differs := sum != l.last
	l.last = sum
	return differs
}

func (l *rootLoop) fingerprint() uint64 {
	bottles, err := l.Bottles(context.Background())
	if err != nil {
		return 1
	}
	var sum uint64
	add := func(name string, info fs.FileInfo) {
		var h maphash.Hash
		h.SetSeed(seed)
		h.WriteString(name)
		if info != nil {
			maphash.WriteComparable(&h, [2]int64{info.Size(), info.ModTime().UnixNano()})
		}
		sum += h.Sum64() // in any order
	}
	for _, slug := range bottles {
		add(slug, nil)
		b, err := l.openBox(slug)
		if err != nil {
			continue
		}
		names, _, _ := b.list()
		for _, name := range names {
			if _, role := splitName(name); role == "" && name != presenceFile {
				continue
			}
			info, _ := b.root.Lstat(name)
			add(slug+"/"+name, info)
		}
		b.close()
	}
	return sum
}
