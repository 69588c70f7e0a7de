package server

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestWheelBeatsTogether: streams that are due within a second of one another are one waking up, and none waits longer than the interval.
func TestWheelBeatsTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		h := newWheel(25*time.Second, time.Second)
		var streams []*stream
		for range 9 {
			w := &stream{}
			streams = append(streams, w)
			h.add(w)
			time.Sleep(100 * time.Millisecond)
		}
		if w, wait := h.next(); w != nil || wait != 25*time.Second-900*time.Millisecond {
			t.Fatalf("next = %v, %v; want none, until the first is due", w, wait)
		}
		time.Sleep(25*time.Second - time.Since(start))
		for i, want := range streams {
			if w, wait := h.next(); w != want {
				t.Fatalf("stream %d: next = %p, %v; want %p now", i, w, wait, want)
			}
		}
		if w, wait := h.next(); w != nil || wait != 25*time.Second {
			t.Errorf("next = %v, %v; want none for 25 s", w, wait)
		}
	})
}
