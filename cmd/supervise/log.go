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
	left int // lines left out since the last one
}

func (h *bounded) Handle(ctx context.Context, r slog.Record) error {
	left, ok := h.kinds.take(kindOf(r.Message), r.Time)
	if !ok {
		return nil
	}
	if left > 0 {
		r = r.Clone()
		r.AddAttrs(slog.Int("left_out", left))
	}
	return h.Handler.Handle(ctx, r)
}

func (h *bounded) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &bounded{h.Handler.WithAttrs(attrs), h.kinds}
}

func (h *bounded) WithGroup(name string) slog.Handler {
	return &bounded{h.Handler.WithGroup(name), h.kinds}
}

// take tells whether a line of a kind may be logged, and how many were not before it.
func (k *kinds) take(of string, now time.Time) (left int, ok bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	b := k.m[of]
	if b == nil {
		if len(k.m) >= maxKinds {
			clear(k.m)
		}
		b = &kind{last: now}
		k.m[of] = b
	}
	b.n, b.last = max(0, b.n-float64(max(0, now.Sub(b.last)))/float64(lineEvery)), now
	if b.n > lineBurst-1 {
		b.left++
		return 0, false
	}
	b.n++
	left, b.left = b.left, 0
	return left, true
}

// kindOf is a message without what is different each time: net/http puts an address into its own, after these words.
func kindOf(msg string) string {
	const words = 4
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
