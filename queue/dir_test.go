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
	"testing/synctest"
	"time"

	"github.com/fsnotify/fsnotify"
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
	d, err := OpenDir(path, opts)
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

// TestHalfWritten: a response that is written in place is read again until it is valid, is reported once after 5 s, and
// never reaches the caller in between.
func TestHalfWritten(t *testing.T) {
	for name, half := range map[string]func(id ID) string{
		"cut":            func(id ID) string { return approval(id)[:20] },
		"empty":          func(ID) string { return "" },
		"another's":      func(ID) string { return approval(otherID) },
		"unknown status": func(id ID) string { return strings.Replace(approval(id), "approved", "granted", 1) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "web")
			synctest.Test(t, func(t *testing.T) {
				var log logs
				d := openDir(t, dir, Options{NoWatch: true, Logger: log.logger()})
				p := putNew(t, d)
				got := waitFor(t.Context(), d, p.ID)
				synctest.Wait()
				foreign(t, dir, p.ID, half(p.ID))
				time.Sleep(4900 * time.Millisecond)
				synctest.Wait()
				if n := log.count("skipping a bad file"); n != 0 {
					t.Errorf("reported %d times before 5 s, want 0", n)
				}
				if _, errs := listDir(t, d); len(errs) != 0 {
					t.Errorf("Entries before 5 s has errors: %v", errs)
				}
				time.Sleep(time.Minute)
				synctest.Wait()
				if n := log.count("skipping a bad file"); n != 1 {
					t.Errorf("reported %d times in a minute, want once", n)
				}
				if entries, errs := listDir(t, d); len(entries) != 1 || entries[0].Response != nil || len(errs) != 1 || !errors.Is(errs[0], ErrBad) {
					t.Errorf("Entries = %+v, %v; want the open proposal and one ErrBad", entries, errs)
				}
				select {
				case r := <-got:
					t.Fatalf("Wait returned %+v", r)
				default:
				}
				foreign(t, dir, p.ID, approval(p.ID))
				if r := <-got; r.err != nil || r.r.Status != Approved || r.r.ProposalID != p.ID {
					t.Errorf("Wait = %+v, want the approval", r)
				}
			})
		})
	}
}

// fakeEvents is a source of events that a test rings.
func fakeEvents() (ring chan fsnotify.Event, lose chan error, make1 func() (*watcher, error), adds func() int) {
	ring, lose = make(chan fsnotify.Event), make(chan error)
	var mu sync.Mutex
	n := 0
	w := noWatcher()
	w.events, w.errors = ring, lose
	w.add = func(string) error {
		mu.Lock()
		defer mu.Unlock()
		n++
		return nil
	}
	return ring, lose, func() (*watcher, error) { return w, nil }, func() int {
		mu.Lock()
		defer mu.Unlock()
		return n
	}
}

// TestPolling holds the poll to its rule by how long an answer that no event announces takes.
func TestPolling(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "web")
	synctest.Test(t, func(t *testing.T) {
		ring, lose, source, adds := fakeEvents()
		d := openDir(t, dir, Options{newWatcher: source})
		// latency answers a waiting call, with an event or silently, and returns how long that took.
		latency := func(event bool) time.Duration {
			p := putNew(t, d)
			got := waitFor(t.Context(), d, p.ID)
			synctest.Wait()
			time.Sleep(time.Millisecond)
			start := time.Now()
			foreign(t, dir, p.ID, approval(p.ID))
			if event {
				ring <- fsnotify.Event{Name: filepath.Join(dir, "whatever"), Op: fsnotify.Chmod}
			}
			if r := <-got; r.err != nil {
				t.Fatalf("Wait = %v", r.err)
			}
			return time.Since(start)
		}
		between := func(what string, got, low, high time.Duration) {
			t.Helper()
			if got < low || got > high {
				t.Errorf("%s: answered after %v, want between %v and %v", what, got, low, high)
			}
		}
		between("no event yet", latency(false), 1, 50*time.Millisecond)
		ring <- fsnotify.Event{Name: dir, Op: fsnotify.Write} // tells of nothing, proves nothing
		between("an empty event", latency(false), 1, 50*time.Millisecond)
		between("an event", latency(true), 0, 0)
		between("an event missing after one proved itself", latency(false), 500*time.Millisecond, time.Second)
		between("after the poll found something", latency(false), 1, 50*time.Millisecond)
		between("an event again", latency(true), 0, 0)
		between("and none again", latency(false), 500*time.Millisecond, time.Second)

		before := adds()
		lose <- fsnotify.ErrEventOverflow
		synctest.Wait()
		if got := adds(); got != before+1 {
			t.Errorf("watched %d times after an overflow, want once", got-before)
		}
		ring <- fsnotify.Event{Name: dir, Op: fsnotify.Remove}
		synctest.Wait()
		if got := adds(); got != before+2 {
			t.Errorf("watched %d times after an overflow and a removal, want twice", got-before)
		}
	})
}

