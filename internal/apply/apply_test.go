package apply

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bot-bottle/supervise/internal/config"
	"github.com/bot-bottle/supervise/internal/payload"
	"github.com/bot-bottle/supervise/internal/routes"
	"github.com/bot-bottle/supervise/queue"
)

func TestPreview(t *testing.T) {
	w := newWorld(t)
	plan := w.plan(route(t, "API.github.com", "/repos/"))
	entry := "{\n  \"host\": \"api.github.com\",\n  \"path_allowlist\": [\n    \"/repos/\"\n  ]\n}\n"
	want := []Target{
		{Kind: KindPipelock, Path: w.gate, Real: w.gate, Before: []byte(gateYAML), After: []byte(gateAfter), EntryAfter: "api.github.com", Exists: true, Table: []string{"pypi.org"}},
		{Kind: KindEgress, Path: w.egress, Real: w.egress, Before: []byte(routesYAML), After: []byte(routesAfter), EntryAfter: entry, Exists: true, Table: []string{"pypi.org"}},
	}
	if diff := cmp.Diff(want, plan.Targets); diff != "" {
		t.Errorf("targets mismatch (-want +got):\n%s", diff)
	}
	if plan.Blocked != nil || len(plan.Unmanaged) != 0 {
		t.Errorf("blocked %v, unmanaged %v; want neither", plan.Blocked, plan.Unmanaged)
	}
	w.is(w.egress, routesYAML)

	for _, tt := range []struct {
		name      string
		setup     func()
		p         payload.Payload
		unmanaged []Kind
		blocked   string // contained in the error
		targets   int
	}{
		{"a bottle without pipelock", func() { w.cfg.Pipelock = nil }, route(t, "a.com"), nil, "", 1},
		{"pipelock not managed", nil, blocked(t, "https://a.com/x"), []Kind{KindPipelock}, "", 0},
		{"no route file", func() { os.Remove(w.egress) }, route(t, "a.com"), nil, "egress file " + w.egress + ": there is no such file: create it, or correct supervise.yaml", 1},
		{"a directory", func() { os.Mkdir(w.egress, 0o755) }, route(t, "a.com"), nil, "is not a regular file", 1},
		{"no directory", func() { os.RemoveAll(filepath.Dir(w.egress)) }, route(t, "a.com"), nil, "there is no directory " + filepath.Dir(w.egress) + ": create it, or correct supervise.yaml", 1},
		{"cannot be edited", func() { os.MkdirAll(filepath.Dir(w.egress), 0o755); w.write(w.egress, "routes: [\n") }, route(t, "a.com"), nil, "line 2: did not find expected node content", 1},
		{"egress not managed", func() { w.cfg.Egress = nil }, route(t, "a.com"), []Kind{KindEgress}, "", 0},
		{"no Dockerfile yet", func() { os.Remove(w.img) }, image(t, dockerfile), nil, "", 1},
		{"no directory for the Dockerfile", func() { os.RemoveAll(filepath.Dir(w.img)) }, image(t, dockerfile), nil, "there is no directory " + filepath.Dir(w.img), 1},
		{"capability not managed", func() { w.cfg.Capability = nil }, image(t, dockerfile), []Kind{KindDockerfile}, "", 0},
	} {
		if tt.setup != nil {
			tt.setup()
		}
		plan := w.plan(tt.p)
		if !slices.Equal(plan.Unmanaged, tt.unmanaged) || len(plan.Targets) != tt.targets {
			t.Errorf("%s: unmanaged %v, %d targets; want %v, %d", tt.name, plan.Unmanaged, len(plan.Targets), tt.unmanaged, tt.targets)
		}
		if (plan.Blocked != nil) != (tt.blocked != "") || plan.Blocked != nil && !strings.Contains(plan.Blocked.Error(), tt.blocked) {
			t.Errorf("%s: blocked %v, want %q", tt.name, plan.Blocked, tt.blocked)
		}
	}
}

