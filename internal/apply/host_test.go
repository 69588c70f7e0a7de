package apply

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/bot-bottle/supervise/internal/config"
	"github.com/bot-bottle/supervise/internal/routes"
	"github.com/bot-bottle/supervise/queue"
)

func TestLockExcludes(t *testing.T) {
	w := newWorld(t)
	other, err := New(w.opts) // as another process would
	if err != nil {
		t.Fatal(err)
	}
	var inside, most atomic.Int32
	var wg sync.WaitGroup
	for i := range 20 {
		hand := []*Local{w.hand, other}[i%2]
		paths := []string{"/b", "/a", "/a"}
		if i%3 == 0 {
			paths = []string{"/a", "/b"}
		}
		wg.Go(func() {
			unlock, err := hand.Lock(t.Context(), paths)
			if err != nil {
				t.Errorf("Lock: %v", err)
				return
			}
			most.Store(max(most.Load(), inside.Add(1)))
			runtime.Gosched()
			inside.Add(-1)
			unlock()
		})
	}
	wg.Wait()
	if most.Load() != 1 {
		t.Errorf("%d held the lock at once, want 1", most.Load())
	}

	unlock, err := w.hand.Lock(t.Context(), []string{"/a"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), 20*time.Millisecond, errors.New("enough"))
	defer cancel()
	if _, err := other.Lock(ctx, []string{"/b", "/a"}); err == nil || err.Error() != "locking /a: another operator holds it: enough" {
		t.Errorf("Lock of a held file = %v, want the cause", err)
	}
	if free, err := w.hand.Lock(t.Context(), []string{"/b"}); err != nil {
		t.Errorf("Lock of the other file: %v, want it released", err)
	} else {
		free()
	}
	unlock()
}

func TestLockAcrossProcesses(t *testing.T) {
	if _, err := exec.LookPath("flock"); err != nil {
		t.Skip("no flock command")
	}
	w := newWorld(t)
	unlock, err := w.hand.Lock(t.Context(), []string{"/a"})
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(w.opts.LockDir, SHA256([]byte("/a"))[:32]+".lock")
	if err := exec.Command("flock", "-n", name, "true").Run(); err == nil {
		t.Error("another process got the lock")
	}
	unlock()
	if err := exec.Command("flock", "-n", name, "true").Run(); err != nil {
		t.Errorf("another process did not get the lock after it was released: %v", err)
	}
}

func TestReloadSignals(t *testing.T) {
	w := newWorld(t)
	hup := make(chan os.Signal, 10)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	file := filepath.Join(w.dir, "pid")
	w.write(file, fmt.Sprintf(" %d\n", os.Getpid()))
	for _, r := range []config.Reload{{PID: os.Getpid()}, {PIDFile: file}} {
		if err := w.hand.reload(t.Context(), r); err != nil {
			t.Fatalf("reload %+v: %v", r, err)
		}
		select {
		case <-hup:
		case <-time.After(5 * time.Second):
			t.Fatalf("reload %+v: no signal came", r)
		}
	}
	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ text, want string }{
		{"1\n", `holds "1\n", which is not the number of a process above 1`},
		{"-1", `holds "-1"`},
		{"0", `holds "0"`},
		{"", `holds ""`},
		{"12 34", `holds "12 34"`},
		{"\x1b[2J", `holds "\x1b[2J"`},
		{"99999999999", `holds "99999999999"`},
		{strings.Repeat("1", 10000), "holds \"111"},
		{strconv.Itoa(gone.Process.Pid), fmt.Sprintf("there is no process %d: is the proxy running? (from %s)", gone.Process.Pid, file)},
	} {
		w.write(file, tt.text)
		if err := w.hand.reload(t.Context(), config.Reload{PIDFile: file}); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("pid file %.20q: %v, want %q", tt.text, err, tt.want)
		}
	}
	os.Remove(file)
	if err := w.hand.reload(t.Context(), config.Reload{PIDFile: file}); err == nil || !strings.Contains(err.Error(), "there is no pid file") {
		t.Errorf("missing pid file: %v", err)
	}
	if err := w.hand.reload(t.Context(), config.Reload{PID: 1}); err == nil {
		t.Error("process 1 was signalled")
	}
	if err := w.hand.reload(t.Context(), config.Reload{}); err != nil {
		t.Errorf("none: %v", err)
	}
}

