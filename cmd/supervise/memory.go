package main

import (
	"context"
	"time"
)

const (
	trimEvery = 2 * time.Second
	trimLeast = 64 // calls
)

// trim gives memory back to the system when the number of waiting calls has changed much and does not change any more. What it
// took to begin a call, or to answer it, is many times what it takes to wait; the runtime by itself keeps it for the next
// peak, which may never come.
func trim(ctx context.Context, waiting func() int, free func()) {
	tick := time.NewTicker(trimEvery)
	defer tick.Stop()
	trimmed, before := 0, 0 // the number at the last trim, and a tick ago
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := waiting()
		settled := max(now-before, before-now) < trimLeast
		before = now
		if settled && max(now-trimmed, trimmed-now) >= max(trimLeast, trimmed/4) {
			free()
			trimmed = now
		}
	}
}