func TestPreviewSaysWhatToDoByHand(t *testing.T) {
	w := newWorld(t)
	w.write(w.egress, "routes: [\n")
	plan := w.plan(route(t, "a.com", "/v1"))
	e, ok := errors.AsType[*routes.EditError](plan.Blocked)
	if !ok || e.ByHand != "  - host: a.com\n    path_allowlist: [\"/v1\"]\n" {
		t.Errorf("blocked %v, want an EditError with the lines to add", plan.Blocked)
	}
	if len(plan.Targets) != 2 || !plan.Targets[0].Changed() {
		t.Errorf("targets %+v, want pipelock planned all the same", plan.Targets)
	}
	_, err := w.hand.Apply(t.Context(), plan, nil)
	if f := failure(t, err); f.Step != "check" || len(f.Left) != 0 {
		t.Errorf("Apply of a blocked plan: %+v, want a failed check", f)
	}
	w.is(w.gate, gateYAML)
}

func TestPreviewFollowsSymlinks(t *testing.T) {
	w := newWorld(t)
	link := filepath.Join(w.dir, "link.yaml")
	if err := os.Symlink(w.egress, link); err != nil {
		t.Fatal(err)
	}
	w.cfg.Egress.File = link
	res, ims, err := w.apply(route(t, "api.github.com", "/repos/"))
	if err != nil || res.Outcome != queue.Live {
		t.Fatalf("Apply = %+v, %v; want live", res, err)
	}
	if ims[1].Path != link || ims[1].Real != w.egress {
		t.Errorf("image path %s, real %s; want %s, %s", ims[1].Path, ims[1].Real, link, w.egress)
	}
	if info, err := os.Lstat(link); err != nil || info.Mode()&os.ModeSymlink == 0 {
		t.Errorf("the symlink is %v, %v; want it kept", info.Mode(), err)
	}
	w.is(w.egress, routesAfter)

	dangling := filepath.Join(w.dir, "dangling")
	if err := os.Symlink(filepath.Join(w.dir, "nowhere"), dangling); err != nil {
		t.Fatal(err)
	}
	w.cfg.Capability.File = dangling
	if plan := w.plan(image(t, dockerfile)); plan.Blocked == nil || !strings.Contains(plan.Blocked.Error(), "the symlink points to nothing") {
		t.Errorf("blocked %v, want the dangling symlink refused", plan.Blocked)
	}
	w.cfg.Pipelock.File = link
	if plan := w.plan(route(t, "new.com")); plan.Blocked == nil || !strings.Contains(plan.Blocked.Error(), "they must be two") {
		t.Errorf("blocked %v, want one file for two targets refused", plan.Blocked)
	}
}

// TestPipelockSettles: pipelock, which cannot be asked, has a quarter of a second to read its file before the agent is answered.
func TestPipelockSettles(t *testing.T) {
	for _, tt := range []struct {
		name string
		host string
		want time.Duration
	}{
		{"a new host", "https://new.example.com/", 250 * time.Millisecond},
		{"one that is there", "https://pypi.org/", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.opts.PipelockSettle = 0 // the default
			synctest.Test(t, func(t *testing.T) {
				w.t = t // whose context is of the bubble
				w.open()
				start := time.Now()
				if res, _, err := w.apply(blocked(t, tt.host)); err != nil {
					t.Fatalf("Apply = %+v, %v", res, err)
				}
				if took := time.Since(start); took != tt.want {
					t.Errorf("Apply returned after %v, want %v", took, tt.want)
				}
			})
		})
	}
}

