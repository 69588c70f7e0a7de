package queue

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

// logs keeps what was logged.
type logs struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logs) count(s string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.buf.String(), s)
}

func (l *logs) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

func openDir(t *testing.T, path string, opts Options) *Dir {
	t.Helper()
	opts.Slug = "web"
	d, err := OpenDir(t.Context(), path, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
	})
	return d
}

func openRoot(t *testing.T, path string, opts RootOptions) *Root {
	t.Helper()
	r, err := OpenRoot(path, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Errorf("Root.Close = %v", err)
		}
	})
	return r
}

func putNew(t *testing.T, m Mailbox) Proposal {
	t.Helper()
	p := Proposal{ID: NewID(), Bottle: "web", Tool: "pipelock-block", ProposedFile: "https://example.com/", Justification: "why"}
	p, err := p.checked("web")
	if err == nil {
		err = m.Put(t.Context(), p)
	}
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func answer(id ID) Response {
	return Response{ProposalID: id, Status: Approved, Notes: "go", DecidedAt: testTime}
}

// foreign writes a response as a program would that knows no temp files.
func foreign(t *testing.T, dir string, id ID, data string) {
	t.Helper()
	writeFile(t, filepath.Join(dir, responseName(id)), data)
}

func writeFile(t *testing.T, path, data string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
		t.Fatal(err)
	}
}

func approval(id ID) string {
	return fmt.Sprintf(`{"proposal_id": %q, "status": "approved", "notes": null, "final_file": null}`, id)
}

func listDir(t *testing.T, d *Dir) (entries []Entry, errs []error) {
	t.Helper()
	for e, err := range d.Entries(t.Context()) {
		if err != nil {
			errs = append(errs, err)
		} else {
			entries = append(entries, e)
		}
	}
	return entries, errs
}

func listRoot(t *testing.T, r *Root, bottle string) (entries []Entry, errs []error) {
	t.Helper()
	for e, err := range r.Entries(t.Context(), bottle) {
		if err != nil {
			errs = append(errs, err)
		} else {
			entries = append(entries, e)
		}
	}
	return entries, errs
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	all, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range all {
		names = append(names, e.Name())
	}
	return names
}

type waitResult struct {
	r   Response
	err error
}

func waitFor(ctx context.Context, m Mailbox, id ID) <-chan waitResult {
	ch := make(chan waitResult, 1)
	go func() {
		r, err := m.Wait(ctx, id)
		ch <- waitResult{r, err}
	}()
	return ch
}

// untilWaiting returns when somebody waits for id.
func untilWaiting(d *Dir, id ID) {
	for {
		d.mu.Lock()
		n := len(d.waiters[id])
		d.mu.Unlock()
		if n > 0 {
			return
		}
		runtime.Gosched()
	}
}

func TestLate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "web")
	var log logs
	d := openDir(t, dir, Options{Logger: log.logger()})
	r := openRoot(t, filepath.Dir(dir), RootOptions{})
	p := putNew(t, d)
	if err := r.Respond(t.Context(), "web", answer(p.ID)); err != nil {
		t.Fatal(err)
	}
	if err := d.Archive(t.Context(), p.ID); err != nil {
		t.Fatal(err)
	}
	foreign(t, dir, p.ID, strings.Replace(approval(p.ID), "approved", "rejected", 1))
	if entries, errs := listDir(t, d); len(entries) != 0 || len(errs) != 0 {
		t.Errorf("Entries = %v, %v; want none", entries, errs)
	}
	if got, err := d.Wait(t.Context(), p.ID); err != nil || !got.Equal(answer(p.ID)) {
		t.Errorf("Wait = %+v, %v; want the first answer", got, err)
	}
	want := []string{p.ID.late(), proposalName(p.ID), responseName(p.ID)}
	if got := names(t, filepath.Join(dir, processed)); !slices.Equal(got, want) {
		t.Errorf("processed/ holds %q, want %q", got, want)
	}
	if n := log.count("a response came after"); n != 1 {
		t.Errorf("reported %d times, want once", n)
	}
}

