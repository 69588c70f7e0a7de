package operator

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/bot-bottle/supervise/internal/config"
	"github.com/bot-bottle/supervise/internal/payload"
	"github.com/bot-bottle/supervise/queue"
)

// TestKilledWhileItRuns: what a desk that was killed left running, to build a Dockerfile or to replace its bottle, has ended before the
// change is taken back, and does not come after that.
func TestKilledWhileItRuns(t *testing.T) {
	if what := os.Getenv("OPERATOR_TEST_HANGS"); what != "" {
		hangingChild(t, what)
		return
	}
	for _, what := range []string{"build", "replace"} {
		t.Run(what, func(t *testing.T) {
			r := newRig(t)
			before := string(read(t, r.docker))
			ref := r.put(payload.NewCapability("FROM debian:12\nRUN true\nRUN apt-get install -y jq\n"))
			for _, name := range []string{"go", "alive"} {
				if err := syscall.Mkfifo(filepath.Join(r.root, name), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			alive, err := os.OpenFile(filepath.Join(r.root, "alive"), os.O_RDONLY|syscall.O_NONBLOCK, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer alive.Close()
			changes, err := r.inbox.Changes(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilledWhileItRuns$")
			cmd.Env = append(os.Environ(), "OPERATOR_TEST_HANGS="+what, "OPERATOR_TEST_ROOT="+r.root, "OPERATOR_TEST_DOCKERFILE="+r.docker, "OPERATOR_TEST_ID="+string(ref.ID))
			cmd.Stderr = t.Output()
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if what == "replace" {
				for r.response(ref) == nil {
					<-changes
				}
				if err := r.box.Archive(t.Context(), ref.ID); err != nil {
					t.Fatal(err)
				}
			}
			// Opened when the command reads it.
			goOn, err := os.OpenFile(filepath.Join(r.root, "go"), os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait() // killed

			r.cfg.Capability.Build = []string{"cp", r.docker, filepath.Join(r.root, "image")}
			d := r.desk("bob@host")
			if what == "build" {
				// It is put back first, since the build does not hold.
				r.cfg.Capability.Build = []string{"sh", "-c", `cp "$0" "$1"; ! grep -q jq "$0"`, r.docker, filepath.Join(r.root, "image")}
				if got, err := d.Recover(t.Context()); err != nil || len(got) != 1 || got[0].State != RecordFailed {
					t.Errorf("Recover = %+v, %v; want it put back", got, err)
				}
			} else if _, err := d.Undo(t.Context(), ref, nil); err != nil {
				t.Errorf("undoing: %v", err)
			}
			_, err = io.WriteString(goOn, "go on\n")
			if err := errors.Join(ignore(err, syscall.EPIPE), goOn.Close()); err != nil {
				t.Error(err)
			}
			if b, err := io.ReadAll(alive); err != nil || len(b) != 0 { // until it has ended, as it is by now
				t.Errorf("reading: %q, %v", b, err)
			}
			if got := string(read(t, filepath.Join(r.root, "image"))); got != before {
				t.Errorf("the image is in the end of\n%s\nwant\n%s", got, before)
			}
		})
	}
}

func ignore(err, which error) error {
	if errors.Is(err, which) {
		return nil
	}
	return err
}

// hangingChild approves with a command that waits to be told to go on, and then makes an image of the Dockerfile as it was approved.
func hangingChild(t *testing.T, what string) {
	r := &rig{t: t, root: os.Getenv("OPERATOR_TEST_ROOT"), docker: os.Getenv("OPERATOR_TEST_DOCKERFILE")}
	// It is noted a moment after it has started.
	hangs := []string{"sh", "-c", `exec 3>"$0/alive"; until test -s "$0/.desk/locks/web.running"; do :; done; read x <"$0/go"; echo "$1" >"$0/image"`, r.root, "what was approved"}
	r.cfg.Capability = &config.Capability{File: r.docker, Build: hangs, Replace: hangs}
	if what == "replace" {
		r.cfg.Capability.Build = []string{"true"}
	}
	r.openInbox()
	d := r.desk("ann@host")
	ref := Ref{"web", queue.ID(os.Getenv("OPERATOR_TEST_ID"))}
	p := r.show(d, ref)
	_, err := d.Approve(t.Context(), ref, Decision{Digest: p.Digest, Accept: p.Dangers()})
	t.Errorf("approved before it was killed: %v", err)
}