func TestPresenceRate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "web")
	synctest.Test(t, func(t *testing.T) {
		var writes []time.Duration
		start := time.Now()
		d := openDir(t, dir, Options{NoWatch: true})
		read := func() string {
			data, err := os.ReadFile(filepath.Join(dir, presenceFile))
			if err != nil {
				t.Fatal(err)
			}
			return strings.TrimSpace(string(data))
		}
		inode := func() any {
			info, err := os.Stat(filepath.Join(dir, presenceFile))
			if err != nil {
				t.Fatal(err)
			}
			return info.ModTime()
		}
		synctest.Wait()
		if got, want := read(), `{"waiting":{}}`; got != want {
			t.Errorf("at the start presence is %s, want %s", got, want)
		}
		p := putNew(t, d)
		last := inode()
		watch := func(until time.Duration) {
			for time.Since(start) < until {
				time.Sleep(100 * time.Millisecond)
				synctest.Wait()
				if now := inode(); now != last {
					last = now
					writes = append(writes, time.Since(start))
				}
			}
		}
		// Calls come and go ten times a second for 20 s, then one stays for 2 min.
		ctx, cancel := context.WithCancel(t.Context())
		for range 200 {
			short, stop := context.WithTimeout(ctx, 90*time.Millisecond)
			got := waitFor(short, d, p.ID)
			watch(time.Since(start) + 100*time.Millisecond)
			<-got
			stop()
		}
		busy := len(writes)
		if busy < 3 || busy > 4 {
			t.Errorf("written %d times in 20 s, at %v; want every 5 s", busy, writes)
		}
		got := waitFor(ctx, d, p.ID)
		watch(30 * time.Second)
		if got, want := read(), fmt.Sprintf(`{"waiting":{%q:1}}`, p.ID); got != want {
			t.Errorf("while one waits presence is %s, want %s", got, want)
		}
		writes = nil
		watch(150 * time.Second)
		if n := len(writes); n != 4 {
			t.Errorf("written %d times in 2 min with nothing new, at %v; want every 30 s", n, writes)
		}
		cancel()
		<-got
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		if got, want := read(), `{"waiting":{}}`; got != want {
			t.Errorf("after Close presence is %s, want %s", got, want)
		}
	})
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

func TestHostileNames(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "web")
	var log logs
	d := openDir(t, dir, Options{Logger: log.logger()})
	good := putNew(t, d)
	bad := hostile(t, dir)
	for range 3 {
		entries, errs := listDir(t, d)
		if len(entries) != 1 || entries[0].Proposal != good {
			t.Errorf("Entries = %+v, want the good one", entries)
		}
		if len(errs) != bad {
			t.Errorf("Entries has %d errors, want %d: %v", len(errs), bad, errs)
		}
	}
	if n := log.count("skipping a bad file"); n != bad {
		t.Errorf("reported %d bad files, want %d, each once", n, bad)
	}
	if n := log.count("\x1b"); n != 0 {
		t.Errorf("an escape byte reached the log")
	}
	foreign(t, dir, good.ID, approval(good.ID))
	if r, err := d.Wait(t.Context(), good.ID); err != nil || r.Status != Approved {
		t.Errorf("Wait = %+v, %v; want the approval", r, err)
	}
}

