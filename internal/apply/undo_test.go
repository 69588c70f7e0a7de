package apply

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/bot-bottle/supervise/internal/config"
	"github.com/bot-bottle/supervise/internal/payload"
	"github.com/bot-bottle/supervise/internal/routes"
	"github.com/bot-bottle/supervise/queue"
)

func TestUndo(t *testing.T) {
	for _, tt := range []struct {
		name   string
		before string // routes.yaml, if not the usual
		p      payload.Payload
		edit   func(w *world) // between applying and undoing
		egress string         // what routes.yaml is in the end
		gate   string
		img    string
		want   queue.Outcome
	}{
		{"untouched since", "", route(t, "api.github.com", "/repos/"), nil, routesYAML, gateYAML, dockerfile, queue.Live},
		{"edited elsewhere since", "", route(t, "api.github.com", "/repos/"),
			func(w *world) {
				w.write(w.egress, strings.Replace(routesAfter, "# ours", "# theirs", 1)+"  - host: later.com\n")
				w.write(w.gate, gateAfter+"  - later.com\n")
			},
			strings.Replace(routesYAML, "# ours", "# theirs", 1) + "  - host: later.com\n", gateYAML + "  - later.com\n", dockerfile, queue.Live},
		{"paths added", "", route(t, "pypi.org", "/pypi/"), func(w *world) { w.write(w.egress, w.read(w.egress)+"# end\n") }, routesYAML + "# end\n", gateYAML, dockerfile, queue.Live},
		{"widened", "", route(t, "pypi.org"), func(w *world) { w.write(w.egress, w.read(w.egress)+"# end\n") }, routesYAML + "# end\n", gateYAML, dockerfile, queue.Live},
		{"gone by hand already", "", route(t, "api.github.com", "/repos/"),
			func(w *world) { w.write(w.egress, "routes: []\n"); w.write(w.gate, "mode: strict\n") }, "routes: []\n", "mode: strict\n", dockerfile, queue.Live},
		{"pipelock alone", "", blocked(t, "https://a.com/"), nil, routesYAML, gateYAML, dockerfile, queue.Unverified},
		{"an empty file", "\n", route(t, "a.com"), nil, "\n", gateYAML, dockerfile, queue.Live},
		{"a Dockerfile", "", image(t, "FROM x\n"), nil, routesYAML, gateYAML, dockerfile, queue.Built},
		{"a Dockerfile that was not there", "", image(t, "FROM x\n"), nil, routesYAML, gateYAML, "(no file)", queue.Acknowledged},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			if tt.before != "" {
				w.write(w.egress, tt.before)
			}
			if tt.img == "(no file)" {
				os.Remove(w.img)
			}
			_, ims, err := w.apply(tt.p)
			if err != nil {
				t.Fatalf("Apply: %v", err)
			}
			if tt.edit != nil {
				tt.edit(w)
			}
			w.ran = nil
			w.build = w.buildsFile
			res, err := w.hand.Undo(t.Context(), "web", tt.p, ims, false, nil)
			if err != nil || res.Outcome != tt.want {
				t.Fatalf("Undo = %+v, %v; want %s", res, err, tt.want)
			}
			w.is(w.egress, tt.egress)
			w.is(w.gate, tt.gate)
			w.is(w.img, tt.img)
			w.clean()
			if tt.p.Tool == payload.Egress && w.ran[0] != "reload-egress" {
				t.Errorf("commands %v, want egress closed first", w.ran)
			}
			if res, err := w.hand.Undo(t.Context(), "web", tt.p, ims, false, nil); err != nil || res.Outcome != tt.want {
				t.Errorf("Undo again = %+v, %v; want %s", res, err, tt.want)
			}
		})
	}
}

