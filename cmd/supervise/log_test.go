package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestLogIsBounded: what a client can have logged at will does not fill a disk, and hides nothing else.
func TestLogIsBounded(t *testing.T) {
	synctest.Test(t, testLogIsBounded) // no timer of a real second writes meanwhile
}

func testLogIsBounded(t *testing.T) {
	var out strings.Builder
	h := newLog(&out, false).With("bottle", "web").Handler()
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	log := func(after time.Duration, msg string) {
		t.Helper()
		if err := h.Handle(context.Background(), slog.NewRecord(at.Add(after), slog.LevelWarn, msg, 0)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 10_000 {
		log(0, "refused: unknown Host or Origin")
		log(0, fmt.Sprintf("http: TLS handshake error from 192.0.2.1:%d: EOF", i))
	}
	log(0, "the mailbox is open")
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	if len(lines) != 2*lineBurst+1 || !strings.Contains(lines[2*lineBurst], "the mailbox is open") {
		t.Errorf("%d lines, the last %q; want %d of each kind and that", len(lines), lines[len(lines)-1], lineBurst)
	}
	out.Reset()
	for i := range 60 {
		log(time.Duration(i)*time.Second, "refused: unknown Host or Origin")
		log(time.Duration(i)*time.Second, "refused: unknown Host or Origin")
	}
	lines = strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	if len(lines) != 59 || !strings.Contains(lines[0], "bottle=web") || !strings.Contains(lines[0], fmt.Sprint("left_out=", 10_000-lineBurst+2)) || !strings.Contains(lines[1], "left_out=1") {
		t.Errorf("%d lines in a minute, %q; want one a second, and how many were left out", len(lines), lines[:2])
	}
}

// page is written by timers too.
type page struct {
	mu sync.Mutex
	b  strings.Builder // guarded by mu
}

func (p *page) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.b.Write(b)
}

// take returns what was written since the last time.
func (p *page) take() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	defer p.b.Reset()
	return p.b.String()
}

// TestLeftOutIsTold: how many lines were left out is said though no other of their kind follows.
func TestLeftOutIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out page
		log := newLog(&out, false)
		for range lineBurst + 50 {
			log.Warn("refused", "host", "x.example")
		}
		out.take()
		time.Sleep(5 * lineEvery)
		synctest.Wait()
		if got := out.take(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "of=refused left_out=50") {
			t.Errorf("after some seconds the log has %q, want once that 50 were left out", got)
		}
	})
}

// TestKinds: neither many kinds nor an address in a message has a flood begin anew, or what was left out forgotten.
func TestKinds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out page
		log := newLog(&out, false)
		for range 2 * lineBurst {
			log.Warn("refused")
		}
		for i := range 2 * maxKinds {
			log.Info(fmt.Sprintf("queued proposal %d (egress-block)", i))
			time.Sleep(lineEvery / 100)
		}
		text := out.take()
		if n := strings.Count(text, "msg=\"queued proposal"); n != 2*maxKinds {
			t.Errorf("%d proposals are logged of %d", n, 2*maxKinds)
		}
		if n := strings.Count(text, "left_out=100"); n != 1 {
			t.Errorf("it is said %d times that 100 were left out, want once", n)
		}
		for i := range 2 * lineBurst {
			log.Info(fmt.Sprintf("http: panic serving 192.0.2.1:%d: it broke", i))
		}
		if n := strings.Count(out.take(), "\n"); n != lineBurst {
			t.Errorf("%d lines of panics, want %d", n, lineBurst)
		}
	})
}
