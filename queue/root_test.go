package queue

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fsnotify/fsnotify"
)

// TestRespondLate puts another operator's answer and the sidecar's archiving at the worst moments of a Respond.
func TestRespondLate(t *testing.T) {
	type env struct {
		d     *Dir
		other *Root
		id    ID
	}
	check := func(t *testing.T, errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	rejection := func(id ID) Response {
		return Response{ProposalID: id, Status: Rejected, DecidedAt: testTime.Add(time.Second)}
	}
	for _, tt := range []struct {
		name string
		step string // of ours, before which between runs; after it if done
		done bool
		do   func(t *testing.T, e env)
		want error // of our Respond; nil: it stands
	}{
		{"another answers before the link", "respond.link", false, func(t *testing.T, e env) {
			check(t, e.other.Respond(t.Context(), "web", rejection(e.id)))
		}, ErrDecided},
		{"another answers and it is archived before the link", "respond.link", false, func(t *testing.T, e env) {
			check(t, e.other.Respond(t.Context(), "web", rejection(e.id)), e.d.Archive(t.Context(), e.id))
		}, ErrLate},
		{"ours is archived after the link", "respond.link", true, func(t *testing.T, e env) {
			check(t, e.d.Archive(t.Context(), e.id))
		}, nil},
		{"ours is archived after the sync", "respond.syncdir", true, func(t *testing.T, e env) {
			check(t, e.d.Archive(t.Context(), e.id))
		}, nil},
		{"the archiving of ours stops half-way", "respond.link", true, func(t *testing.T, e env) {
			e.d.moves.Lock()
			defer e.d.moves.Unlock()
			check(t, e.d.box.moveTo(proposalName(e.id), proposalName(e.id)))
		}, nil},
		{"the bottle is forgotten before the link", "respond.link", false, func(t *testing.T, e env) {
			check(t, e.d.Close(), e.other.Forget(t.Context(), "web"))
		}, fs.ErrNotExist},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			e := env{d: openDir(t, filepath.Join(root, "web"), Options{}), other: openRoot(t, root, RootOptions{})}
			e.id = putNew(t, e.d).ID
			r := openRoot(t, root, RootOptions{Fault: func(step string, done bool) error {
				if step == tt.step && done == tt.done {
					tt.do(t, e)
				}
				return nil
			}})
			err := r.Respond(t.Context(), "web", answer(e.id))
			if !errors.Is(err, tt.want) || (err == nil) != (tt.want == nil) {
				t.Errorf("Respond = %v, want %v", err, tt.want)
			}
			if c, ok := errors.AsType[*ConflictError](err); ok && !c.Response.Equal(rejection(e.id)) {
				t.Errorf("the conflict names %+v, want the other's", c.Response)
			}
			if tt.want == fs.ErrNotExist {
				return
			}
			want := answer(e.id)
			if tt.want != nil {
				want = rejection(e.id)
			}
			if got, err := e.d.Wait(t.Context(), e.id); err != nil || !got.Equal(want) {
				t.Errorf("Wait = %+v, %v; want %+v", got, err, want)
			}
			if tt.want == ErrLate {
				listDir(t, e.d) // looks, and so tidies
				if _, err := os.Stat(filepath.Join(root, "web", processed, e.id.late())); err != nil {
					t.Errorf("the late answer was not put aside: %v", err)
				}
			}
		})
	}
}

// TestLookWhileArchived: a look that began in the middle of an Archive finds the answer that is archived, whatever stands in its
// place by then.
func TestLookWhileArchived(t *testing.T) {
	late := func(t *testing.T, dir string, id ID) {
		data, err := encodeResponse(Response{ProposalID: id, Status: Rejected, DecidedAt: testTime.Add(time.Second)})
		if err != nil {
			t.Fatal(err)
		}
		foreign(t, dir, id, string(data))
	}
	for _, tt := range []struct {
		name string
		ends bool // the archiving does
		then func(t *testing.T, dir string, id ID)
	}{
		{name: "it stays half-way"},
		{name: "it ends", ends: true},
		{name: "it ends, and another's answer comes", ends: true, then: late},
		{name: "it ends, and what is no answer comes", ends: true, then: func(t *testing.T, dir string, id ID) { foreign(t, dir, id, "{") }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			dir := filepath.Join(root, "web")
			d := openDir(t, dir, Options{})
			r := openRoot(t, root, RootOptions{})
			id := putNew(t, d).ID
			if err := errors.Join(r.Respond(t.Context(), "web", answer(id)), d.Close()); err != nil {
				t.Fatal(err)
			}
			b, err := r.openBox("web")
			if err != nil {
				t.Fatal(err)
			}
			defer b.close()
			if err := b.moveTo(proposalName(id), proposalName(id)); err != nil {
				t.Fatal(err)
			}
			b.aside = func() {
				b.aside = nil
				if tt.ends {
					if err := b.moveTo(responseName(id), responseName(id)); err != nil {
						t.Error(err)
					}
				}
				if tt.then != nil {
					tt.then(t, dir, id)
				}
			}
			if f, err := b.lookup(id); err != nil || f.Response == nil || !f.Response.Equal(answer(id)) {
				t.Errorf("lookup = %+v, %v; want the answer that was archived", f.Entry, err)
			}
			if b.aside != nil {
				t.Error("the look did not come between")
			}
			if err := r.won(b, answer(id)); err != nil {
				t.Errorf("won = %v, want nil: it is the answer", err)
			}
		})
	}
}