// hostile fills a mailbox with what only a hostile or broken program would put there, and returns how many bad files
// there are in it.
func hostile(t *testing.T, dir string) int {
	t.Helper()
	outside := t.TempDir()
	secret := testProposal()
	data, err := encodeProposal(secret)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(outside, "secret"), string(data))
	n := 0
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	name := func(id ID) string { return filepath.Join(dir, proposalName(id)) }
	do(syscall.Mkfifo(name(NewID()), 0o666))
	do(os.Symlink(filepath.Join(outside, "secret"), name(testID)))
	do(os.Symlink("/dev/zero", name(NewID())))
	do(os.Symlink("somewhere else", name(NewID())))
	do(os.Mkdir(name(NewID()), 0o755))
	do(os.WriteFile(name(otherID), data, 0o644)) // another's id
	other := NewID()
	do(os.WriteFile(name(other), bytes.ReplaceAll(bytes.Replace(data, []byte(testID), []byte(other), 1), []byte(`"web"`), []byte(`"db"`)), 0o644))
	do(os.WriteFile(name(NewID()), nil, 0o644))
	do(os.WriteFile(filepath.Join(dir, "\x1b[2J"+proposalSuffix), nil, 0o644))
	do(os.WriteFile(filepath.Join(dir, proposalSuffix), nil, 0o644))
	big := NewID()
	do(os.WriteFile(name(big), nil, 0o644))
	if err := os.Truncate(name(big), 1<<40); err != nil {
		t.Fatal(err)
	}
	// These are nobody's, and not looked at.
	for _, junk := range []string{"README", ".DS_Store", "x.tmp", "\x1b[31mred"} {
		writeFile(t, filepath.Join(dir, junk), "junk")
	}
	return n
}

