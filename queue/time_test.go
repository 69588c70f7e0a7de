package queue

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fsnotify/fsnotify"
)

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
		// latency answers a waiting call, with an event of that name or silently, and returns how long that took.
		latency := func(event string) time.Duration {
			p := putNew(t, d)
			got := waitFor(t.Context(), d, p.ID)
			synctest.Wait()
			time.Sleep(time.Millisecond)
			start := time.Now()
			foreign(t, dir, p.ID, approval(p.ID))
			if event != "" {
				ring <- fsnotify.Event{Name: filepath.Join(dir, event), Op: fsnotify.Create}
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
		between("no event yet", latency(""), 1, 50*time.Millisecond)
		ring <- fsnotify.Event{Name: dir, Op: fsnotify.Write} // tells of nothing, proves nothing
		between("an empty event", latency(""), 1, 50*time.Millisecond)
		between("an event", latency("whatever"), 0, 0)
		between("an event missing after one proved itself", latency(""), 500*time.Millisecond, time.Second)
		between("after the poll found something", latency(""), 1, 50*time.Millisecond)
		between("an event again", latency("whatever"), 0, 0)
		between("and none again", latency(""), 500*time.Millisecond, time.Second)
		between("after the poll found something again", latency(""), 1, 50*time.Millisecond)
		between("an event the third time", latency("whatever"), 0, 0)
		between("an event of what counts nowhere", latency(".other.tmp"), 500*time.Millisecond, time.Second)

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
		// One to three calls come and go ten times a second for 20 s, then one stays for 2 min.
		ctx, cancel := context.WithCancel(t.Context())
		for i := range 200 {
			short, stop := context.WithTimeout(ctx, 90*time.Millisecond)
			var got []<-chan waitResult
			for range 1 + i%3 {
				got = append(got, waitFor(short, d, p.ID))
			}
			watch(time.Since(start) + 100*time.Millisecond)
			for _, ch := range got {
				<-ch
			}
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

// TestPresenceInSteps: a call waits in steps, to show progress between them, and is there all the time. One that is gone is not.
func TestPresenceInSteps(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "web")
	synctest.Test(t, func(t *testing.T) {
		d := openDir(t, dir, Options{NoWatch: true})
		p := putNew(t, d)
		here := fmt.Sprintf(`{"waiting":{%q:1}}`, p.ID)
		told := func() string {
			synctest.Wait()
			data, err := os.ReadFile(filepath.Join(dir, presenceFile))
			if err != nil {
				t.Fatal(err)
			}
			return strings.TrimSpace(string(data))
		}
		for n := range 8 {
			step, stop := context.WithTimeout(t.Context(), 15*time.Second)
			if r := <-waitFor(step, d, p.ID); !errors.Is(r.err, context.DeadlineExceeded) {
				t.Fatalf("Wait = %+v", r)
			}
			stop()
			time.Sleep(10 * time.Millisecond) // it says how long it has waited
			if got := told(); got != here {
				t.Errorf("after step %d presence is %s, want %s", n, got, here)
			}
		}
		time.Sleep(2 * presenceSoon)
		if got, want := told(), `{"waiting":{}}`; got != want {
			t.Errorf("after the last step presence is %s, want %s", got, want)
		}
	})
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

func TestLockDefault(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "web")
	synctest.Test(t, func(t *testing.T) {
		openDir(t, dir, Options{NoWatch: true})
		start := time.Now()
		_, err := OpenDir(t.Context(), dir, Options{Slug: "web", NoWatch: true})
		if waited := time.Since(start); !errors.Is(err, ErrLocked) || waited < 10*time.Second || waited > 11*time.Second {
			t.Errorf("OpenDir = %v after %v, want ErrLocked after 10s", err, waited)
		}
	})
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
		for _, id := range []ID{unclaimed, last.ID, NewID()} { // the last one's pair was pruned while it was written
			writeFile(t, filepath.Join(dir, undoneName(id)), "")
		}
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
		if e, err := d.Get(t.Context(), last.ID); err != nil || e.Undone.IsZero() {
			t.Errorf("the newest pair, or that it was taken back, is gone: %+v, %v", e, err)
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
		for _, name := range names(t, dir) {
			if strings.HasSuffix(name, undoneSuffix) {
				t.Errorf("%s is left", name)
			}
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

// TestPruneSoon: many answers within the hour are not all kept until its end.
func TestPruneSoon(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "web")
	synctest.Test(t, func(t *testing.T) {
		d := openDir(t, dir, Options{NoWatch: true, KeepPairs: 10})
		answer := func(n int) {
			for range n {
				p := putNew(t, d)
				foreign(t, dir, p.ID, approval(p.ID))
				if err := d.Archive(t.Context(), p.ID); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(2 * time.Minute)
			synctest.Wait()
		}
		for _, step := range []struct{ more, want int }{{11, 11}, {1, 10}, {20, 10}} { // one over is not worth it
			answer(step.more)
			if got := len(names(t, filepath.Join(dir, processed))) / 2; got != step.want {
				t.Errorf("two minutes after %d more answers %d pairs are kept, want %d", step.more, got, step.want)
			}
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

// TestPruneSyncs: no power cut leaves a proposal whose answer is pruned, since that would look open.
func TestPruneSyncs(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "web")
	synctest.Test(t, func(t *testing.T) {
		ids := store(t, dir, 3)
		var mu sync.Mutex
		var left []string // guarded by mu: when the removal of the proposals is made durable
		lost := true      // guarded by mu
		openDir(t, dir, Options{NoWatch: true, KeepFor: time.Hour, KeepUndelivered: time.Hour, Fault: func(step string, done bool) error {
			if step != "prune.sync-proposals" || done {
				return nil
			}
			mu.Lock()
			defer mu.Unlock()
			left = names(t, dir)
			if lost {
				return errors.New("EIO")
			}
			return nil
		}})
		check := func() {
			mu.Lock()
			defer mu.Unlock()
			for _, id := range ids {
				if slices.Contains(left, proposalName(id)) || !slices.Contains(left, responseName(id)) {
					t.Errorf("synced with %q there, want the responses and no proposal", left)
				}
				_, err := os.Stat(filepath.Join(dir, responseName(id)))
				if there := err == nil; there != lost {
					t.Errorf("the response is there: %v, the sync failed: %v", there, lost)
				}
			}
			lost = false
		}
		for range 2 {
			time.Sleep(90 * time.Minute)
			synctest.Wait()
			check()
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

// A poll of a directory in which nothing was made or moved costs two calls, however full it is.
func TestUnchanged(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "web")
	d := openDir(t, dir, Options{NoWatch: true})
	p := putNew(t, d)
	l := &dirLoop{Dir: d, w: noWatcher(), proven: true, watching: true} // never run; its clock is this test
	look := func() {
		t.Helper()
		if _, err := l.lookOnce(); err != nil {
			t.Fatal(err)
		}
	}
	want := func(want bool, why string) {
		t.Helper()
		if got := l.unchanged(); got != want {
			t.Errorf("%s: unchanged is %v, want %v", why, got, want)
		}
	}
	age := func(d time.Duration) {
		t.Helper()
		when := time.Now().Add(-d)
		if err := os.Chtimes(dir, when, when); err != nil {
			t.Fatal(err)
		}
	}
	want(false, "never listed")
	look()
	want(false, "listed within the granularity of a change")
	age(time.Hour)
	want(false, "another time than when it was listed")
	look()
	want(true, "listed long after the last change")
	l.proven = false
	want(true, "events do not arrive here, and it was listed a moment ago")
	l.fullAt = l.fullAt.Add(-l.opts.PollSlow)
	want(false, "events do not arrive here, and it was listed a second ago")
	l.proven = true
	foreign(t, dir, p.ID, approval(otherID))
	want(false, "a file came")
	look()
	age(time.Hour)
	look()
	want(false, "a bad response may be written again in place")
	if err := os.Remove(filepath.Join(dir, responseName(p.ID))); err != nil {
		t.Fatal(err)
	}
	look()
	age(time.Hour)
	look()
	want(true, "it was removed")
	l.fullAt = l.fullAt.Add(-fullEvery)
	want(false, "not listed for long")
	look()
	if err := os.Rename(dir, dir+"-away"); err != nil {
		t.Fatal(err)
	}
	want(false, "the directory is another one")
}

// Whoever begins to wait has the loop poll, also beside somebody whose answer was there at once and who is about to leave.
func TestJoiningBesideOneThatIsAnswered(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "web")
	synctest.Test(t, func(t *testing.T) {
		d := openDir(t, dir, Options{NoWatch: true})
		a, b := putNew(t, d), putNew(t, d)
		foreign(t, dir, a.ID, approval(a.ID))
		if res := <-waitFor(t.Context(), d, a.ID); res.err != nil {
			t.Fatal(res.err)
		}
		time.Sleep(time.Minute) // the loop has nothing to do
		again, _ := d.join(t.Context(), a.ID)
		got := waitFor(t.Context(), d, b.ID)
		synctest.Wait()
		d.leave(a.ID, again)
		foreign(t, dir, b.ID, approval(b.ID))
		start := time.Now()
		if res := <-got; res.err != nil {
			t.Fatal(res.err)
		}
		if d := time.Since(start); d > 50*time.Millisecond {
			t.Errorf("answered after %v, want at most 50ms", d)
		}
	})
}