// TestRespondToBad: a response that is not valid is nobody's answer, and still not overwritten.
func TestRespondToBad(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "web")
	d := openDir(t, dir, Options{})
	r := openRoot(t, root, RootOptions{})
	p := putNew(t, d)
	foreign(t, dir, p.ID, "{")
	if err := r.Respond(t.Context(), "web", answer(p.ID)); !errors.Is(err, ErrBad) || errors.Is(err, ErrDecided) {
		t.Errorf("Respond = %v, want ErrBad", err)
	}
	if e, err := r.Get(t.Context(), "web", p.ID); err != nil || e.Response != nil || e.BadResponse == nil || e.BadResponse.Name != responseName(p.ID) {
		t.Errorf("Get = %+v, %v; want no response, and what is in its place", e, err)
	}
	// While it may be in writing it is no news; then it is.
	if entries, errs := listRoot(t, r, "web"); len(entries) != 1 || entries[0].Response != nil || len(errs) != 0 {
		t.Errorf("Entries at once = %+v, %v; want the open one and no error", entries, errs)
	}
	old := time.Now().Add(-time.Minute)
	if err := os.Chtimes(filepath.Join(dir, responseName(p.ID)), old, old); err != nil {
		t.Fatal(err)
	}
	if entries, errs := listRoot(t, r, "web"); len(entries) != 1 || len(errs) != 1 || !errors.Is(errs[0], ErrBad) {
		t.Errorf("Entries after a minute = %+v, %v; want the open one and ErrBad", entries, errs)
	}
	if err := os.Remove(filepath.Join(dir, responseName(p.ID))); err != nil {
		t.Fatal(err)
	}
	if err := r.Respond(t.Context(), "web", answer(p.ID)); err != nil {
		t.Errorf("Respond after it was removed = %v", err)
	}
}

func TestPresence(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "web")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	r := openRoot(t, root, RootOptions{})
	file := filepath.Join(dir, presenceFile)
	at := func(age time.Duration, data string) Presence {
		t.Helper()
		if err := os.RemoveAll(file); err != nil {
			t.Fatal(err)
		}
		writeFile(t, file, data)
		when := time.Now().Add(-age)
		if err := os.Chtimes(file, when, when); err != nil {
			t.Fatal(err)
		}
		p, err := r.Presence(t.Context(), "web")
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	one := fmt.Sprintf(`{"waiting": {%q: 2, "../x": 9, %q: -1}, "more": true}`, testID, otherID)
	if p, err := r.Presence(t.Context(), "web"); err != nil || p.Known {
		t.Errorf("without a file = %+v, %v; want unknown", p, err)
	}
	if p := at(0, one); !p.Known || len(p.Waiting) != 1 || p.Waiting[testID] != 2 {
		t.Errorf("fresh = %+v, want 2 waiting for one id", p)
	}
	if p := at(80*time.Second, one); !p.Known {
		t.Errorf("after 80 s = %+v, want known", p)
	}
	if p := at(100*time.Second, one); p.Known || len(p.Waiting) != 0 {
		t.Errorf("after 100 s = %+v, want unknown", p)
	}
	if p := at(-time.Hour, one); !p.Known {
		t.Errorf("from the future = %+v, want it to count as now", p)
	}
	for _, bad := range []string{"", "[]", `{"waiting": 7}`, strings.Repeat(" ", MaxFile+1)} {
		if p := at(0, bad); p.Known {
			t.Errorf("of a file that does not parse = %+v, want unknown", p)
		}
	}
	if err := errors.Join(os.Remove(file), syscall.Mkfifo(file, 0o666)); err != nil {
		t.Fatal(err)
	}
	if p, err := r.Presence(t.Context(), "web"); err != nil || p.Known {
		t.Errorf("of a FIFO = %+v, %v; want unknown", p, err)
	}
}

