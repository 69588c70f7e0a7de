package main

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// TestHealthy: only the sidecar's own 200 is health, and one that says nothing is not waited for.
func TestHealthy(t *testing.T) {
	mux := http.NewServeMux()
	silent := func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/stuck" {
			_, _ = w.Write([]byte("o"))
			_ = http.NewResponseController(w).Flush()
		}
		<-r.Context().Done()
	}
	mux.HandleFunc("/silent", silent)
	mux.HandleFunc("/stuck", silent)
	mux.HandleFunc("/ok", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	mux.HandleFunc("/starting", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("starting\n")) })
	mux.Handle("/moved", http.RedirectHandler("/ok", http.StatusFound))
	srv := httptest.NewServer(mux)
	defer srv.Close()
	for path, want := range map[string]string{
		"/ok":       "",
		"/starting": "its mailbox is not open yet",
		"/moved":    "answered 302 Found",
		"/none":     "answered 404 Not Found",
		"/silent":   context.DeadlineExceeded.Error(),
		"/stuck":    context.DeadlineExceeded.Error(),
	} {
		within := time.Minute
		if want == context.DeadlineExceeded.Error() {
			within = 10 * time.Millisecond
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		err := healthy(ctx, srv.URL+path, within)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			t.Errorf("%s: it was waited for", path)
		}
		cancel()
	}
	if healthTimeout != 2*time.Second {
		t.Errorf("the time is %v, and help says two seconds", healthTimeout)
	}
}
