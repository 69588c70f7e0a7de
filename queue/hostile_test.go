package queue

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"
)

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
		d, err := OpenDir(t.Context(), filepath.Join(root, slug), Options{Slug: slug})
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

// TestSparse: a file that is too big to be read costs nothing, and is no flood.
func TestSparse(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "web")
	d := openDir(t, dir, Options{})
	r := openRoot(t, root, RootOptions{})
	sparse := filepath.Join(dir, proposalName(NewID()))
	writeFile(t, sparse, "")
	if err := os.Truncate(sparse, 4<<40); err != nil {
		t.Skipf("this file system holds no file of 4 TiB: %v", err)
	}
	good := putNew(t, d)
	foreign(t, dir, good.ID, "")
	if err := os.Truncate(filepath.Join(dir, responseName(good.ID)), 4<<40); err != nil {
		t.Fatal(err)
	}
	later := good
	later.ID = NewID()
	if err := d.Put(t.Context(), later); err != nil {
		t.Fatal(err)
	}
	entries, errs := listRoot(t, r, "web")
	if len(entries) != 2 || entries[0].Proposal.ID != good.ID || entries[1].Proposal.ID != later.ID {
		t.Errorf("Entries = %+v, want the two good ones", entries)
	}
	if len(errs) != 1 || !errors.Is(errs[0], ErrBad) {
		t.Errorf("Entries has errors %v, want the bad file alone", errs)
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

// A mailbox that is flooded for ever, with other names at each look, does not make its reader remember all of them.
func TestFloodedIsNotRemembered(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "web")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for range maxNames + 1 {
		writeFile(t, filepath.Join(dir, string(NewID())+".junk"), "")
	}
	r := openRoot(t, root, RootOptions{})
	for range 2*maxNames + 1 {
		r.seen("web", NewID(), time.Now())
	}
	if _, errs := listRoot(t, r, "web"); len(errs) != 1 || !errors.Is(errs[0], ErrFlooded) {
		t.Errorf("Entries has errors %v, want ErrFlooded", errs)
	}
	if n := len(r.ages["web"]); n != 0 {
		t.Errorf("%d ages of what is gone are kept", n)
	}
}

// TestUndoneFromTheFuture: when something was taken back can be written as JSON, whatever time its file has.
func TestUndoneFromTheFuture(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "web")
	d := openDir(t, dir, Options{})
	p := putNew(t, d)
	foreign(t, dir, p.ID, approval(p.ID))
	name := filepath.Join(dir, undoneName(p.ID))
	writeFile(t, name, "")
	for _, at := range []time.Time{time.Now().Add(time.Hour), time.Date(20000, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(-5, 1, 1, 0, 0, 0, 0, time.UTC)} {
		if err := os.Chtimes(name, at, at); err != nil {
			t.Fatal(err)
		}
		if e, err := d.Get(t.Context(), p.ID); err != nil || time.Since(e.Undone) < 0 || e.Undone.IsZero() || !storable(e.Undone) {
			t.Errorf("of %v: Undone = %v, %v", at, e.Undone, err)
		}
	}
}

// TestListIsBounded: a mailbox that is full of large files costs each look little, and what was answered does not hide what is open.
// All that an honest sidecar keeps is shown.
func TestListIsBounded(t *testing.T) {
	root := t.TempDir()
	fill := func(bottle string, n, size int, answered bool) {
		t.Helper()
		dir := filepath.Join(root, bottle)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		p := Proposal{Bottle: bottle, Tool: "egress-block", ProposedFile: string(bytes.Repeat([]byte("x"), size)), ArrivedAt: testTime}
		p.CurrentFileHash = Hash(p.ProposedFile)
		for range n {
			p.ID = NewID()
			data, err := encodeProposal(p)
			if err != nil {
				t.Fatal(err)
			}
			writeFile(t, filepath.Join(dir, proposalName(p.ID)), string(data))
			if answered {
				foreign(t, dir, p.ID, approval(p.ID))
			}
		}
	}
	fill("hostile", 40, 1<<20, false)
	fill("unfetched", 24, 1<<20, true)
	fill("unfetched", 10, 1<<20, false)
	fill("many", maxNames, 7<<10, false)
	fill("large", 32, 256<<10, true)
	fill("large", 32, 256<<10, false)
	r := openRoot(t, root, RootOptions{})
	for _, tt := range []struct {
		bottle         string
		open, answered int
		flooded        bool
	}{
		{"hostile", 32, 0, true},
		{"unfetched", 10, 16, true},
		{"many", maxNames, 0, false},
		{"large", 32, 32, false},
	} {
		entries, errs := listRoot(t, r, tt.bottle)
		open := 0
		for _, e := range entries {
			if e.Response == nil {
				open++
			}
		}
		if open != tt.open || len(entries)-open != tt.answered {
			t.Errorf("%s: %d open and %d answered, want %d and %d", tt.bottle, open, len(entries)-open, tt.open, tt.answered)
		}
		if tt.flooded && (len(errs) != 1 || !errors.Is(errs[0], ErrFlooded)) || !tt.flooded && len(errs) != 0 {
			t.Errorf("%s: errors %v, flooded should be %t", tt.bottle, errs, tt.flooded)
		}
	}
}