func TestReloadCommands(t *testing.T) {
	w := newWorld(t)
	w.opts.Exec = nil
	w.opts.ReloadTimeout = 300 * time.Millisecond
	w.open()
	out := filepath.Join(w.dir, "out")
	if err := w.hand.reload(t.Context(), config.Reload{Exec: []string{"sh", "-c", `printf %s "$1" >` + out, "sh", "$(id) *"}}); err != nil {
		t.Fatalf("exec: %v", err)
	}
	w.is(out, "$(id) *")
	bin := filepath.Join(w.dir, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bin, "podman"), []byte("#!/bin/sh\necho \"$@\" >"+out+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	if err := w.hand.reload(t.Context(), config.Reload{Engine: "podman", Name: "egress-web"}); err != nil {
		t.Fatalf("podman: %v", err)
	}
	w.is(out, "kill -s HUP egress-web\n")

	for _, tt := range []struct {
		name string
		argv []string
		want string
	}{
		{"stderr is kept, escaped", []string{"sh", "-c", `printf 'no \033[2Jsuch thing' >&2; exit 3`}, `: exit status 3; it said: no \x1b[2Jsuch thing`},
		{"its end, when long", []string{"sh", "-c", `yes 2>/dev/null | head -c 100000 >&2; echo the end >&2; exit 1`}, "y\nthe end"},
		{"not there", []string{"nosuchcommand-at-all"}, `running nosuchcommand-at-all: exec: "nosuchcommand-at-all": executable file not found in $PATH`},
		{"too slow, with a child that holds the pipe", []string{"sh", "-c", "sleep 100 & sleep 100"}, "it took over 300ms"},
		{"deaf to SIGTERM", []string{"sh", "-c", "trap '' TERM; while :; do sleep 0.05; done"}, "it took over 300ms"},
	} {
		start := time.Now()
		err := w.hand.reload(t.Context(), config.Reload{Exec: tt.argv})
		if err == nil || !strings.Contains(err.Error(), tt.want) || len(err.Error()) > 3*maxTail {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("%s: took %v", tt.name, took)
		}
	}
}

func TestVerifyThroughProxy(t *testing.T) {
	w := newWorld(t)
	forward := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.RequestURI != "http://_egress.local/allowlist" {
			http.Error(rw, "not a proxy request: "+r.RequestURI, http.StatusBadRequest)
			return
		}
		w.proxy.ServeHTTP(rw, r)
	}))
	defer forward.Close()
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	w.cfg.Egress.AllowlistURL, w.cfg.Egress.Proxy = "http://_egress.local/allowlist", forward.URL
	if res, _, err := w.apply(route(t, "a.com")); err != nil || res.Outcome != queue.Live {
		t.Errorf("Apply = %+v, %v; want live", res, err)
	}
}

func TestVerifyWaits(t *testing.T) {
	w := newWorld(t)
	w.opts.VerifyTimeout = 10 * time.Second
	w.open()
	var asked atomic.Int32
	slow := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		switch asked.Add(1) {
		case 1:
			http.Redirect(rw, r, w.proxy.url, http.StatusFound) // not followed
		case 2:
			fmt.Fprint(rw, `{"routes":[],"sha256":"0","last_error":"an old one"}`)
		case 3:
			fmt.Fprint(rw, strings.Repeat(" ", MaxAllowlist+1))
		case 4:
			fmt.Fprint(rw, "<html>")
		default:
			w.proxy.ServeHTTP(rw, r)
		}
	}))
	defer slow.Close()
	w.cfg.Egress.AllowlistURL = slow.URL
	if res, _, err := w.apply(route(t, "a.com")); err != nil || res.Outcome != queue.Live || asked.Load() != 5 {
		t.Errorf("Apply = %+v, %v after %d looks; want live after 5", res, err, asked.Load())
	}
}