// TestPresenceFromTheFuture: it does not stay fresh until the clock has caught up.
func TestPresenceFromTheFuture(t *testing.T) {
	root := t.TempDir()
	synctest.Test(t, func(t *testing.T) { // begins in 2000, long before the file's time
		dir := filepath.Join(root, "web")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		writeFile(t, filepath.Join(dir, presenceFile), `{"waiting": {}}`)
		r := openRoot(t, root, RootOptions{})
		for _, want := range []bool{true, true, false} {
			if p, err := r.Presence(t.Context(), "web"); err != nil || p.Known != want {
				t.Errorf("Presence = %+v, %v; want known %v", p, err, want)
			}
			time.Sleep(60 * time.Second)
		}
	})
}

// TestChangesPolling: what no event announces is found by polling, fast until events have proved themselves.
func TestChangesPolling(t *testing.T) {
	root := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		ring, lose, source, adds := fakeEvents()
		r := openRoot(t, root, RootOptions{newWatcher: source})
		ctx, cancel := context.WithCancel(t.Context())
		ch, err := r.Changes(ctx)
		if err != nil {
			t.Fatal(err)
		}
		quiet := func() {
			synctest.Wait()
			for {
				select {
				case <-ch:
				default:
					return
				}
			}
		}
		// latency makes a change and returns how long it took to be rung for.
		latency := func(change func()) time.Duration {
			quiet()
			time.Sleep(time.Millisecond)
			synctest.Wait()
			quiet()
			start := time.Now()
			change()
			<-ch
			return time.Since(start)
		}
		between := func(what string, got, low, high time.Duration) {
			t.Helper()
			if got < low || got > high {
				t.Errorf("%s: rung after %v, want between %v and %v", what, got, low, high)
			}
		}
		dir := filepath.Join(root, "web")
		put := func() ID {
			ids := store(t, dir, 1)
			return ids[0]
		}
		between("a new bottle", latency(func() { put() }), 1, 50*time.Millisecond)
		between("a new proposal", latency(func() { put() }), 1, 50*time.Millisecond)
		ring <- fsnotify.Event{Name: filepath.Join(dir, responseName(testID)), Op: fsnotify.Create} // may be our own doing
		between("after an event that proves nothing", latency(func() { put() }), 1, 50*time.Millisecond)
		between("an event", latency(func() {
			ring <- fsnotify.Event{Name: filepath.Join(dir, proposalName(put())), Op: fsnotify.Create}
		}), 0, 0)
		time.Sleep(time.Second) // the poll takes note of what was announced
		between("silence after a proof", latency(func() { put() }), 100*time.Millisecond, time.Second)
		between("after the poll found something", latency(func() { put() }), 1, 50*time.Millisecond)
		between("a file rewritten in place", latency(func() { foreign(t, dir, put(), "{") }), 1, 50*time.Millisecond)

		quiet()
		before := adds()
		lose <- fsnotify.ErrEventOverflow
		<-ch
		synctest.Wait()
		if got := adds() - before; got != 2 {
			t.Errorf("watched %d directories after an overflow, want the root and the bottle", got)
		}
		cancel()
		for range ch { // ends when it is closed
		}
	})
}

func TestChangesEndByClose(t *testing.T) {
	r := openRoot(t, t.TempDir(), RootOptions{})
	ch, err := r.Changes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	for range ch { // ends when it is closed
	}
	if _, err := r.Changes(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("Changes after Close = %v, want ErrClosed", err)
	}
	if _, err := r.Bottles(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("Bottles after Close = %v, want ErrClosed", err)
	}
}

// TestRootReplaced: a root that was removed and made again works again, with its watches.
func TestRootReplaced(t *testing.T) {
	root := filepath.Join(t.TempDir(), "root")
	r := openRoot(t, root, RootOptions{})
	ch, err := r.Changes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(root); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Bottles(t.Context()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Bottles without a root = %v, want an error", err)
	}
	d := openDir(t, filepath.Join(root, "web"), Options{})
	p := putNew(t, d)
	for {
		if entries, _ := listRoot(t, r, "web"); len(entries) == 1 && entries[0].Proposal == p {
			break
		}
		<-ch
	}
}