// TestRepeatSyncs: what the one before stored may not have been durable yet, and a repeat, or a conflict, says that it is.
func TestRepeatSyncs(t *testing.T) {
	root := t.TempDir()
	var steps []string
	fault := func(step string, done bool) error {
		if done {
			steps = append(steps, step)
		}
		return nil
	}
	d := openDir(t, filepath.Join(root, "web"), Options{Fault: fault})
	r := openRoot(t, root, RootOptions{Fault: fault})
	p := putNew(t, d)
	for _, tt := range []struct {
		what, step string
		do         func() error
		want       error
	}{
		{"Put", "put.syncdir", func() error { return d.Put(t.Context(), p) }, nil},
		{"Respond", "respond.syncdir", func() error { return r.Respond(t.Context(), "web", answer(p.ID)) }, nil},
		{"Respond again", "respond.syncdir", func() error { return r.Respond(t.Context(), "web", answer(p.ID)) }, ErrDecided},
		{"Archive", "archive.sync-response", func() error { return d.Archive(t.Context(), p.ID) }, nil},
		{"Archive again", "archive.sync-response", func() error { return d.Archive(t.Context(), p.ID) }, nil},
	} {
		steps = nil
		if err := tt.do(); !errors.Is(err, tt.want) {
			t.Errorf("%s = %v, want %v", tt.what, err, tt.want)
		}
		if !slices.Contains(steps, tt.step) {
			t.Errorf("%s did %q, without %s", tt.what, steps, tt.step)
		}
	}
}

// TestInterruptedArchive: after a crash between the two renames the answer counts as delivered, and the next
// sidecar finishes.
func TestInterruptedArchive(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "web")
	d := openDir(t, dir, Options{})
	r := openRoot(t, filepath.Dir(dir), RootOptions{})
	p := putNew(t, d)
	if err := r.Respond(t.Context(), "web", answer(p.ID)); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, proposalName(p.ID)), filepath.Join(dir, processed, proposalName(p.ID))); err != nil {
		t.Fatal(err)
	}
	if err := r.Respond(t.Context(), "web", answer(p.ID)); !errors.Is(err, ErrLate) {
		t.Errorf("Respond in between = %v, want ErrLate", err)
	}
	if e, err := r.Get(t.Context(), "web", p.ID); err != nil || e.Response == nil {
		t.Errorf("Get in between = %+v, %v; want the answer", e, err)
	}
	d = openDir(t, dir, Options{})
	want := []string{proposalName(p.ID), responseName(p.ID)}
	if got := names(t, filepath.Join(dir, processed)); !slices.Equal(got, want) {
		t.Errorf("processed/ holds %q, want %q", got, want)
	}
	n := 0
	for e, err := range d.Recent(t.Context(), time.Now().Add(-time.Minute)) {
		if n++; err != nil || e.Proposal.ID != p.ID {
			t.Errorf("Recent has %+v, %v", e, err)
		}
	}
	if n != 1 {
		t.Errorf("Recent has %d, want 1", n)
	}
}

