package apply

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/bot-bottle/supervise/queue"
)

// leftRunning starts a process group, deaf to SIGTERM, whose members hold a pipe, and returns its leader and the pipe.
func leftRunning(t *testing.T) (pid int, alive *os.File) {
	t.Helper()
	alive, other, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", "trap '' TERM; sleep 600 & echo up; wait")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Stdout = other
	if err := errors.Join(cmd.Start(), other.Close()); err != nil {
		t.Fatal(err)
	}
	pid = cmd.Process.Pid
	if line, err := bufio.NewReaderSize(alive, 16).ReadString('\n'); line != "up\n" {
		t.Fatalf("it said %q, %v", line, err)
	}
	waited := make(chan struct{})
	go func() { _ = cmd.Wait(); close(waited) }() // so that it is gone when it has ended
	t.Cleanup(func() {
		_ = syscall.Kill(-pid, syscall.SIGKILL)
		<-waited
		alive.Close()
	})
	return pid, alive
}

func (w *world) note(pid int, id string) {
	w.t.Helper()
	w.write(filepath.Join(w.opts.LockDir, "web.running"), fmt.Sprintf("%d %s\n", pid, id))
}

// TestEndsWhatWasLeft: what a desk that was killed has left running for a bottle is ended, with all of its group, before its
// Dockerfile is taken back; and nothing else is.
func TestEndsWhatWasLeft(t *testing.T) {
	p := image(t, "FROM x\n")
	t.Run("it is ended", func(t *testing.T) {
		w := newWorld(t)
		_, ims, err := w.apply(p)
		if err != nil {
			t.Fatal(err)
		}
		pid, alive := leftRunning(t)
		w.note(pid, identity(pid))
		w.build = func(io.Writer) error {
			if b, err := io.ReadAll(alive); err != nil || len(b) != 0 {
				t.Errorf("what it had started: %q, %v; want it ended", b, err)
			}
			return nil
		}
		res, err := w.hand.Undo(t.Context(), "web", p, ims, false, nil)
		if want := fmt.Sprintf("ended process %d, which a desk that was killed had left running for bottle web; ", pid); err != nil || res.Outcome != queue.Built || !strings.Contains(strings.Join(res.Notes, "\n"), want) {
			t.Errorf("Undo = %+v, %v; want to be told %q", res, err, want)
		}
		w.is(w.img, dockerfile)
		w.is(filepath.Join(w.opts.LockDir, "web.running"), "(no file)")
	})
	t.Run("also when the undo is refused", func(t *testing.T) { // the desk has said that the bottle is not replaced by it
		w := newWorld(t)
		_, ims, err := w.apply(p)
		if err != nil {
			t.Fatal(err)
		}
		w.write(w.img, "FROM somebody:else\n")
		pid, alive := leftRunning(t)
		w.note(pid, identity(pid))
		_, err = w.hand.Undo(t.Context(), "web", p, ims, false, &w.said)
		if f := failure(t, err); f.Step != "check" || !errors.Is(f, ErrChanged) {
			t.Errorf("Undo = %v; want it refused", f)
		}
		if !strings.Contains(w.said.String(), fmt.Sprintf("ended process %d", pid)) {
			t.Fatalf("it said %q, and what was left running is not ended", w.said.String())
		}
		if b, err := io.ReadAll(alive); err != nil || len(b) != 0 {
			t.Errorf("what it had started: %q, %v; want it ended", b, err)
		}
	})
	pid, _ := leftRunning(t)
	id := identity(pid)
	boot, start, _ := strings.Cut(id, "/")
	n, err := strconv.Atoi(start)
	if err != nil || len(boot) != 36 {
		t.Fatalf("its identity is %q", id)
	}
	for name, note := range map[string]string{
		"another process with its number": fmt.Sprintf("%d %s/%d\n", pid, boot, n-1),
		"before the machine was started":  fmt.Sprintf("%d %s/%s\n", pid, strings.Repeat("0", 36), start),
		"a note that was cut off":         fmt.Sprintf("%d", pid),
		"no note":                         "",
		"nobody's number":                 fmt.Sprintf("0 %s\n", id),
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			_, ims, err := w.apply(p)
			if err != nil {
				t.Fatal(err)
			}
			w.write(filepath.Join(w.opts.LockDir, "web.running"), note)
			res, err := w.hand.Undo(t.Context(), "web", p, ims, false, nil)
			if err != nil || strings.Contains(strings.Join(res.Notes, "\n"), "ended") || identity(pid) != id {
				t.Errorf("Undo = %+v, %v; want the process left alone", res, err)
			}
			w.is(filepath.Join(w.opts.LockDir, "web.running"), "(no file)")
		})
	}
}

// TestNotesWhatRuns: a command is noted while it runs, and not when it has ended; what it leaves behind then goes on.
func TestNotesWhatRuns(t *testing.T) {
	w := newWorld(t)
	w.opts.Exec = nil
	w.open()
	note := filepath.Join(w.opts.LockDir, "web.running")
	w.cfg.Capability.Replace = []string{"sh", "-c", `until test -s "$0"; do :; done; cat "$0"; echo $$; sleep 600 & echo $!`, note}
	if err := w.hand.Replace(t.Context(), "web", &w.said); err != nil {
		t.Fatal(err)
	}
	words := strings.Fields(strings.TrimPrefix(w.said.String(), "dockerfile: replacing the bottle\n"))
	if len(words) != 4 || words[0] != words[2] {
		t.Fatalf("it said %q, want its own number noted", w.said.String())
	}
	pid, err := strconv.Atoi(words[3])
	if err != nil || pid <= 1 {
		t.Fatal(err)
	}
	w.is(note, "(no file)")
	w.cfg.Capability.Replace = []string{"true"}
	err = w.hand.Replace(t.Context(), "web", nil)
	if kerr := syscall.Kill(pid, syscall.SIGKILL); err != nil || kerr != nil {
		t.Errorf("Replace again: %v; ending what the first one left: %v", err, kerr)
	}
}

// TestCannotEndWhatWasLeft: an undo changes nothing then; what has to be put back is, and that is told too.
func TestCannotEndWhatWasLeft(t *testing.T) {
	w := newWorld(t)
	p := image(t, "FROM x\n")
	_, ims, err := w.apply(p)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(w.opts.LockDir, "web.running"), 0o700); err != nil {
		t.Fatal(err)
	}
	after := w.read(w.img)
	_, err = w.hand.Undo(t.Context(), "web", p, ims, false, nil)
	if f := failure(t, err); f.Step != "check" || !f.Undo || len(f.Restored) != 0 || !strings.Contains(f.Error(), "looking for what was left running for bottle web") {
		t.Errorf("Undo = %+v; want it refused", f)
	}
	w.is(w.img, after)
	if err := w.hand.Replace(t.Context(), "web", nil); err == nil {
		t.Error("the bottle was replaced beside what may be running")
	}
	f := failure(t, w.hand.PutBack(t.Context(), "web", ims, nil))
	if len(f.Left) != 0 || !strings.Contains(f.Error(), "looking for what was left running for bottle web") {
		t.Errorf("PutBack = %+v; want it told, and nothing left", f)
	}
	w.is(w.img, dockerfile)
}
