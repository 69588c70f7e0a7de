package main

import (
	"context"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// newLog is how the long-running parts log: text on stderr.
func newLog(w io.Writer, debug bool) *slog.Logger {
	level := slog.LevelInfo
	if debug {
		level = slog.LevelDebug
	}
	return slog.New(&bounded{Handler: slog.NewTextHandler(w, &slog.HandlerOptions{Level: level}), kinds: &kinds{m: map[string]*kind{}}})
}

// Of one kind of line so many are logged at once, and one more every lineEvery: whoever can have one logged could fill a disk.
const (
	lineBurst = 100
	lineEvery = time.Second
	maxKinds  = 1024
)

// bounded leaves out lines of a kind of which there are too many, and says how many with the next one.
type bounded struct {
	slog.Handler
	kinds *kinds // shared with those made by WithAttrs and WithGroup
}

type kinds struct {
	mu sync.Mutex
	m  map[string]*kind // guarded by mu
}

type kind struct {
	n    float64 // leaks by one every lineEvery
	last time.Time
	left int  // lines left out since the last one
	told bool // a timer will tell of them
}

func (h *bounded) Handle(ctx context.Context, r slog.Record) error {
	of := kindOf(r.Message)
	left, ok, first := h.kinds.take(of, r.Time)
	if first {
		time.AfterFunc(lineEvery, func() { h.rest(of) })
	}
	if !ok {
		return nil
	}
	if left > 0 {
		r = r.Clone()
		r.AddAttrs(slog.Int("left_out", left))
	}
	return h.Handler.Handle(ctx, r)
}

// rest says how many lines were left out of which no further line of their kind has told.
func (h *bounded) rest(of string) {
	now := time.Now()
	left, again := h.kinds.untold(of, now)
	if again {
		time.AfterFunc(lineEvery, func() { h.rest(of) })
	}
	if left > 0 {
		r := slog.NewRecord(now, slog.LevelWarn, "lines were left out", 0)
		r.AddAttrs(slog.String("of", strings.TrimSpace(of)), slog.Int("left_out", left))
		h.Handler.Handle(context.Background(), r)
	}
}

func (h *bounded) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &bounded{h.Handler.WithAttrs(attrs), h.kinds}
}

func (h *bounded) WithGroup(name string) slog.Handler {
	return &bounded{h.Handler.WithGroup(name), h.kinds}
}

// take tells whether a line of a kind may be logged, how many were not before it, and whether it is the first of those of which
// nobody would tell.
func (k *kinds) take(of string, now time.Time) (left int, ok, first bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	b := k.m[of]
	if b == nil {
		if len(k.m) >= maxKinds {
			k.forget(now)
		}
		b = &kind{last: now}
		k.m[of] = b
	}
	if b.leak(now); b.full() {
		b.left++
		first, b.told = !b.told, true
		return 0, false, first
	}
	b.n++
	left, b.left = b.left, 0
	return left, true, false
}

// untold takes what is to be told of a kind now, as a line of it, or tells that it is too early.
func (k *kinds) untold(of string, now time.Time) (left int, again bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	b := k.m[of]
	if b == nil {
		return 0, false
	}
	b.leak(now)
	if b.left > 0 && b.full() {
		return 0, true
	}
	if b.left > 0 {
		b.n++
	}
	left, b.left, b.told = b.left, 0, false
	return left, false
}

// forget drops the kinds that are as good as new; all of them only if there is none such.
func (k *kinds) forget(now time.Time) {
	for of, b := range k.m {
		if b.leak(now); b.n == 0 && !b.told {
			delete(k.m, of)
		}
	}
	if len(k.m) >= maxKinds {
		clear(k.m)
	}
}

func (b *kind) leak(now time.Time) {
	b.n, b.last = max(0, b.n-float64(max(0, now.Sub(b.last)))/float64(lineEvery)), now
}

func (b *kind) full() bool { return b.n > lineBurst-1 }

// kindOf is a message without what is different each time: net/http puts an address into its own, after three words or more.
func kindOf(msg string) string {
	const words = 3
	i := 0
	for range words {
		next := strings.IndexByte(msg[i:], ' ')
		if next < 0 {
			return msg
		}
		i += next + 1
	}
	return msg[:i]
}
