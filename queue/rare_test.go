package queue

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// obstruct puts something in the place of a file that cannot be removed as one.
func obstruct(t *testing.T, path string) {
	t.Helper()
	if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o700)); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(path, "x"), "")
}

// TestPruneStopsHalfWay: of a pair whose removal fails half-way the answer stays. What nobody came for would look open without
// it, and what is left in processed/ has its time.
func TestPruneStopsHalfWay(t *testing.T) {
	for name, place := range map[string]func(string) string{
		"delivered":          archived,
		"nobody came for it": func(name string) string { return name },
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "web")
			synctest.Test(t, func(t *testing.T) {
				id := store(t, filepath.Join(dir, filepath.Dir(place("x"))), 1)[0]
				proposal, response := filepath.Join(dir, place(proposalName(id))), filepath.Join(dir, place(responseName(id)))
				d := openDir(t, dir, Options{NoWatch: true, KeepFor: 5 * time.Hour, KeepUndelivered: time.Hour})
				listDir(t, d) // it knows the pair
				obstruct(t, proposal)
				time.Sleep(6 * time.Hour)
				synctest.Wait()
				if _, err := os.Stat(response); err != nil {
					t.Errorf("the answer was removed before its proposal: %v", err)
				}
				if err := os.RemoveAll(proposal); err != nil {
					t.Fatal(err)
				}
				time.Sleep(3 * time.Hour)
				synctest.Wait()
				if _, err := os.Stat(response); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("the rest of the pair was not removed: %v", err)
				}
			})
		})
	}
}

// TestNotExpiredWhileWaitedFor: whoever has just come for an old answer gets it.
func TestNotExpiredWhileWaitedFor(t *testing.T) {
	d := &Dir{
		opts: Options{KeepUndelivered: time.Hour, KeepFor: 2 * time.Hour}, waiters: map[ID][]chan<- *result{},
		open: map[ID]*standing{testID: {resp: &Response{}, respSeen: newSeen(time.Now().Add(-3 * time.Hour))}},
	}
	l := &dirLoop{Dir: d}
	d.waiters[testID] = make([]chan<- *result, 1)
	if got := l.expired(); len(got) != 0 {
		t.Errorf("expired = %v while it is waited for, want none", got)
	}
	delete(d.waiters, testID)
	if got := l.expired(); len(got) != 1 {
		t.Errorf("expired = %v, want it", got)
	}
}

// TestStrayIsNone: an answer whose proposal is there, and bad, answers something: it is not told of, and not removed in time.
func TestStrayIsNone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "web")
	synctest.Test(t, func(t *testing.T) {
		var log logs
		d := openDir(t, dir, Options{NoWatch: true, Logger: log.logger(), KeepUndelivered: time.Hour})
		id := NewID()
		writeFile(t, filepath.Join(dir, proposalName(id)), "{")
		foreign(t, dir, id, approval(id))
		listDir(t, d)
		time.Sleep(4 * time.Hour)
		synctest.Wait()
		_, errs := listDir(t, d)
		if len(errs) != 1 || !strings.Contains(errs[0].Error(), proposalName(id)) {
			t.Errorf("Entries has errors %v, want the one of the proposal", errs)
		}
		if n := log.count("answers no proposal"); n != 0 {
			t.Errorf("its answer was told of as one without a proposal")
		}
		if _, err := os.Stat(filepath.Join(dir, responseName(id))); err != nil {
			t.Errorf("its answer was removed: %v", err)
		}
	})
}

// TestStrayIsMovedMeanwhile: an answer that an Archive is moving when a look finds it without its proposal is not late.
func TestStrayIsMovedMeanwhile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "web")
	var log logs
	d := openDir(t, dir, Options{NoWatch: true, Logger: log.logger()})
	p := putNew(t, d)
	foreign(t, dir, p.ID, approval(p.ID))
	l := &dirLoop{Dir: d, orphans: map[ID]seen{}}
	d.moves.RLock() // as Archive has it
	if err := d.box.moveTo(proposalName(p.ID), proposalName(p.ID)); err != nil {
		t.Fatal(err)
	}
	v := l.newView()
	var look sync.WaitGroup
	look.Go(func() { v.stray(p.ID) })
	for d.moves.TryRLock() { // until stray waits for the lock: it has seen the answer
		d.moves.RUnlock()
		runtime.Gosched()
	}
	err := d.box.moveTo(responseName(p.ID), responseName(p.ID))
	d.moves.RUnlock()
	look.Wait()
	if err != nil {
		t.Fatal(err)
	}
	if n := log.count("came after its proposal"); n != 0 || v.news {
		t.Errorf("an answer that was moved is told of as late")
	}
}

// TestGlanceAtArchived: the event of an answer may be read when that answer has been archived; then the proposal is not open again.
func TestGlanceAtArchived(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "web")
	d := openDir(t, dir, Options{NoWatch: true})
	p := putNew(t, d)
	foreign(t, dir, p.ID, approval(p.ID))
	d.mu.Lock()
	was := d.open[p.ID]
	d.delivers.add(p.ID, time.Now()) // as Archive does while the glance reads the file
	d.mu.Unlock()
	if !(&dirLoop{Dir: d, watching: true}).glance(p.ID) {
		t.Error("a glance was not enough")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.open[p.ID] != was {
		t.Error("what was archived is open again")
	}
}

// TestBadFromTheFuture: a file that claims to be written tomorrow is told of today.
func TestBadFromTheFuture(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "web")
	d := openDir(t, dir, Options{NoWatch: true})
	r := openRoot(t, root, RootOptions{})
	p, alone := putNew(t, d), NewID()
	foreign(t, dir, p.ID, "{")
	foreign(t, dir, alone, approval(alone))
	if _, errs := listRoot(t, r, "web"); len(errs) != 0 {
		t.Errorf("errors at once: %v; want none while they may be in writing", errs)
	}
	for _, id := range []ID{p.ID, alone} {
		at := time.Now().Add(24 * time.Hour)
		if err := os.Chtimes(filepath.Join(dir, responseName(id)), at, at); err != nil {
			t.Fatal(err)
		}
	}
	if _, errs := listRoot(t, r, "web"); len(errs) != 2 {
		t.Errorf("errors %v, want one for each answer from the future", errs)
	}
}