// TestUndoRestoresTheOther: a target that cannot be written, or whose proxy cannot be told, does not keep the other from being restored.
func TestUndoRestoresTheOther(t *testing.T) {
	p := route(t, "api.github.com", "/repos/")
	for _, step := range []string{"egress reload", "egress write"} {
		w := newWorld(t)
		_, ims, err := w.apply(p)
		if err != nil {
			t.Fatal(err)
		}
		want := []string{w.egress, w.gate}
		switch step {
		case "egress reload":
			w.exec = func(argv []string) error {
				if argv[0] == "reload-egress" {
					return errors.New("no such container")
				}
				return nil
			}
		case "egress write":
			// A directory in the candidate's place; it is not empty.
			if err := os.MkdirAll(filepath.Join(filepath.Dir(w.egress), ".supervise-tmp-routes.yaml", "x"), 0o755); err != nil {
				t.Fatal(err)
			}
			want = want[1:]
		}
		w.ran = nil
		_, err = w.hand.Undo(t.Context(), "web", p, ims, false, nil)
		if f := failure(t, err); f.Kind != KindEgress || f.Step != strings.Fields(step)[1] || !f.Undo || !slices.Equal(f.Restored, want) {
			t.Errorf("%s: Undo = %+v; want %v restored", step, f, want)
		}
		w.is(w.gate, gateYAML)
		if last := w.ran[len(w.ran)-1]; !strings.Contains(last, "gate-web") {
			t.Errorf("%s: commands %v, want pipelock told too", step, w.ran)
		}
		w.exec = nil
		if err := os.RemoveAll(filepath.Join(filepath.Dir(w.egress), ".supervise-tmp-routes.yaml")); err != nil {
			t.Fatal(err)
		}
		if res, err := w.hand.Undo(t.Context(), "web", p, ims, false, nil); err != nil || res.Outcome != queue.Live {
			t.Errorf("%s: Undo again = %+v, %v; want live", step, res, err)
		}
		w.is(w.egress, routesYAML)
	}
}

func TestUndoRefuses(t *testing.T) {
	for _, tt := range []struct {
		name string
		p    payload.Payload
		edit func(w *world)
		want string
	}{
		{"the entry was edited", route(t, "api.github.com", "/repos/"), func(w *world) { w.write(w.egress, strings.Replace(routesAfter, "/repos/", "/user/", 1)) },
			"the entry of host api.github.com is no longer as it was written: edit it by hand"},
		{"the file does not parse", route(t, "a.com"), func(w *world) { w.write(w.egress, "routes: [\n") }, "line 2: did not find expected node content"},
		{"the file is gone", route(t, "a.com"), func(w *world) { os.Remove(w.egress) }, "found (no file)"},
		{"the Dockerfile was edited", image(t, "FROM x\n"), func(w *world) { w.write(w.img, "FROM y\n") }, "changed by someone else"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			_, ims, err := w.apply(tt.p)
			if err != nil {
				t.Fatalf("Apply: %v", err)
			}
			tt.edit(w)
			egress, gate, img := w.read(w.egress), w.read(w.gate), w.read(w.img)
			_, err = w.hand.Undo(t.Context(), "web", tt.p, ims, false, nil)
			if f := failure(t, err); f.Step != "check" || !strings.Contains(f.Error(), tt.want) || len(f.Left) != 1 || !f.Undo || len(f.Restored) != 0 {
				t.Errorf("Undo = %+v; want %q, what was left, and nothing restored", f, tt.want)
			}
			w.is(w.egress, egress)
			w.is(w.gate, gate)
			w.is(w.img, img)
		})
	}
}

// TestUndoOfAMovedFile: what would be restored in a file that is no longer the target would change nothing for the bottle.
func TestUndoOfAMovedFile(t *testing.T) {
	for _, tt := range []struct {
		name string
		move func(w *world, path string) (now string) // path is a symbolic link to w.gate's old file
	}{
		{"the link points elsewhere", func(w *world, path string) string {
			now := filepath.Join(w.dir, "next.yaml")
			w.write(now, w.read(path))
			if err := errors.Join(os.Remove(path), os.Symlink(now, path)); err != nil {
				w.t.Fatal(err)
			}
			return path
		}},
		{"the link became a file", func(w *world, path string) string {
			text := w.read(path)
			if err := os.Remove(path); err != nil {
				w.t.Fatal(err)
			}
			w.write(path, text)
			return path
		}},
		{"the configuration names another", func(w *world, path string) string {
			now := filepath.Join(w.dir, "next.yaml")
			w.write(now, w.read(path))
			w.cfg.Pipelock = &config.Pipelock{File: now}
			return now
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			link := filepath.Join(w.dir, "link.yaml")
			if err := os.Symlink(w.gate, link); err != nil {
				t.Fatal(err)
			}
			w.cfg.Pipelock = &config.Pipelock{File: link}
			p := route(t, "api.github.com", "/repos/")
			_, ims, err := w.apply(p)
			if err != nil {
				t.Fatal(err)
			}
			now := tt.move(w, link)
			_, err = w.hand.Undo(t.Context(), "web", p, ims, false, nil)
			if f := failure(t, err); f.Step != "check" || !f.Undo || !slices.Equal(f.Left, []string{now}) || len(f.Restored) != 0 {
				t.Errorf("Undo = %+v; want %s left, and nothing restored", f, now)
			}
			w.is(w.egress, routesAfter)
			w.is(w.gate, gateAfter)
			w.is(now, gateAfter)
		})
	}
	t.Run("the same file by another way", func(t *testing.T) {
		w := newWorld(t)
		p := route(t, "api.github.com", "/repos/")
		_, ims, err := w.apply(p)
		if err != nil {
			t.Fatal(err)
		}
		moved := filepath.Join(w.dir, "moved")
		if err := errors.Join(os.Rename(filepath.Dir(w.gate), moved), os.Symlink(moved, filepath.Dir(w.gate))); err != nil {
			t.Fatal(err)
		}
		if res, err := w.hand.Undo(t.Context(), "web", p, ims, false, nil); err != nil || res.Outcome != queue.Live {
			t.Errorf("Undo = %+v, %v; want live", res, err)
		}
		w.is(w.egress, routesYAML)
		w.is(w.gate, gateYAML)
	})
}