func TestExpectation(t *testing.T) {
	r := func(paths ...string) *routes.Route { return &routes.Route{Host: "a.com", PathAllowlist: paths} }
	text := func(s string) *string { return &s }
	live := func(token string, paths ...string) Allowlist {
		return Allowlist{Routes: []LiveRoute{{"b.com", nil, ""}, {"A.com.", paths, token}}}
	}
	with := func(a Allowlist, sha string, e *string) Allowlist { a.SHA256, a.LastError = sha, e; return a }
	for _, tt := range []struct {
		name  string
		a     Allowlist
		route *routes.Route
		most  bool
		want  string // "" for as expected
		final bool
	}{
		{"there", live("", "/x", "/y"), r("/x"), false, "", false},
		{"there by a prefix", live("none", "/"), r("/x"), false, "", false},
		{"whole", live("present"), r(), false, "", false},
		{"whole by the root path", live("", "/"), r(), false, "", false},
		{"not whole", live("", "/x"), r(), false, "host a.com does not have the whole host", false},
		{"a path missing", live("", "/x"), r("/x", "/y"), false, "host a.com does not have path /y", false},
		{"host missing", Allowlist{}, r(), false, "host a.com is not there", false},
		{"token missing", live("missing"), r(), false, "the proxy has no value for its token, which host a.com needs: set it in the proxy's environment and restart it", true},
		{"gone", Allowlist{}, nil, true, "", false},
		{"not gone", live(""), nil, true, "host a.com is still there", false},
		{"narrowed", live("", "/x"), r("/x"), true, "", false},
		{"narrowed, token missing as before", live("missing", "/x"), r("/x"), true, "", false},
		{"not narrowed", live("", "/x", "/y"), r("/x"), true, "host a.com still has path /y", false},
		{"still whole", live(""), r("/x"), true, "host a.com still has the whole host", false},
		{"another file", with(live(""), "0", nil), r(), false, "its table is of sha256 0, the file is 1", false},
		{"another file, and why", with(live(""), "0", text("line 1: no")), r(), false, "its table is of sha256 0, the file is 1; it says: line 1: no", false},
		{"our file", with(live(""), "1", nil), r(), false, "", false},
		{"our file, and an error", with(live(""), "1", text("no\n")), r(), false, `the proxy says: no\n`, true},
	} {
		err := expectation{sha: "1", host: "a.com", route: tt.route, most: tt.most}.check(tt.a)
		_, isFinal := errors.AsType[final](err)
		if got := fmt.Sprint(err); (tt.want == "") != (err == nil) || err != nil && got != tt.want || isFinal != tt.final {
			t.Errorf("%s: %v (final %v), want %q (final %v)", tt.name, err, isFinal, tt.want, tt.final)
		}
	}
}

func TestParseAllowlist(t *testing.T) {
	got, err := ParseAllowlist([]byte(`{"routes":[{"host":"a.com","path_allowlist":["/x"],"auth":true,"token":"none"}],"generation":7,"sha256":"ab","last_error":null}`))
	if diff := cmp.Diff(Allowlist{Routes: []LiveRoute{{"a.com", []string{"/x"}, "none"}}, SHA256: "ab"}, got); err != nil || diff != "" {
		t.Errorf("ParseAllowlist: %v, mismatch (-want +got):\n%s", err, diff)
	}
	for in, want := range map[string]string{
		``:                              "not an allowlist: unexpected end of JSON input",
		`null`:                          "not an allowlist: it has no routes",
		`[]`:                            "not an allowlist: json: cannot unmarshal array into Go value",
		`{}`:                            "not an allowlist: it has no routes",
		`{"routes":7}`:                  "not an allowlist: json: cannot unmarshal number",
		`{"routes":[]} {}`:              "not an allowlist: invalid character '{' after top-level value",
		`{"routes":[{"host":7}]}`:       "not an allowlist: json: cannot unmarshal number",
		`{"routes":[],"last_error":{}}`: "not an allowlist: json: cannot unmarshal object",
	} {
		if a, err := ParseAllowlist([]byte(in)); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("ParseAllowlist(%s) = %+v, %v; want %s", in, a, err, want)
		}
	}
}

