package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// needsMounts skips where a test cannot have mounts of its own.
func needsMounts(t *testing.T) {
	t.Helper()
	if out, err := exec.Command("unshare", "-rm", "sh", "-c", "mount -t tmpfs -o size=64k tmpfs /mnt").CombinedOutput(); err != nil {
		t.Skipf("needs a mount namespace of its own: %v: %s", err, out)
	}
}

// TestFullDisk: the file system of the mailboxes fills up while a call waits. The agent and the operator are told why, nothing is
// half written, and everything goes on when there is room again.
func TestFullDisk(t *testing.T) {
	needsMounts(t)
	w := newWorld(t)
	w.proxyAt = "127.0.0.1:1" // never asked
	disk := t.TempDir()
	w.side = startIn(t, []string{"unshare", "-rm", "sh", "-c", `mount -t tmpfs -o size=256k tmpfs "$0" && mkdir "$0/queue" && exec "$@"`, disk},
		[]string{"SUPERVISE_BOTTLE_SLUG=web", "SUPERVISE_QUEUE_DIR=" + disk + "/queue/web", "SUPERVISE_BIND=127.0.0.1", "SUPERVISE_PORT=" + w.port}, "serve")
	w.sideURL = "http://" + w.side.says(`listening on (127\.0\.0\.1:\d+)`) + "/"
	w.dir = fmt.Sprintf("/proc/%d/root%s", w.side.cmd.Process.Pid, disk) // what the sidecar sees
	s := w.connect("2026-07-28")
	waits := ask(t.Context(), s, "egress-block", args("a.example.com", "x"))
	id := w.queued(1)
	root := []string{"--root", w.path("queue")}
	w.must(append(root, "list")...) // its own directories are there from now on

	if err := fill(w.path("fill")); err != nil {
		t.Fatal(err)
	}
	refused := get(t, ask(t.Context(), s, "egress-block", args("b.example.com", "x")))
	if !refused.isError || !strings.Contains(refused.text, "storing the proposal failed") || !strings.Contains(refused.text, "no decision; call again") {
		t.Errorf("the agent is told: %s", refused.text)
	}
	w.side.says(`no space left on device`)
	_, errs, code := w.run(append(root, "reject", id, "--notes", "no")...)
	if code != 1 || !strings.Contains(errs, "no space left on device: make room on the file system of "+w.path("queue")) {
		t.Errorf("reject: exit %d, want 1, why and the mend:\n%s", code, errs)
	}
	held(t, waits)

	if err := os.Remove(w.path("fill")); err != nil {
		t.Fatal(err)
	}
	again := ask(t.Context(), s, "egress-block", args("b.example.com", "x"))
	other := w.queued(2)
	out, errs, code := w.run(append(root, "reject", id, "--notes", "no")...)
	if code != 0 && code != 4 { // 4: it has just finished what the full disk interrupted
		t.Errorf("reject when there is room: exit %d\n%s%s", code, out, errs)
	}
	if a := get(t, waits); !strings.HasPrefix(a.text, "status: rejected\nnotes: no\n") {
		t.Errorf("answer: %s", a.text)
	}
	w.must(append(root, "reject", other)...)
	if a := get(t, again); !strings.HasPrefix(a.text, "status: rejected\n") {
		t.Errorf("answer: %s", a.text)
	}
	if got := w.must(append(root, "audit", "verify")...); !strings.Contains(got, "OK") {
		t.Errorf("audit verify: %s", got)
	}
}

// TestReadOnlyMailbox: a sidecar that cannot write says so and ends, before it answers anybody.
func TestReadOnlyMailbox(t *testing.T) {
	needsMounts(t)
	disk := t.TempDir()
	side := startIn(t, []string{"unshare", "-rm", "sh", "-c", `mount -t tmpfs tmpfs "$0" && mkdir "$0/web" && mount -o remount,ro "$0" && exec "$@"`, disk},
		[]string{"SUPERVISE_BOTTLE_SLUG=web", "SUPERVISE_QUEUE_DIR=" + disk + "/web", "SUPERVISE_BIND=127.0.0.1", "SUPERVISE_PORT=" + freePort(t)}, "serve")
	<-side.done
	if code := side.cmd.ProcessState.ExitCode(); code != 1 || !strings.Contains(side.output(), "read-only file system") || strings.Contains(side.output(), "the mailbox is open") {
		t.Errorf("exit %d, want 1 and why:\n%s", code, side.output())
	}
}

// fill takes all room that is left.
func fill(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	for block := make([]byte, 4096); ; {
		if _, err := f.Write(block); errors.Is(err, syscall.ENOSPC) {
			return f.Close()
		} else if err != nil {
			return errors.Join(err, f.Close())
		}
	}
}