func TestApplyRoute(t *testing.T) {
	w := newWorld(t)
	if err := os.Chmod(w.egress, 0o640); err != nil {
		t.Fatal(err)
	}
	res, ims, err := w.apply(route(t, "API.github.com", "/repos/"))
	if err != nil {
		t.Fatalf("Apply: %v", err)
	}
	if res.Outcome != queue.Live {
		t.Errorf("outcome %s, want live", res.Outcome)
	}
	w.is(w.egress, routesAfter)
	w.is(w.gate, gateAfter)
	if diff := cmp.Diff([]string{"docker kill -s HUP gate-web", "reload-egress"}, w.ran); diff != "" {
		t.Errorf("commands, pipelock first (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"pipelock.write", "pipelock.rename", "pipelock.sync", "pipelock.reload", "egress.write", "egress.rename", "egress.sync", "egress.reload", "egress.verify"}, w.steps); diff != "" {
		t.Errorf("steps (-want +got):\n%s", diff)
	}
	if info, err := os.Stat(w.egress); err != nil || info.Mode() != 0o640 {
		t.Errorf("mode %v, %v; want it kept", info.Mode(), err)
	}
	for _, s := range []string{"pipelock: wrote " + w.gate + "\n", "egress: reloaded\n", "egress: verified at " + w.proxy.url + " after "} {
		if !strings.Contains(w.said.String(), s) {
			t.Errorf("progress %q does not say %q", w.said.String(), s)
		}
	}
	w.clean()
	if states, err := w.hand.Inspect(t.Context(), ims); err != nil || !slices.Equal(states, []State{IsAfter, IsAfter}) {
		t.Errorf("Inspect = %v, %v; want after, after", states, err)
	}

	w.ran, w.steps = nil, nil
	res, ims, err = w.apply(route(t, "api.github.com", "/repos/x"))
	if err != nil || res.Outcome != queue.Unchanged {
		t.Errorf("again: %+v, %v; want unchanged", res, err)
	}
	if len(w.ran)+len(w.steps) != 0 {
		t.Errorf("again: ran %v, steps %v; want nothing", w.ran, w.steps)
	}
	if states, err := w.hand.Inspect(t.Context(), ims); err != nil || !slices.Equal(states, []State{IsBoth, IsBoth}) {
		t.Errorf("Inspect = %v, %v; want both, both", states, err)
	}
	w.write(w.egress, routesAfter+"# someone's\n")
	if states, err := w.hand.Inspect(t.Context(), ims); err != nil || !slices.Equal(states, []State{IsBoth, IsBoth}) {
		t.Errorf("Inspect after an unrelated edit = %v, %v; want both, both", states, err)
	}
	w.write(w.egress, routesYAML)
	if states, err := w.hand.Inspect(t.Context(), ims); err != nil || !slices.Equal(states, []State{IsBoth, Neither}) {
		t.Errorf("Inspect after the entry went = %v, %v; want both, neither", states, err)
	}
}

// TestWatchedFile: nobody says "reloaded" of a proxy that was told nothing.
func TestWatchedFile(t *testing.T) {
	w := newWorld(t)
	w.cfg.Egress.Reload, w.cfg.Egress.AllowlistURL = config.Reload{}, ""
	if res, _, err := w.apply(route(t, "a.com")); err != nil {
		t.Fatalf("Apply = %+v, %v", res, err)
	}
	if said := w.said.String(); !strings.Contains(said, "egress: wrote ") || strings.Contains(said, "egress: reloaded") {
		t.Errorf("progress is %q", said)
	}
}

func TestOutcomes(t *testing.T) {
	for _, tt := range []struct {
		name  string
		setup func(w *world)
		p     payload.Payload
		want  queue.Outcome
		note  string
	}{
		{"no allowlist_url", func(w *world) { w.cfg.Egress.AllowlistURL = "" }, route(t, "a.com"), queue.Unverified, "egress: not verified, no allowlist_url is configured"},
		{"a foreign proxy that shows routes only", func(w *world) { w.proxy.bare = true }, route(t, "a.com", "/x"), queue.Live, "egress: verified at "},
		{"without pipelock", func(w *world) { w.cfg.Pipelock = nil }, route(t, "a.com"), queue.Live, "egress: verified at "},
		{"pipelock alone", func(w *world) {}, blocked(t, "https://a.com/x?y"), queue.Unverified, "pipelock: not verified, it does not show its table"},
		{"pipelock covered", func(w *world) {}, blocked(t, "https://pypi.org/x"), queue.Unchanged, ""},
		{"only the gate was closed", func(w *world) { w.write(w.egress, "routes: [{host: a.com}]\n"); w.proxy.load(t) }, route(t, "a.com"), queue.Unverified, "pipelock: not verified"},
		{"written by hand and in force", func(w *world) {
			w.write(w.egress, "routes: [{host: pypi.org}]\n")
			w.proxy.load(t)
		}, route(t, "pypi.org"), queue.Unchanged, "egress: it was live at "},
		{"written by hand and not in force", func(w *world) { w.write(w.egress, "routes: [{host: pypi.org}]\n") }, route(t, "pypi.org"), queue.Live, "egress: it was in the file already and not in force; verified at "},
		{"written by hand, and nobody can tell", func(w *world) {
			w.write(w.egress, "routes: [{host: pypi.org}]\n")
			w.cfg.Egress.AllowlistURL = ""
		}, route(t, "pypi.org"), queue.Unverified, "egress: it was in the file already, and the proxy was told to read it"},
		{"written by hand, nobody can tell, and nobody is told", func(w *world) {
			w.write(w.egress, "routes: [{host: pypi.org}]\n")
			w.cfg.Egress.AllowlistURL, w.cfg.Egress.Reload = "", config.Reload{}
		}, route(t, "pypi.org"), queue.Unverified, "egress: it was in the file already, and the proxy is to watch it"},
		{"nothing managed", func(w *world) { w.cfg = config.Bottle{} }, route(t, "a.com"), queue.Unverified, "not managed here, to be done by hand: egress"},
		{"egress not managed", func(w *world) { w.cfg.Egress = nil }, route(t, "a.com"), queue.Unverified, "not managed here, to be done by hand: egress"},
		{"built", func(w *world) {}, image(t, "FROM x\n"), queue.Live, "built; it takes effect when the bottle is replaced"},
		{"built, and nothing replaces the bottle", func(w *world) { w.cfg.Capability.Replace = nil }, image(t, "FROM x\n"), queue.Built, "built; it takes effect when the bottle is started from it"},
		{"replaced only", func(w *world) { w.cfg.Capability.Build = nil }, image(t, "FROM x\n"), queue.Unverified, "recorded; it takes effect when the bottle is replaced"},
		{"neither built nor replaced", func(w *world) { w.cfg.Capability.Build, w.cfg.Capability.Replace = nil, nil }, image(t, "FROM x\n"), queue.Acknowledged, "recorded; nothing is built"},
		{"the same Dockerfile", func(w *world) {}, image(t, dockerfile), queue.Unchanged, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			tt.setup(w)
			res, _, err := w.apply(tt.p)
			if err != nil {
				t.Fatalf("Apply: %v", err)
			}
			if res.Outcome != tt.want || !strings.Contains(strings.Join(res.Notes, "\n"), tt.note) {
				t.Errorf("Apply = %+v; want %s with note %q", res, tt.want, tt.note)
			}
			c := w.cfg.Capability
			if want := tt.p.Tool == payload.Capability && tt.want != queue.Unchanged && len(c.Replace) > 0; res.Replace != want {
				t.Errorf("Apply = %+v; want that the bottle is to be replaced: %v", res, want)
			}
			w.clean()
		})
	}
}

