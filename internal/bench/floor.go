package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/fsnotify/fsnotify"

	"github.com/bot-bottle/supervise/queue"
)

// floor is the least that can do the job: net/http and one inotify watch. It has no protocol, no limits, no recovery, no
// heartbeat. A POST stores its body as a proposal, waits for the response file and answers with it as one event.
type floor struct {
	dir     string
	durable bool   // sync as a mailbox does, and archive
	canned  []byte // what POST /canned is answered

	mu      sync.Mutex
	waiters map[string]chan struct{} // guarded by mu; by the response's name
}

func runFloor(args []string) error {
	fs := flag.NewFlagSet("floor", flag.ContinueOnError)
	dir := fs.String("dir", "", "where proposals and responses are")
	durable := fs.Bool("durable", false, "sync and archive as a mailbox does")
	canned := fs.String("canned", "", "file with the answer to POST /canned")
	addr := fs.String("addr", "127.0.0.1:0", "address")
	if err := fs.Parse(args); err != nil {
		return err
	}
	f := &floor{dir: *dir, durable: *durable, waiters: map[string]chan struct{}{}}
	if *canned != "" {
		var err error
		if f.canned, err = os.ReadFile(*canned); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(filepath.Join(f.dir, "processed"), 0o700); err != nil {
		return err
	}
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	defer w.Close()
	if err := w.Add(f.dir); err != nil {
		return err
	}
	ln, err := net.Listen("tcp", *addr)
	if err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "listening on "+ln.Addr().String())
	go func() {
		for ev := range w.Events {
			if ev.Op&fsnotify.Create != 0 && strings.HasSuffix(ev.Name, responseSuffix) {
				f.wake(filepath.Base(ev.Name))
			}
		}
	}()
	http.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok\n") })
	http.HandleFunc("POST /canned", func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "text/event-stream")
		w.Write(f.canned)
	})
	http.HandleFunc("POST /", f.ask)
	return http.Serve(ln, nil)
}

func (f *floor) wake(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if ch := f.waiters[name]; ch != nil {
		close(ch)
		delete(f.waiters, name)
	}
}

func (f *floor) ask(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	id := string(queue.NewID())
	ch := make(chan struct{})
	f.mu.Lock()
	f.waiters[id+responseSuffix] = ch
	f.mu.Unlock()
	if err := store(f.dir, id+proposalSuffix, body, f.durable); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	io.WriteString(w, ": waiting\n\n")
	rc := http.NewResponseController(w)
	rc.Flush()
	select {
	case <-ch:
	case <-r.Context().Done():
		return
	}
	data, err := os.ReadFile(filepath.Join(f.dir, id+responseSuffix))
	if err != nil {
		return
	}
	fmt.Fprintf(w, "event: message\ndata: {\"id\":7,\"result\":%q}\n\n", data)
	rc.Flush()
	if f.durable {
		if err := archive(f.dir, id); err != nil {
			fmt.Fprintln(os.Stderr, "archiving:", err)
		}
	}
}

const (
	proposalSuffix = ".proposal.json"
	responseSuffix = ".response.json"
)

// store makes a file appear whole, as both sides of a mailbox do.
func store(dir, name string, data []byte, durable bool) error {
	commit, err := prepare(dir, name, data, durable)
	if err != nil {
		return err
	}
	return commit()
}

// prepare writes what commit then makes appear.
func prepare(dir, name string, data []byte, durable bool) (commit func() error, err error) {
	temp := filepath.Join(dir, ".bench-"+name+".tmp")
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	_, err = f.Write(data)
	if err == nil && durable {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	return func() error {
		err := os.Link(temp, filepath.Join(dir, name))
		if err == nil && durable {
			err = syncDir(dir)
		}
		return errors.Join(err, os.Remove(temp))
	}, nil
}

func archive(dir, id string) error {
	for _, name := range []string{id + proposalSuffix, id + responseSuffix} {
		if err := os.Rename(filepath.Join(dir, name), filepath.Join(dir, "processed", name)); err != nil {
			return err
		}
		if err := errors.Join(syncDir(filepath.Join(dir, "processed")), syncDir(dir)); err != nil {
			return err
		}
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