// Taking authority away fails closed, and can be done again.
func TestUndoUnseen(t *testing.T) {
	w := newWorld(t)
	p := route(t, "pypi.org", "/pypi/")
	_, ims, err := w.apply(p)
	if err != nil {
		t.Fatal(err)
	}
	for _, bare := range []bool{false, true} {
		w.proxy.set(func() { w.proxy.deaf, w.proxy.bare = true, bare })
		_, err = w.hand.Undo(t.Context(), "web", p, ims, false, nil)
		want := "is of sha256"
		if bare {
			want = "host pypi.org still has path /pypi/"
		}
		if f := failure(t, err); f.Step != "verify" || !strings.Contains(f.Error(), want) || !f.Undo || !slices.Equal(f.Restored, []string{w.egress}) || len(f.Left) != 0 {
			t.Errorf("Undo = %+v; want %q, and that the file is restored", f, want)
		}
		w.is(w.egress, routesYAML)
	}
	w.proxy.set(func() { w.proxy.deaf = false })
	if res, err := w.hand.Undo(t.Context(), "web", p, ims, false, nil); err != nil || res.Outcome != queue.Live {
		t.Errorf("Undo again = %+v, %v; want live", res, err)
	}
}

func TestCrashInUndo(t *testing.T) {
	died := errors.New("died")
	p := route(t, "a.com", "/x")
	for n := range 9 {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			w := newWorld(t)
			_, ims, err := w.apply(p)
			if err != nil {
				t.Fatal(err)
			}
			w.steps = nil
			w.step = func(string) error {
				if len(w.steps) == n+1 {
					return died
				}
				return nil
			}
			if _, err := w.hand.Undo(t.Context(), "web", p, ims, false, nil); !errors.Is(err, died) {
				t.Fatalf("Undo = %v, want it to die at step %d of %v", err, n, w.steps)
			}
			w.step = nil
			if res, err := w.hand.Undo(t.Context(), "web", p, ims, false, nil); err != nil || res.Outcome != queue.Live {
				t.Errorf("Undo again = %+v, %v; want live", res, err)
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

func TestPutBackLeavesEdits(t *testing.T) {
	w := newWorld(t)
	p := route(t, "a.com")
	_, ims, err := w.apply(p)
	if err != nil {
		t.Fatal(err)
	}
	theirs := w.read(w.egress) + "# theirs\n"
	w.write(w.egress, theirs)
	f := failure(t, w.hand.PutBack(t.Context(), "web", ims, nil))
	if len(f.Left) != 1 || !strings.Contains(f.Left[0], SHA256([]byte(theirs))) || !strings.Contains(f.Error(), "1 of 2 files changed by someone else") {
		t.Errorf("PutBack = %v, left %v; want the edited file left", f, f.Left)
	}
	w.is(w.egress, theirs)
	w.is(w.gate, gateYAML)
}

// TestPutBackBuilds: when a Dockerfile that was built is put back, so is the image, or it is said that it is not.
func TestPutBackBuilds(t *testing.T) {
	w := newWorld(t)
	w.build = w.buildsFile
	_, ims, err := w.apply(image(t, "FROM evil\n"))
	if err != nil || w.image != "FROM evil\n" {
		t.Fatalf("Apply: %v, built %q", err, w.image)
	}
	for range 2 { // again, as after a crash in between
		if err := w.hand.PutBack(t.Context(), "web", ims, nil); err != nil || w.image != dockerfile {
			t.Errorf("PutBack = %v, and the image is of %q; want it of the Dockerfile as it is again", err, w.image)
		}
		w.is(w.img, dockerfile)
		w.image = "FROM evil\n"
	}

	if err := os.Remove(w.img); err != nil {
		t.Fatal(err)
	}
	if _, ims, err = w.apply(image(t, "FROM evil\n")); err != nil {
		t.Fatal(err)
	}
	f := failure(t, w.hand.PutBack(t.Context(), "web", ims, nil))
	if len(f.Left) != 0 || !strings.Contains(f.Error(), "what was built of it, if anything, is still there") {
		t.Errorf("PutBack = %v, left %v; want to be told of the image", f, f.Left)
	}
	w.is(w.img, "(no file)")

	w.write(w.img, dockerfile)
	w.ran = nil
	w.build = func(io.Writer) error { return errors.New("no space") }
	if _, _, err := w.apply(image(t, "FROM evil\n")); failure(t, err).Step != "build" || len(w.ran) != 1 {
		t.Errorf("Apply = %v, having run %q; want a failed build not to be followed by another", err, w.ran)
	}
}

// An image is kept as text: the entries of a route can be read back.
func TestImageEntries(t *testing.T) {
	w := newWorld(t)
	_, ims, err := w.apply(withAuth(t, "a.com", "/x"))
	if err != nil {
		t.Fatal(err)
	}
	r, err := routes.ParseCanonical(ims[1].EntryAfter)
	if err != nil || r.Host != "a.com" || !slices.Equal(r.PathAllowlist, []string{"/x"}) || r.Auth.TokenRef != "GH_TOKEN" {
		t.Errorf("entry %q reads back as %+v, %v", ims[1].EntryAfter, r, err)
	}
}

// TestUndoUnmanaged: a target that the configuration no longer has is restored only when that is accepted, and nothing is run for it;
// the other one is told as ever.
func TestUndoUnmanaged(t *testing.T) {
	for _, tt := range []struct {
		kind Kind
		p    payload.Payload
		drop func(c *config.Bottle)
		ran  []string
	}{
		{KindEgress, route(t, "api.github.com", "/repos/"), func(c *config.Bottle) { c.Egress = nil }, []string{"docker kill -s HUP gate-web"}},
		{KindPipelock, route(t, "api.github.com", "/repos/"), func(c *config.Bottle) { c.Pipelock = nil }, []string{"reload-egress"}},
		{KindDockerfile, image(t, "FROM x\n"), func(c *config.Bottle) { c.Capability = nil }, nil},
	} {
		t.Run(string(tt.kind), func(t *testing.T) {
			w := newWorld(t)
			_, ims, err := w.apply(tt.p)
			if err != nil {
				t.Fatal(err)
			}
			tt.drop(&w.cfg)
			egress, gate, img := w.read(w.egress), w.read(w.gate), w.read(w.img)
			w.ran = nil
			_, err = w.hand.Undo(t.Context(), "web", tt.p, ims, false, nil)
			if f := failure(t, err); f.Step != "check" || f.Kind != tt.kind || !f.Undo || len(f.Restored) != 0 || !strings.Contains(f.Error(), "has no "+string(tt.kind)+" in supervise.yaml any more") {
				t.Errorf("Undo = %+v; want it refused", f)
			}
			w.is(w.egress, egress)
			w.is(w.gate, gate)
			w.is(w.img, img)
			res, err := w.hand.Undo(t.Context(), "web", tt.p, ims, true, nil)
			if err != nil || !strings.Contains(strings.Join(res.Notes, "\n"), string(tt.kind)+": ") || !strings.Contains(strings.Join(res.Notes, "\n"), "nobody was told to read it") {
				t.Errorf("Undo = %+v, %v; want to be told that nobody reads it", res, err)
			}
			w.is(w.egress, routesYAML)
			w.is(w.gate, gateYAML)
			w.is(w.img, dockerfile)
			if !slices.Equal(w.ran, tt.ran) {
				t.Errorf("ran %q, want %q", w.ran, tt.ran)
			}
		})
	}
}