// Whatever fails, both files are as they were, byte for byte, and so is what the proxy has in force.
func TestApplyFails(t *testing.T) {
	for _, tt := range []struct {
		name  string
		setup func(w *world)
		p     payload.Payload
		step  string
		kind  Kind
		err   string
	}{
		{"a proxy that does not reload", func(w *world) { w.proxy.deaf = true }, route(t, "a.com"), "verify", KindEgress, "not seen live at http"},
		{"a proxy that is away", func(w *world) { w.cfg.Egress.AllowlistURL = "http://127.0.0.1:1/allowlist" }, route(t, "a.com"), "verify", KindEgress, "connection refused (is it running?)"},
		{"in the file already, and the proxy is away", func(w *world) { w.cfg.Egress.AllowlistURL = "http://127.0.0.1:1/allowlist" }, route(t, "pypi.org", "/simple/x"), "verify", KindEgress, "not seen live at http"},
		{"a foreign proxy that does not reload", func(w *world) { w.proxy.bare, w.proxy.deaf = true, true }, route(t, "a.com"), "verify", KindEgress, "host a.com is not there"},
		{"an invalid file, says the proxy", func(w *world) { w.proxy.error = "line 3:\x1b[2J no" }, route(t, "a.com"), "verify", KindEgress, `the proxy says: line 3:\x1b[2J no`},
		{"no token", func(w *world) { w.proxy.token = "missing" }, withAuth(t, "a.com"), "verify", KindEgress, "the proxy has no value for GH_TOKEN, which host a.com needs"},
		{"egress reload", func(w *world) {
			n := 0
			w.exec = func(argv []string) error {
				if argv[0] == "reload-egress" {
					if n++; n == 1 {
						return errors.New("exit status 1")
					}
				}
				return nil
			}
		}, route(t, "a.com"), "reload", KindEgress, "running reload-egress: exit status 1"},
		{"pipelock reload", func(w *world) {
			n := 0
			w.exec = func(argv []string) error {
				if n++; n == 1 {
					return errors.New("No such container: gate-web")
				}
				return nil
			}
		}, route(t, "a.com"), "reload", KindPipelock, "running docker kill -s HUP gate-web: No such container: gate-web"},
		{"pipelock check", func(w *world) {
			w.cfg.Pipelock.Check = []string{"pipelock", "check", "--config={file}"}
			w.exec = func(argv []string) error {
				file, ok := strings.CutPrefix(argv[2], "--config=")
				if got := w.read(file); !ok || got != gateYAML+"  - \"a.com\"\n" {
					t.Errorf("checked %q, want the candidate", got)
				}
				return errors.New("invalid")
			}
		}, route(t, "a.com"), "check", KindPipelock, "invalid"},
		{"build", func(w *world) {
			w.build = func(out io.Writer) error {
				fmt.Fprint(out, "step 1\nRUN evil \x1b]52;c;x\a\nno line end")
				return errors.New("exit status 2")
			}
		}, image(t, "FROM x\n"), "build", KindDockerfile, "running build: exit status 2; it said: step 1\nRUN evil \\x1b]52;c;x\\x07\nno line end"},
		{"build of a new file", func(w *world) {
			os.Remove(w.img)
			w.build = func(io.Writer) error { return errors.New("exit status 2") }
		}, image(t, "FROM x\n"), "build", KindDockerfile, "exit status 2"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			tt.setup(w)
			img := w.read(w.img)
			_, _, err := w.apply(tt.p)
			f := failure(t, err)
			if f.Step != tt.step || f.Kind != tt.kind || !strings.Contains(f.Error(), tt.err) || len(f.Left) != 0 {
				t.Errorf("failure %s of %s: %v, left %v; want %s of %s: %s, nothing left", f.Step, f.Kind, f, f.Left, tt.step, tt.kind, tt.err)
			}
			w.is(w.egress, routesYAML)
			w.is(w.gate, gateYAML)
			w.is(w.img, img)
			w.clean()
			if got := w.proxy.hosts(); got != "pypi.org" {
				t.Errorf("the proxy allows %q, want pypi.org", got)
			}
		})
	}
}