func TestForgetLeavesNothing(t *testing.T) {
	root, outside := t.TempDir(), t.TempDir()
	dir := filepath.Join(root, "web")
	ids := store(t, dir, 3)
	hostile(t, dir)
	writeFile(t, filepath.Join(outside, "kept"), "")
	if err := os.Symlink(outside, filepath.Join(dir, "out")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(root, forgotten+"db-x"), 0o700); err != nil { // what a crash left
		t.Fatal(err)
	}
	r := openRoot(t, root, RootOptions{})
	listRoot(t, r, "web")
	if err := r.Forget(t.Context(), "web"); err != nil {
		t.Fatalf("Forget = %v", err)
	}
	if got := names(t, root); len(got) != 0 {
		t.Errorf("the root holds %q, want nothing", got)
	}
	if got := names(t, outside); !slices.Equal(got, []string{"kept"}) {
		t.Errorf("outside holds %q, want what was there", got)
	}
	if _, err := r.Get(t.Context(), "web", ids[0]); !errors.Is(err, ErrNoBottle) {
		t.Errorf("Get = %v, want ErrNoBottle", err)
	}
	if n := len(r.ages) + len(r.reported); n != 0 {
		t.Errorf("%d bottles are remembered, want none", n)
	}
}

// TestRemoveTree: a tree that is deeper than files can be open goes all the same, and nothing behind a link in it.
func TestRemoveTree(t *testing.T) {
	root, outside := t.TempDir(), t.TempDir()
	writeFile(t, filepath.Join(outside, "kept"), "")
	for _, start := range []string{"a", "b"} {
		path := filepath.Join(root, "web", start)
		for range 50 {
			if err := os.MkdirAll(filepath.Join(path, "side"), 0o700); err != nil {
				t.Fatal(err)
			}
			writeFile(t, filepath.Join(path, "file"), "")
			if err := os.Symlink(outside, filepath.Join(path, "out")); err != nil {
				t.Fatal(err)
			}
			path = filepath.Join(path, "deep")
		}
	}
	for i := range 3 * 1024 {
		writeFile(t, filepath.Join(root, "web", "a", "deep", strconv.Itoa(i)), "")
	}
	dir, err := os.OpenRoot(root)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	r := openRoot(t, root, RootOptions{})
	fewFiles(t, 20)
	if err := r.removeTree(dir, "web", maxRemoved); err != nil {
		t.Errorf("removeTree = %v", err)
	}
	if got := names(t, root); len(got) != 0 {
		t.Errorf("it holds %q, want nothing", got)
	}
	if got := names(t, outside); !slices.Equal(got, []string{"kept"}) {
		t.Errorf("outside holds %q, want what was there", got)
	}
}

// fewFiles lets so many more be open until the test ends.
func fewFiles(t *testing.T, n int) {
	t.Helper()
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var was syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	few := was
	few.Cur = uint64(f.Fd()) + uint64(n)
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &was); err != nil {
			t.Error(err)
		}
	})
}

// TestForgetEnds: also while a sidecar still makes directories, and then it says what is to be done.
func TestForgetEnds(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "web", "a", "b"), 0o700); err != nil {
		t.Fatal(err)
	}
	r := openRoot(t, root, RootOptions{maxRemoved: shareRemoved})
	made := 0
	r.removing = func(web *os.Root) { // more than is removed
		for range 2 {
			made++
			if err := web.Mkdir(string(NewID()), 0o700); err != nil {
				t.Fatal(err)
			}
		}
	}
	err := r.Forget(t.Context(), "web")
	if err == nil {
		t.Fatalf("Forget = nil, with %d directories made meanwhile", made)
	}
	left := names(t, root)
	if len(left) != 1 || !strings.HasPrefix(left[0], forgotten+"web-") {
		t.Fatalf("the root holds %q", left)
	}
	for _, want := range []string{"forgetting bottle web", "stop its container", "rm -rf " + filepath.Join(root, left[0])} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("Forget = %v, want an error that says %q", err, want)
		}
	}
	// Each command that comes after takes its share.
	before := len(names(t, filepath.Join(root, left[0])))
	openRoot(t, root, RootOptions{})
	after := len(names(t, filepath.Join(root, left[0])))
	if after != before-shareRemoved {
		t.Errorf("%d directories are left of %d, want %d less", after, before, shareRemoved)
	}
}