func TestHostileBottle(t *testing.T) {
	root := t.TempDir()
	for _, slug := range []string{"web", "good"} {
		d, err := OpenDir(filepath.Join(root, slug), Options{Slug: slug})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close() })
	}
	if err := os.Symlink(filepath.Join(root, "good"), filepath.Join(root, "link")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(root, "fifo"), 0o666); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{".desk", "Not-A-Slug", "flooded"} {
		if err := os.Mkdir(filepath.Join(root, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	var log logs
	r := openRoot(t, root, RootOptions{Logger: log.logger()})
	if got, err := r.Bottles(t.Context()); err != nil || !slices.Equal(got, []string{"flooded", "good", "web"}) {
		t.Errorf("Bottles = %q, %v; want the real ones", got, err)
	}
	for _, slug := range []string{"link", "fifo", "missing", ".desk", "Not-A-Slug"} {
		entries, errs := listRoot(t, r, slug)
		if len(entries) != 0 || len(errs) != 1 {
			t.Errorf("Entries(%s) = %v, %v; want one error", slug, entries, errs)
		}
		if err := r.Respond(t.Context(), slug, answer(testID)); err == nil {
			t.Errorf("Respond(%s) = nil, want an error", slug)
		}
	}
	bad := hostile(t, filepath.Join(root, "web"))
	for range 3 {
		entries, errs := listRoot(t, r, "web")
		if len(entries) != 0 || len(errs) != bad {
			t.Errorf("Entries = %v, %v; want %d errors", entries, errs, bad)
		}
	}
	if n := log.count("skipping a bad file"); n != bad {
		t.Errorf("reported %d bad files, want %d, each once", n, bad)
	}
	if err := r.Respond(t.Context(), "web", answer(testID)); err == nil {
		t.Error("Respond to a symlink = nil, want an error")
	}
	for i := range 10_000 {
		writeFile(t, filepath.Join(root, "flooded", fmt.Sprintf("%s%s", NewID(), []string{proposalSuffix, ".junk"}[i%2])), "")
	}
	_, errs := listRoot(t, r, "flooded")
	if !slices.ContainsFunc(errs, func(err error) bool { return errors.Is(err, ErrFlooded) }) {
		t.Errorf("Entries(flooded) has no ErrFlooded among %d errors", len(errs))
	}
	if entries, errs := listRoot(t, r, "good"); len(entries) != 0 || len(errs) != 0 {
		t.Errorf("Entries(good) = %v, %v; want nothing", entries, errs)
	}
	if err := r.Forget(t.Context(), "link"); err == nil {
		t.Error("Forget of a symlink = nil, want an error")
	}
	if _, err := os.Stat(filepath.Join(root, "good", lockFile)); err != nil {
		t.Errorf("the link's target was touched: %v", err)
	}
}

// TestProcessedIsALink: nothing is moved, read or written through it.
func TestProcessedIsALink(t *testing.T) {
	root, outside := t.TempDir(), t.TempDir()
	dir := filepath.Join(root, "web")
	d := openDir(t, dir, Options{})
	p := putNew(t, d)
	r := openRoot(t, root, RootOptions{})
	for _, target := range []string{outside, "."} {
		if err := os.Remove(filepath.Join(dir, processed)); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, filepath.Join(dir, processed)); err != nil {
			t.Fatal(err)
		}
		if err := r.Respond(t.Context(), "web", answer(p.ID)); err != nil && !errors.Is(err, ErrDecided) {
			t.Errorf("Respond = %v", err)
		}
		if err := d.Archive(t.Context(), p.ID); err == nil {
			t.Errorf("Archive through a link to %s = nil, want an error", target)
		}
		if got := names(t, outside); len(got) != 0 {
			t.Errorf("outside holds %q", got)
		}
		if e, err := r.Get(t.Context(), "web", p.ID); err != nil || e.Response == nil || !e.Delivered.IsZero() {
			t.Errorf("Get = %+v, %v; want it answered and undelivered", e, err)
		}
	}
}

func TestFlooded(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "web")
	var log logs
	d := openDir(t, dir, Options{Logger: log.logger()})
	p := putNew(t, d)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	got := waitFor(ctx, d, p.ID)
	untilWaiting(d, p.ID)
	for range maxNames + 10 {
		writeFile(t, filepath.Join(dir, string(NewID())+".junk"), "")
	}
	if _, errs := listDir(t, d); len(errs) != 1 || !errors.Is(errs[0], ErrFlooded) {
		t.Errorf("Entries has errors %v, want ErrFlooded", errs)
	}
	q := p
	q.ID = NewID()
	if err := d.Put(t.Context(), q); !errors.Is(err, ErrFlooded) {
		t.Errorf("Put = %v, want ErrFlooded", err)
	}
	// What waits is still answered.
	foreign(t, dir, p.ID, approval(p.ID))
	if r := <-got; r.err != nil {
		t.Errorf("Wait = %v", r.err)
	}
	junk, err := filepath.Glob(filepath.Join(dir, "*.junk"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range junk {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
	if _, errs := listDir(t, d); len(errs) != 0 {
		t.Errorf("Entries has errors %v, want none", errs)
	}
	if err := d.Put(t.Context(), q); err != nil {
		t.Errorf("Put = %v", err)
	}
	if n := log.count("mailbox flooded"); n != 1 {
		t.Errorf("reported %d times, want once", n)
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
			} else if err := os.CopyFS(dir, os.DirFS(away)); err != nil {
				t.Fatal(err)
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
			if _, err := OpenDir(dir, Options{Slug: "web", LockWait: time.Millisecond}); !errors.Is(err, ErrLocked) {
				t.Errorf("OpenDir by another = %v, want ErrLocked", err)
			}
		})
	}
}

// TestRemovedProposal: whoever waits for a proposal that somebody removed is told, after a while.
func TestRemovedProposal(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "web")
	synctest.Test(t, func(t *testing.T) {
		d := openDir(t, dir, Options{NoWatch: true})
		p := putNew(t, d)
		got := waitFor(t.Context(), d, p.ID)
		synctest.Wait()
		if err := os.Remove(filepath.Join(dir, proposalName(p.ID))); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if r := <-got; !errors.Is(r.err, ErrNotFound) {
			t.Errorf("Wait = %+v, want ErrNotFound", r)
		}
		if after := time.Since(start); after < graceBad || after > graceBad+time.Second {
			t.Errorf("Wait ended after %v, want %v", after, graceBad)
		}
	})
}

