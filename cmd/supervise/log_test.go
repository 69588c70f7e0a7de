package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// TestLogIsBounded: what a client can have logged at will does not fill a disk, and hides nothing else.
func TestLogIsBounded(t *testing.T) {
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