// TestTwoUsers runs the two sides under different users, in the way that docs/mailbox.md gives for it: a shared group.
func TestTwoUsers(t *testing.T) {
	const sidecar, operator, group = 61001, 61002, 61003
	if os.Getenv("QUEUE_TEST_ROLE") != "" {
		twoUsersRole(t)
		return
	}
	if os.Getuid() != 0 {
		t.Skip("needs root, to run programs as two users")
	}
	base, err := os.MkdirTemp("", "queue-two-users-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(base)
	root := filepath.Join(base, "root")
	dir := filepath.Join(root, "web")
	exe := filepath.Join(base, "queue.test")
	data, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(
		os.Chmod(base, 0o755), os.WriteFile(exe, data, 0o755), os.Chmod(exe, 0o755),
		os.Mkdir(root, 0o700), os.Chown(root, operator, group), os.Chmod(root, fs.ModeSetgid|0o770),
		os.Mkdir(dir, 0o700), os.Chown(dir, operator, group), os.Chmod(dir, fs.ModeSetgid|0o770),
	); err != nil {
		t.Fatal(err)
	}
	as := func(uid uint32, role string) {
		t.Helper()
		cmd := exec.Command(exe, "-test.run=^TestTwoUsers$")
		cmd.Dir = base
		cmd.Env = append(os.Environ(), "QUEUE_TEST_ROLE="+role, "QUEUE_TEST_ROOT="+root)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: group}}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", role, err, out)
		}
	}
	as(sidecar, "put")
	as(operator, "respond")
	as(sidecar, "archive")
	as(operator, "forget")
	if got := names(t, root); len(got) != 0 {
		t.Errorf("the root holds %q, want nothing", got)
	}
	// The other way round is refused, with the mend.
	if err := errors.Join(os.Mkdir(dir, 0o700), os.Chown(dir, operator, group), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	as(sidecar, "refused")
}

func twoUsersRole(t *testing.T) {
	syscall.Umask(0o077)
	root := os.Getenv("QUEUE_TEST_ROOT")
	dir := filepath.Join(root, "web")
	switch role := os.Getenv("QUEUE_TEST_ROLE"); role {
	case "put":
		putNew(t, openDir(t, dir, Options{}))
	case "respond":
		r := openRoot(t, root, RootOptions{})
		entries, errs := listRoot(t, r, "web")
		if len(entries) != 1 || len(errs) != 0 {
			t.Fatalf("Entries = %v, %v; want one", entries, errs)
		}
		if err := r.Respond(t.Context(), "web", answer(entries[0].Proposal.ID)); err != nil {
			t.Fatal(err)
		}
	case "archive":
		d := openDir(t, dir, Options{})
		entries, errs := listDir(t, d)
		if len(entries) != 1 || len(errs) != 0 || entries[0].Response == nil {
			t.Fatalf("Entries = %v, %v; want one that is answered", entries, errs)
		}
		if err := d.Archive(t.Context(), entries[0].Proposal.ID); err != nil {
			t.Fatal(err)
		}
	case "forget":
		if err := openRoot(t, root, RootOptions{}).Forget(t.Context(), "web"); err != nil {
			t.Fatal(err)
		}
	case "refused":
		_, err := OpenDir(t.Context(), dir, Options{Slug: "web"})
		for _, want := range []string{"uid 61001", "uid 61002 gid 61003 mode 755", "2770"} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("OpenDir = %v, want an error that names %q", err, want)
			}
		}
	default:
		t.Fatalf("no role %q", role)
	}
}

// TestRootIsNotRoots: what root writes among another user's files that user could not read.
func TestRootIsNotRoots(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to give files away")
	}
	root := t.TempDir()
	box := filepath.Join(root, "web")
	d := openDir(t, box, Options{Slug: "web"})
	p := putNew(t, d)
	if err := os.Chown(box, 12345, 12346); err != nil {
		t.Fatal(err)
	}
	r, err := OpenRoot(root, RootOptions{})
	if err != nil {
		t.Fatalf("a root of root's with a mailbox of another's: %v", err)
	}
	defer r.Close()
	if err := r.Respond(t.Context(), "web", Response{ProposalID: p.ID, Status: Rejected}); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(box, responseName(p.ID)))
	if err != nil {
		t.Fatal(err)
	}
	if st := info.Sys().(*syscall.Stat_t); st.Uid != 12345 || st.Gid != 12346 || info.Mode() != 0o600 {
		t.Errorf("the response is uid %d gid %d mode %v, want the mailbox's owner", st.Uid, st.Gid, info.Mode())
	}
	if err := os.Chown(root, 12345, 12346); err != nil {
		t.Fatal(err)
	}
	if other, err := OpenRoot(root, RootOptions{}); err == nil || !strings.Contains(err.Error(), "belong to uid 12345: run this as that user") {
		t.Errorf("a root of another's: %v", err)
		other.Close()
	}
}