func TestApplyCancelled(t *testing.T) {
	w := newWorld(t)
	w.proxy.deaf = true
	w.opts.VerifyTimeout = time.Hour
	w.open()
	plan := w.plan(route(t, "a.com"))
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("operator hung up")
	w.step = func(name string) error {
		if name == "egress.verify" {
			cancel(stop)
		}
		return nil
	}
	_, err := w.hand.Apply(ctx, plan, nil)
	if f := failure(t, err); !errors.Is(f, stop) || len(f.Left) != 0 {
		t.Errorf("Apply = %v, want the cause and nothing left", err)
	}
	w.is(w.egress, routesYAML)
	w.is(w.gate, gateYAML)
}

// A person's edit between our read and our rename stays, and what we wrote elsewhere is taken back.
func TestHumanEditsWhileWeApply(t *testing.T) {
	const theirs = "routes: []\n# mine now\n"
	for _, at := range []string{"egress.write", "egress.rename"} {
		t.Run(at, func(t *testing.T) {
			w := newWorld(t)
			w.step = func(name string) error {
				if name == at {
					w.write(w.egress, theirs)
				}
				return nil
			}
			_, _, err := w.apply(route(t, "a.com"))
			if f := failure(t, err); f.Step != "write" || !errors.Is(f, ErrChanged) || len(f.Left) != 0 {
				t.Errorf("Apply = %v, left %v; want the change found, nothing left", err, f.Left)
			}
			w.is(w.egress, theirs)
			w.is(w.gate, gateYAML)
			w.clean()
		})
	}
	t.Run("after our rename, and the proxy does not reload", func(t *testing.T) {
		w := newWorld(t)
		w.proxy.deaf = true
		w.step = func(name string) error {
			if name == "egress.verify" {
				w.write(w.egress, theirs)
			}
			return nil
		}
		_, ims, err := w.apply(route(t, "a.com"))
		f := failure(t, err)
		want := []string{fmt.Sprintf("%s (before: sha256 %s; we wrote: %s; now: %s)", w.egress, ims[1].BeforeSHA256, ims[1].AfterSHA256, SHA256([]byte(theirs)))}
		if diff := cmp.Diff(want, f.Left); diff != "" {
			t.Errorf("left (-want +got):\n%s", diff)
		}
		w.is(w.egress, theirs)
		w.is(w.gate, gateYAML)
		if states, err := w.hand.Inspect(t.Context(), ims); err != nil || !slices.Equal(states, []State{IsBefore, Neither}) {
			t.Errorf("Inspect = %v, %v; want before, neither", states, err)
		}
	})
	t.Run("a Dockerfile appears", func(t *testing.T) {
		w := newWorld(t)
		os.Remove(w.img)
		w.step = func(name string) error {
			if name == "dockerfile.rename" {
				w.write(w.img, "FROM mine\n")
			}
			return nil
		}
		_, _, err := w.apply(image(t, "FROM x\n"))
		if f := failure(t, err); !errors.Is(f, ErrChanged) {
			t.Errorf("Apply = %v, want the change found", err)
		}
		w.is(w.img, "FROM mine\n")
	})
}

