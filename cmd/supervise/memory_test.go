package main

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestTrim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		var waiting atomic.Int64
		var freed atomic.Int64
		go trim(ctx, func() int { return int(waiting.Load()) }, func() { freed.Add(1) })
		for _, step := range []struct {
			waiting int64
			ticks   int
			freed   int64
			why     string
		}{
			{10, 5, 0, "a few calls are not worth it"},
			{1000, 1, 0, "they still come"},
			{1000, 5, 1, "a crowd that waits"},
			{1200, 5, 1, "not much more"},
			{1300, 5, 2, "more by a quarter"},
			{0, 1, 2, "they still go"},
			{0, 5, 3, "the crowd has gone"},
			{0, 1000, 3, "nothing happens"},
		} {
			waiting.Store(step.waiting)
			time.Sleep(time.Duration(step.ticks)*trimEvery + time.Millisecond)
			if freed.Load() != step.freed {
				t.Errorf("%s: freed %d times after %d waiting for %d ticks, want %d", step.why, freed.Load(), step.waiting, step.ticks, step.freed)
			}
		}
		stop()
		synctest.Wait()
	})
}