// TestVanished: the directory goes, and the same one, or another, comes back.
func TestVanished(t *testing.T) {
	for _, tt := range []struct {
		name string
		same bool
	}{{"the same", true}, {"another", false}} {
		t.Run(tt.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "web")
			away := dir + "-away"
			d := openDir(t, dir, Options{})
			p := putNew(t, d)
			if entries, errs := listDir(t, d); len(entries) != 1 || len(errs) != 0 {
				t.Fatalf("Entries = %v, %v; want the one that was put", entries, errs)
			}
			got := waitFor(t.Context(), d, p.ID)
			untilWaiting(d, p.ID)
			if err := os.Rename(dir, away); err != nil {
				t.Fatal(err)
			}
			q := p
			q.ID = NewID()
			if err := d.Put(t.Context(), q); err == nil || !strings.Contains(err.Error(), "has vanished") {
				t.Errorf("Put while it is gone = %v, want an error that says so", err)
			}
			if _, errs := listDir(t, d); len(errs) != 1 {
				t.Errorf("Entries while it is gone has errors %v, want one", errs)
			}
			if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the directory was created again: %v", err)
			}
			if tt.same {
				if err := os.Rename(away, dir); err != nil {
					t.Fatal(err)
				}
			} else {
				// Whole, or the mailbox finds it half copied, and makes its lock before the copy does.
				copied := dir + "-copy"
				if err := os.CopyFS(copied, os.DirFS(away)); err != nil {
					t.Fatal(err)
				}
				if err := os.Rename(copied, dir); err != nil {
					t.Fatal(err)
				}
			}
			if err := d.Put(t.Context(), q); err != nil {
				t.Errorf("Put when it is back = %v", err)
			}
			r := openRoot(t, filepath.Dir(dir), RootOptions{})
			for _, id := range []ID{p.ID, q.ID} {
				if err := r.Respond(t.Context(), "web", answer(id)); err != nil {
					t.Fatal(err)
				}
			}
			if res := <-got; res.err != nil {
				t.Errorf("Wait = %v", res.err)
			}
			if _, err := d.Wait(t.Context(), q.ID); err != nil {
				t.Errorf("Wait for the new one = %v", err)
			}
			if err := d.Archive(t.Context(), q.ID); err != nil {
				t.Errorf("Archive = %v", err)
			}
			if _, err := OpenDir(t.Context(), dir, Options{Slug: "web", LockWait: time.Millisecond}); !errors.Is(err, ErrLocked) {
				t.Errorf("OpenDir by another = %v, want ErrLocked", err)
			}
		})
	}
}

func TestLock(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "web")
	d := openDir(t, dir, Options{})
	start := time.Now()
	var log logs
	if _, err := OpenDir(t.Context(), dir, Options{Slug: "web", LockWait: 60 * time.Millisecond, Logger: log.logger()}); !errors.Is(err, ErrLocked) {
		t.Errorf("a second OpenDir = %v, want ErrLocked", err)
	}
	if n := log.count("another sidecar has the mailbox"); n != 1 {
		t.Errorf("it said %d times that it waits, want 1", n)
	}
	if waited := time.Since(start); waited < 60*time.Millisecond {
		t.Errorf("it waited %v, want 60ms", waited)
	}
	// One that waits gets it when the first one goes.
	opened := make(chan error, 1)
	go func() {
		d, err := OpenDir(t.Context(), dir, Options{Slug: "web"})
		if err == nil {
			err = d.Close()
		}
		opened <- err
	}()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-opened; err != nil {
		t.Errorf("OpenDir after the first one closed = %v", err)
	}
}

func TestModes(t *testing.T) {
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	for _, tt := range []struct {
		dir, file, sub fs.FileMode
	}{
		{0o700, 0o600, fs.ModeDir | 0o700},
		{0o770 | fs.ModeSetgid, 0o640, fs.ModeDir | fs.ModeSetgid | 0o770},
		{0o755, 0o640, fs.ModeDir | 0o750},
		{0o777, 0o640, fs.ModeDir | 0o770},
	} {
		t.Run(tt.dir.String(), func(t *testing.T) {
			root := t.TempDir()
			dir := filepath.Join(root, "web")
			if err := errors.Join(os.Mkdir(dir, 0o700), os.Chmod(dir, tt.dir)); err != nil {
				t.Fatal(err)
			}
			d := openDir(t, dir, Options{})
			r := openRoot(t, root, RootOptions{})
			p := putNew(t, d)
			if err := r.Respond(t.Context(), "web", answer(p.ID)); err != nil {
				t.Fatal(err)
			}
			for name, want := range map[string]fs.FileMode{
				proposalName(p.ID): tt.file, responseName(p.ID): tt.file, lockFile: tt.file, processed: tt.sub,
			} {
				info, err := os.Stat(filepath.Join(dir, name))
				if err != nil {
					t.Fatal(err)
				}
				if info.Mode() != want {
					t.Errorf("mode of %s = %v, want %v", name, info.Mode(), want)
				}
			}
		})
	}
}