func TestLock(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "web")
	d := openDir(t, dir, Options{})
	start := time.Now()
	if _, err := OpenDir(dir, Options{Slug: "web", LockWait: 60 * time.Millisecond}); !errors.Is(err, ErrLocked) {
		t.Errorf("a second OpenDir = %v, want ErrLocked", err)
	}
	if waited := time.Since(start); waited < 60*time.Millisecond {
		t.Errorf("it waited %v, want 60ms", waited)
	}
	// One that waits gets it when the first one goes.
	opened := make(chan error, 1)
	go func() {
		d, err := OpenDir(dir, Options{Slug: "web"})
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

func TestLockDefault(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "web")
	synctest.Test(t, func(t *testing.T) {
		openDir(t, dir, Options{NoWatch: true})
		start := time.Now()
		_, err := OpenDir(dir, Options{Slug: "web", NoWatch: true})
		if waited := time.Since(start); !errors.Is(err, ErrLocked) || waited < 10*time.Second || waited > 11*time.Second {
			t.Errorf("OpenDir = %v after %v, want ErrLocked after 10s", err, waited)
		}
	})
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
	if _, err := OpenDir(file, Options{Slug: "web"}); err == nil || !strings.Contains(err.Error(), "not a directory") {
		t.Errorf("OpenDir of a file = %v, want an error that says so", err)
	}
	if _, err := OpenDir(filepath.Join(root, "x"), Options{Slug: "../x"}); err == nil {
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

// store writes n proposals into dir without a sidecar, each with an approval.
func store(t *testing.T, dir string, n int) (ids []ID) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for range n {
		p := testProposal()
		p.ID = NewID()
		data, err := encodeProposal(p)
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, filepath.Join(dir, proposalName(p.ID)), string(data))
		foreign(t, dir, p.ID, approval(p.ID))
		ids = append(ids, p.ID)
	}
	return ids
}

func TestPrune(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "web")
	synctest.Test(t, func(t *testing.T) {
		unclaimed := store(t, dir, 1)[0] // answered, and nobody comes for it
		store(t, filepath.Join(dir, processed), 599)
		d := openDir(t, dir, Options{NoWatch: true, KeepPairs: 300, KeepFor: 30 * time.Hour, KeepUndelivered: 7 * time.Hour})
		open, last := putNew(t, d), putNew(t, d)
		foreign(t, dir, last.ID, approval(last.ID))
		if err := d.Archive(t.Context(), last.ID); err != nil {
			t.Fatal(err)
		}
		kept := func() int { return len(names(t, filepath.Join(dir, processed))) }
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := kept(); got < 2*300 || got > 2*301 {
			t.Errorf("a minute after the start processed/ holds %d names, want what it held then, pruned to 300 pairs", got)
		}
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if got, want := kept(), 2*300; got != want {
			t.Errorf("after two hours processed/ holds %d names, want %d", got, want)
		}
		if _, err := d.Get(t.Context(), last.ID); err != nil {
			t.Errorf("the newest pair is gone: %v", err)
		}
		time.Sleep(27 * time.Hour)
		synctest.Wait()
		if e, err := d.Get(t.Context(), unclaimed); err != nil || e.Response == nil {
			t.Errorf("after 29 hours the answer that nobody came for is %+v, %v", e, err)
		}
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if got := kept(); got != 0 {
			t.Errorf("after 31 hours processed/ holds %d names, want none", got)
		}
		if _, err := d.Get(t.Context(), unclaimed); !errors.Is(err, ErrNotFound) {
			t.Errorf("after 31 hours the answer that nobody came for is there: %v", err)
		}
		entries, errs := listDir(t, d)
		if len(errs) != 0 || len(entries) != 1 || entries[0].Proposal.ID != open.ID {
			t.Fatalf("Entries = %+v, %v; want the open one, however old", entries, errs)
		}
		if age := entries[0].Age; age < 31*time.Hour {
			t.Errorf("its age is %v, want 31 hours and more", age)
		}
	})
}