func FuzzParseAllowlist(f *testing.F) {
	f.Add([]byte(`{"routes":[{"host":"a.com","path_allowlist":["/x"],"auth":true,"token":"none"}],"generation":7,"sha256":"1","last_error":"e"}`))
	f.Add([]byte(`{"routes":[{"host":"a.com","path_allowlist":null}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		a, err := ParseAllowlist(body)
		if err != nil {
			return
		}
		// As expected after adding and as expected after removing exclude each other.
		added := expectation{sha: "1", host: "a.com", route: &routes.Route{Host: "a.com"}}.check(a)
		removed := expectation{sha: "1", host: "a.com", most: true}.check(a)
		if added == nil && removed == nil {
			t.Errorf("host a.com is both there and gone: %+v", a)
		}
	})
}

func TestKeepsOwner(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can give a file away")
	}
	w := newWorld(t)
	if err := os.Chown(w.egress, 1234, 2345); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(w.egress, 0o604); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.apply(route(t, "a.com")); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(w.egress)
	if err != nil {
		t.Fatal(err)
	}
	if st := info.Sys().(*syscall.Stat_t); st.Uid != 1234 || st.Gid != 2345 || info.Mode() != 0o604 {
		t.Errorf("owner %d:%d, mode %v; want 1234:2345, 0604", st.Uid, st.Gid, info.Mode())
	}
}

// TestKeepsAccessList: whoever may read a file by its access list may read what replaces it, and nobody else, whatever the directory hands on.
func TestKeepsAccessList(t *testing.T) {
	entry := func(tag, perm uint16, id uint32) []byte {
		return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint16(binary.LittleEndian.AppendUint16(nil, tag), perm), id)
	}
	none := ^uint32(0)
	list := func(mask uint16) []byte { // the owner reads and writes, user 1234 reads, and nobody else does
		return slices.Concat([]byte{2, 0, 0, 0}, entry(1, 6, none), entry(2, 4, 1234), entry(4, 0, none), entry(0x10, mask, none), entry(0x20, 0, none))
	}
	get := func(path string) []byte {
		b := make([]byte, 1<<10)
		n, err := unix.Getxattr(path, accessList, b)
		if errors.Is(err, unix.ENODATA) {
			return nil
		}
		if err != nil {
			t.Fatal(err)
		}
		return b[:n]
	}
	w := newWorld(t)
	if err := unix.Setxattr(w.egress, accessList, list(4), 0); errors.Is(err, unix.ENOTSUP) {
		t.Skip("the file system has no access lists")
	} else if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chmod(w.gate, 0o640), unix.Setxattr(filepath.Dir(w.gate), "system.posix_acl_default", list(4), 0)); err != nil {
		t.Fatal(err)
	}
	p := route(t, "a.com")
	_, ims, err := w.apply(p)
	if err != nil {
		t.Fatal(err)
	}
	check := func() {
		t.Helper()
		if got := get(w.egress); !bytes.Equal(got, list(4)) {
			t.Errorf("the access list is %x, want %x", got, list(4))
		}
		info, err := os.Stat(w.gate)
		if err != nil || info.Mode() != 0o640 || get(w.gate) != nil {
			t.Errorf("mode %v, access list %x, %v; want 0640 and none", info.Mode(), get(w.gate), err)
		}
	}
	check()
	if _, err := w.hand.Undo(t.Context(), "web", p, ims, false, nil); err != nil {
		t.Fatal(err)
	}
	check()
}

// inMounts runs f on a thread with mounts of its own, which go with it.
func inMounts(t *testing.T, f func()) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Skipf("needs mounts of its own: %v", err)
	}
}

func TestMounts(t *testing.T) {
	for _, tt := range []struct {
		name  string
		mount func(w *world) error
		want  string
	}{
		{"a file mounted singly", func(w *world) error { return unix.Mount(w.egress, w.egress, "", unix.MS_BIND, "") }, "is mounted singly, so it cannot be replaced; mount the directory "},
		{"a read-only directory", func(w *world) error {
			dir := filepath.Dir(w.egress)
			return errors.Join(unix.Mount(dir, dir, "", unix.MS_BIND, ""), unix.Mount("", dir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
		}, "must be writable for uid"},
		{"a full file system", func(w *world) error {
			if err := unix.Mount("tmpfs", filepath.Dir(w.egress), "tmpfs", 0, "size=16k"); err != nil {
				return err
			}
			return errors.Join(os.WriteFile(w.egress, []byte(routesYAML), 0o600), os.WriteFile(filepath.Join(filepath.Dir(w.egress), "big"), make([]byte, 3<<12), 0o600))
		}, "make room on the file system of "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			inMounts(t, func() {
				if err := tt.mount(w); err != nil {
					t.Errorf("mounting: %v", err)
					return
				}
				plan, err := w.hand.Preview(t.Context(), "web", route(t, "a.com"))
				if err != nil || plan.Blocked != nil {
					t.Errorf("Preview: %v, %v", err, plan.Blocked)
					return
				}
				_, err = w.hand.Apply(t.Context(), plan, nil)
				f, ok := errors.AsType[*Failure](err)
				if !ok || f.Step != "write" || len(f.Left) != 0 || !strings.Contains(f.Error(), tt.want) {
					t.Errorf("Apply = %v, want %q", err, tt.want)
				}
				for path, want := range map[string]string{w.egress: routesYAML, w.gate: gateYAML} {
					if got, err := os.ReadFile(path); err != nil || string(got) != want {
						t.Errorf("%s is %q, %v; want %q", path, got, err, want)
					}
				}
				if names, _ := filepath.Glob(filepath.Join(filepath.Dir(w.egress), ".*")); len(names) > 0 {
					t.Errorf("left behind: %v", names)
				}
			})
		})
	}
}

func TestUnmanagedSpecialFiles(t *testing.T) {
	w := newWorld(t)
	os.Remove(w.egress)
	if err := unix.Mkfifo(w.egress, 0o600); err != nil {
		t.Fatal(err)
	}
	if plan := w.plan(route(t, "a.com")); plan.Blocked == nil || !strings.Contains(plan.Blocked.Error(), "is not a regular file") {
		t.Errorf("blocked %v, want a FIFO refused", plan.Blocked)
	}
	os.Remove(w.egress)
	w.write(w.egress, strings.Repeat("#\n", routes.MaxFile))
	if plan := w.plan(route(t, "a.com")); plan.Blocked == nil || !strings.Contains(plan.Blocked.Error(), "over the limit") {
		t.Errorf("blocked %v, want a huge file refused", plan.Blocked)
	}
}

func TestNew(t *testing.T) {
	if _, err := New(Options{Targets: func(string) config.Bottle { return config.Bottle{} }}); err == nil {
		t.Error("New without a lock directory succeeded")
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New(Options{Targets: func(string) config.Bottle { return config.Bottle{} }, LockDir: file}); err == nil {
		t.Error("New with a file as lock directory succeeded")
	}
}

// onLine calls f when something is written to it.
type onLine struct {
	text []byte
	f    func()
}

func (l *onLine) Write(p []byte) (int, error) {
	l.text = append(l.text, p...)
	l.f()
	return len(p), nil
}

// TestExecuteKillsTheGroup: what a build has started is not left when it is ended, though all of it is deaf to SIGTERM.
func TestExecuteKillsTheGroup(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "alive")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	alive, err := os.OpenFile(fifo, os.O_RDONLY|syscall.O_NONBLOCK, 0) // ends when nobody holds the other end any more
	if err != nil {
		t.Fatal(err)
	}
	defer alive.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out := &onLine{f: cancel}
	err = execute(ctx, "", []string{"sh", "-c", `trap '' TERM; exec 3>"$0"; sleep 600 & echo $!; wait`, fifo}, out, io.Discard, nil)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("execute = %v, want it canceled", err)
	}
	if err := alive.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := alive.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("what it started is still there: %v", err)
		if pid, err := strconv.Atoi(strings.TrimSpace(string(out.text))); err == nil && pid > 1 {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// TestExecuteLeavesWhatGoesOn: a command that exits 0 has done what it was to do, though something it started goes on and holds its output.
func TestExecuteLeavesWhatGoesOn(t *testing.T) {
	var out bytes.Buffer
	err := execute(t.Context(), "", []string{"sh", "-c", "sleep 600 & echo $!"}, &out, &out, nil)
	pid, perr := strconv.Atoi(strings.TrimSpace(out.String()))
	if perr != nil || pid <= 1 {
		t.Fatalf("it said %q", out.String())
	}
	if kerr := syscall.Kill(pid, syscall.SIGKILL); err != nil || kerr != nil {
		t.Errorf("execute = %v; ending what it started: %v", err, kerr)
	}
}