// A process that dies at any step leaves what Inspect can tell and Confirm or PutBack can finish.
func TestCrashAtEachStep(t *testing.T) {
	died := errors.New("died")
	for _, p := range []payload.Payload{route(t, "a.com", "/x"), image(t, "FROM x\n"), blocked(t, "https://a.com/")} {
		trace := newWorld(t)
		if _, _, err := trace.apply(p); err != nil {
			t.Fatal(err)
		}
		for n, at := range trace.steps {
			t.Run(fmt.Sprintf("%s, %d %s", p.Tool, n, at), func(t *testing.T) {
				w := newWorld(t)
				w.step = func(string) error {
					if len(w.steps) == n+1 {
						return died
					}
					return nil
				}
				plan := w.plan(p)
				_, err := w.hand.Apply(t.Context(), plan, nil)
				if _, ok := errors.AsType[*Failure](err); ok || !errors.Is(err, died) {
					t.Fatalf("Apply = %v, want it to die", err)
				}
				w.step = nil
				w.open()
				ims := images(plan)
				states, err := w.hand.Inspect(t.Context(), ims)
				if err != nil || slices.Contains(states, Neither) {
					t.Fatalf("Inspect = %v, %v; want before or after", states, err)
				}
				if !slices.Contains(states, IsBefore) {
					res, err := w.hand.Confirm(t.Context(), "web", p, ims, nil)
					if err != nil {
						t.Fatalf("Confirm: %v", err)
					}
					if want := map[string]queue.Outcome{payload.Egress: queue.Live, payload.Pipelock: queue.Unverified, payload.Capability: queue.Live}[p.Tool]; res.Outcome != want {
						t.Errorf("Confirm = %+v, want %s", res, want)
					}
				}
				if err := w.hand.PutBack(t.Context(), "web", ims, nil); err != nil {
					t.Fatalf("PutBack: %v", err)
				}
				w.is(w.egress, routesYAML)
				w.is(w.gate, gateYAML)
				w.is(w.img, dockerfile)
				if got := w.proxy.hosts(); got != "pypi.org" {
					t.Errorf("the proxy allows %q, want pypi.org", got)
				}
				if res, _, err := w.apply(p); err != nil {
					t.Errorf("Apply again = %+v, %v", res, err)
				}
				w.clean()
			})
		}
	}
}