func TestDefaults(t *testing.T) {
	d := openDir(t, filepath.Join(t.TempDir(), "web"), Options{})
	for what, ok := range map[string]bool{
		"LockWait 10 s":          d.opts.LockWait == 10*time.Second,
		"PollFast 50 ms":         d.opts.PollFast == 50*time.Millisecond,
		"PollSlow 1 s":           d.opts.PollSlow == time.Second,
		"KeepFor 30 days":        d.opts.KeepFor == 720*time.Hour,
		"KeepPairs 10,000":       d.opts.KeepPairs == 10_000,
		"KeepUndelivered 7 days": d.opts.KeepUndelivered == 168*time.Hour,
	} {
		if !ok {
			t.Errorf("want %s, options are %+v", what, d.opts)
		}
	}
}

// TestPruneNearFlood: answers that nobody came for make room, but not before their time.
func TestPruneNearFlood(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "web")
	synctest.Test(t, func(t *testing.T) {
		all := nearFlood/2 + 50
		store(t, dir, all)
		d := openDir(t, dir, Options{NoWatch: true, KeepUndelivered: 7 * time.Hour})
		count := func() int {
			entries, errs := listDir(t, d)
			if len(errs) != 0 {
				t.Fatalf("Entries has errors %v", errs)
			}
			return len(entries)
		}
		time.Sleep(7*time.Hour - time.Minute)
		synctest.Wait()
		if got := count(); got != all {
			t.Errorf("within 7 hours %d of %d are left, want all", got, all)
		}
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if got := count(); got >= all || got < nearFlood/2-10 {
			t.Errorf("after 7 hours %d of %d are left, want just under %d", got, all, nearFlood/2)
		}
	})
}

// TestBigHistory: what lies in processed/ costs nothing after the start.
func TestBigHistory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "web")
	store(t, filepath.Join(dir, processed), 5000)
	d := openDir(t, dir, Options{})
	opened := time.Now()
	p := putNew(t, d)
	foreign(t, dir, p.ID, approval(p.ID))
	if err := d.Archive(t.Context(), p.ID); err != nil {
		t.Fatal(err)
	}
	store(t, filepath.Join(dir, processed), 1) // would be seen by one that reads the directory again
	var got []ID
	for e, err := range d.Recent(t.Context(), opened) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, e.Proposal.ID)
	}
	if !slices.Equal(got, []ID{p.ID}) {
		t.Errorf("Recent = %q, want %q", got, []ID{p.ID})
	}
}

// TestAges: from the file's time after a restart, never negative, whatever that time is.
func TestAges(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "web")
	d := openDir(t, dir, Options{})
	old, future := putNew(t, d), putNew(t, d)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	for id, mtime := range map[ID]time.Time{old.ID: time.Now().Add(-time.Hour), future.ID: time.Now().Add(time.Hour)} {
		if err := os.Chtimes(filepath.Join(dir, proposalName(id)), mtime, mtime); err != nil {
			t.Fatal(err)
		}
	}
	d = openDir(t, dir, Options{})
	r := openRoot(t, filepath.Dir(dir), RootOptions{})
	for name, list := range map[string]func() ([]Entry, []error){
		"Dir":  func() ([]Entry, []error) { return listDir(t, d) },
		"Root": func() ([]Entry, []error) { return listRoot(t, r, "web") },
	} {
		entries, errs := list()
		if len(errs) != 0 || len(entries) != 2 {
			t.Fatalf("%s.Entries = %v, %v", name, entries, errs)
		}
		if age := entries[0].Age; age < time.Hour || age > time.Hour+time.Minute {
			t.Errorf("%s: age of one from an hour ago = %v", name, age)
		}
		if age := entries[1].Age; age < 0 || age > time.Minute {
			t.Errorf("%s: age of one from the future = %v, want that of now", name, age)
		}
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
		if _, err := OpenDir(dir, Options{Slug: "web"}); !errors.Is(err, ErrBad) {
			t.Errorf("OpenDir = %v, want ErrBad", err)
		}
	})
	t.Run("processed is a file", func(t *testing.T) {
		dir := t.TempDir()
		writeFile(t, filepath.Join(dir, processed), "")
		if _, err := OpenDir(dir, Options{Slug: "web"}); err == nil || !strings.Contains(err.Error(), "move it away") {
			t.Errorf("OpenDir = %v, want an error with the mend", err)
		}
		if _, err := OpenDir(dir, Options{Slug: "web"}); errors.Is(err, ErrLocked) {
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