func TestMakeDir(t *testing.T) {
	root := t.TempDir()
	shared := filepath.Join(root, "shared")
	if err := errors.Join(os.Mkdir(shared, 0o700), os.Chmod(shared, fs.ModeSetgid|0o770)); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]fs.FileMode{
		filepath.Join(root, "private", "web"): fs.ModeDir | 0o700,
		filepath.Join(shared, "web"):          fs.ModeDir | fs.ModeSetgid | 0o770,
	} {
		openDir(t, dir, Options{})
		if info, err := os.Stat(dir); err != nil || info.Mode() != want {
			t.Errorf("mode of %s = %v, %v; want %v", dir, info.Mode(), err, want)
		}
	}
	file := filepath.Join(root, "file")
	writeFile(t, file, "")
	if _, err := OpenDir(t.Context(), file, Options{Slug: "web"}); err == nil || !strings.Contains(err.Error(), "not a directory") {
		t.Errorf("OpenDir of a file = %v, want an error that says so", err)
	}
	if _, err := OpenDir(t.Context(), filepath.Join(root, "x"), Options{Slug: "../x"}); err == nil {
		t.Error("OpenDir with a bad slug = nil, want an error")
	}
}

func TestTemps(t *testing.T) {
	dir := t.TempDir()
	oldTime := time.Now().Add(-2 * staleTemp)
	write := func(name string, old bool) {
		t.Helper()
		writeFile(t, filepath.Join(dir, name), "half")
		if old {
			if err := os.Chtimes(filepath.Join(dir, name), oldTime, oldTime); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(".sidecar-1.tmp", false)
	write(".operator-new.tmp", false)
	write(".operator-old.tmp", true)
	write(".probe-old-a.tmp", true)
	write("theirs.tmp", true)
	d := openDir(t, dir, Options{})
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	want := []string{".lock", ".operator-new.tmp", "presence.json", "processed", "theirs.tmp"}
	if got := names(t, dir); !slices.Equal(got, want) {
		t.Errorf("the directory holds %q, want %q", got, want)
	}
}

func TestUnusable(t *testing.T) {
	t.Run("missing inotify", func(t *testing.T) {
		var log logs
		dir := filepath.Join(t.TempDir(), "web")
		d := openDir(t, dir, Options{Logger: log.logger(), newWatcher: func() (*watcher, error) {
			return noWatcher(), limitHint(syscall.EMFILE)
		}})
		p := putNew(t, d)
		got := waitFor(t.Context(), d, p.ID)
		foreign(t, dir, p.ID, approval(p.ID))
		if r := <-got; r.err != nil {
			t.Errorf("Wait = %v", r.err)
		}
		if n := log.count("max_user_instances"); n != 1 {
			t.Errorf("reported %d times, want once", n)
		}
	})
	t.Run("no more watches", func(t *testing.T) {
		var log logs
		dir := filepath.Join(t.TempDir(), "web")
		_, _, source, _ := fakeEvents()
		d := openDir(t, dir, Options{Logger: log.logger(), newWatcher: func() (*watcher, error) {
			w, err := source()
			w.add = func(string) error { return syscall.ENOSPC }
			return w, err
		}})
		p := putNew(t, d)
		got := waitFor(t.Context(), d, p.ID)
		foreign(t, dir, p.ID, approval(p.ID))
		if r := <-got; r.err != nil {
			t.Errorf("Wait = %v", r.err)
		}
		if n := log.count("max_user_watches"); n != 1 {
			t.Errorf("reported %d times, want once", n)
		}
	})
	t.Run("lock is a FIFO", func(t *testing.T) {
		dir := t.TempDir()
		if err := syscall.Mkfifo(filepath.Join(dir, lockFile), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenDir(t.Context(), dir, Options{Slug: "web"}); !errors.Is(err, ErrBad) {
			t.Errorf("OpenDir = %v, want ErrBad", err)
		}
	})
	t.Run("processed is a file", func(t *testing.T) {
		dir := t.TempDir()
		writeFile(t, filepath.Join(dir, processed), "")
		if _, err := OpenDir(t.Context(), dir, Options{Slug: "web"}); err == nil || !strings.Contains(err.Error(), "move it away") {
			t.Errorf("OpenDir = %v, want an error with the mend", err)
		}
		if _, err := OpenDir(t.Context(), dir, Options{Slug: "web"}); errors.Is(err, ErrLocked) {
			t.Error("the failed OpenDir kept the lock")
		}
	})
}

// TestMany: a thousand calls wait on one mailbox, and all are answered; nothing is left of them.
func TestMany(t *testing.T) {
	const n = 1000
	dir := filepath.Join(t.TempDir(), "web")
	d := openDir(t, dir, Options{})
	r := openRoot(t, filepath.Dir(dir), RootOptions{})
	goroutines, files := runtime.NumGoroutine(), openFiles(t)
	ids := make([]ID, n)
	got := make([]<-chan waitResult, n)
	for i := range n {
		p := putNew(t, d)
		ids[i], got[i] = p.ID, waitFor(t.Context(), d, p.ID)
	}
	start := time.Now()
	for _, id := range ids {
		if err := r.Respond(t.Context(), "web", answer(id)); err != nil {
			t.Fatal(err)
		}
	}
	for i, ch := range got {
		if res := <-ch; res.err != nil || res.r.ProposalID != ids[i] {
			t.Errorf("Wait = %+v, want the answer of %s", res, ids[i])
		}
	}
	t.Logf("%d answers in %v", n, time.Since(start))
	for runtime.NumGoroutine() > goroutines || openFiles(t) > files {
		runtime.Gosched() // the last ones are on their way out
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	if _, err := os.Stat("/proc/self/fd"); err != nil {
		return 0
	}
	return len(names(t, "/proc/self/fd"))
}

// TestPendingIsNeverTooFew: looks at the directory, which go on all the time, lose nothing that is stored meanwhile.
func TestPendingIsNeverTooFew(t *testing.T) {
	d, err := OpenDir(t.Context(), filepath.Join(t.TempDir(), "web"), Options{Slug: "web"})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	ctx, stop := context.WithCancel(t.Context())
	var looking sync.WaitGroup
	looking.Go(func() {
		for ctx.Err() == nil {
			for range d.Entries(ctx) {
			}
		}
	})
	defer looking.Wait()
	defer stop()
	for i := range 300 {
		if err := d.Put(t.Context(), Proposal{ID: NewID(), Bottle: "web", Tool: "pipelock-block", ProposedFile: "https://example.com/\n", Justification: "x"}); err != nil {
			t.Fatal(err)
		}
		if got := d.Pending(); got < i+1 {
			t.Fatalf("Pending = %d after %d proposals", got, i+1)
		}
	}
}

// An answer that many wait for is there once, also for those who come when it is there already.
func TestOneCopyOfAnAnswer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "web")
	d := openDir(t, path, Options{})
	p := putNew(t, d)
	a := answer(p.ID)
	a.Status, a.FinalFile = Modified, "https://example.org/"
	if err := openRoot(t, filepath.Dir(path), RootOptions{}).Respond(t.Context(), "web", a); err != nil {
		t.Fatal(err)
	}
	var copies []*byte
	for range 3 {
		r, err := d.Wait(t.Context(), p.ID)
		if err != nil || r.FinalFile != a.FinalFile {
			t.Fatalf("Wait = %+v, %v", r, err)
		}
		copies = append(copies, unsafe.StringData(r.FinalFile))
	}
	if copies[1] != copies[2] { // the first may have come before the mailbox was looked at
		t.Error("who comes later reads a copy of his own")
	}
}