// One that dies while it puts back is finished by PutBack too, and the proxy does not keep what the file no longer has.
func TestCrashWhilePuttingBack(t *testing.T) {
	died := errors.New("died")
	fails := func(w *world) {
		n := 0
		w.exec = func(argv []string) error {
			if argv[0] == "reload-egress" {
				if n++; n == 1 {
					w.proxy.load(t) // it does reload, and says no
					return errors.New("exit status 1")
				}
			}
			return nil
		}
	}
	trace := newWorld(t)
	fails(trace)
	if _, _, err := trace.apply(route(t, "a.com")); err == nil {
		t.Fatal("Apply succeeded")
	}
	first := slices.Index(trace.steps, "egress.reload") + 1
	for n := first; n < len(trace.steps); n++ {
		t.Run(fmt.Sprintf("%d %s", n, trace.steps[n]), func(t *testing.T) {
			w := newWorld(t)
			fails(w)
			w.step = func(string) error {
				if len(w.steps) == n+1 {
					return died
				}
				return nil
			}
			plan := w.plan(route(t, "a.com"))
			if _, err := w.hand.Apply(t.Context(), plan, nil); !errors.Is(err, died) {
				t.Fatalf("Apply = %v, want it to die", err)
			}
			w.step = nil
			if err := w.hand.PutBack(t.Context(), "web", images(plan), nil); err != nil {
				t.Fatalf("PutBack: %v", err)
			}
			w.is(w.egress, routesYAML)
			w.is(w.gate, gateYAML)
			w.clean()
			if got := w.proxy.hosts(); got != "pypi.org" {
				t.Errorf("the proxy allows %q, want pypi.org", got)
			}
		})
	}
}

func TestConfirmFindsAnEdit(t *testing.T) {
	w := newWorld(t)
	p := route(t, "a.com")
	_, ims, err := w.apply(p)
	if err != nil {
		t.Fatal(err)
	}
	w.write(w.egress, routesYAML)
	if res, err := w.hand.Confirm(t.Context(), "web", p, ims, nil); !errors.Is(err, ErrChanged) {
		t.Errorf("Confirm = %+v, %v; want the change found", res, err)
	}
}

func TestReplace(t *testing.T) {
	w := newWorld(t)
	if err := w.hand.Replace(t.Context(), "web", nil); err != nil {
		t.Errorf("Replace: %v", err)
	}
	w.exec = func([]string) error { return errors.New("exit status 1") }
	if err := w.hand.Replace(t.Context(), "web", nil); err == nil || err.Error() != "replacing bottle web: running replace: exit status 1" {
		t.Errorf("Replace = %v, want its failure", err)
	}
	w.cfg.Capability.Replace = nil
	if err := w.hand.Replace(t.Context(), "web", nil); err == nil {
		t.Error("Replace without a command says that it replaced the bottle")
	}
	if diff := cmp.Diff([]string{"replace", "replace"}, w.ran); diff != "" {
		t.Errorf("commands (-want +got):\n%s", diff)
	}
}

// TestReplaceEnds: a command that hangs does not keep its bottle for good.
func TestReplaceEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hand, err := New(Options{
			Targets: func(string) config.Bottle {
				return config.Bottle{Capability: &config.Capability{Replace: []string{"hang"}}}
			},
			LockDir: t.TempDir(),
			Exec: func(ctx context.Context, _ []string, _, _ io.Writer, _ func(int)) error {
				<-ctx.Done()
				return context.Cause(ctx)
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := hand.Replace(t.Context(), "web", nil); err == nil || err.Error() != "replacing bottle web: running hang: it took over 10m0s" {
			t.Errorf("Replace = %v, want it ended", err)
		}
	})
}

func TestBuildOutputIsEscaped(t *testing.T) {
	w := newWorld(t)
	w.build = func(out io.Writer) error {
		fmt.Fprint(out, "one\x1b[31m\ntwo ")
		fmt.Fprint(out, "halves\r\nlast")
		return nil
	}
	if _, _, err := w.apply(image(t, "FROM x\n")); err != nil {
		t.Fatal(err)
	}
	want := "dockerfile: wrote " + w.img + "\ndockerfile: building\none\\x1b[31m\ntwo halves\nlast\nbuilt; it takes effect when the bottle is replaced\n"
	if diff := cmp.Diff(want, w.said.String()); diff != "" {
		t.Errorf("progress (-want +got):\n%s", diff)
	}
}
