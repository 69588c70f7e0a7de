package apply

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// A command that builds a Dockerfile or replaces its bottle goes on when this process is killed, and would be done after the change
// has been taken back. So it is noted while it runs, and whoever builds or replaces next for the bottle, or takes that back, ends what
// is left first. The bottle's lock, which every caller has, sees to it that the one who noted it is dead.
//
// Of what else there is, a signal at the parent's death (Pdeathsig) reaches the command and nothing that it started, comes when the
// thread that started it ends, and cannot be waited for; and a lock that the command inherits is kept by what it leaves behind on
// purpose. A desk that is killed in the moment between starting a command and noting it leaves it as before.

// leftGrace is how long what was left has to end by itself, as a command has that is interrupted.
const leftGrace = 2 * time.Second

func (j *job) runningFile() string { return filepath.Join(j.opts.LockDir, j.bottle+".running") }

// long runs a build or a replace.
func (j *job) long(ctx context.Context, argv []string) error {
	name := j.runningFile()
	err := j.run(ctx, argv, j.tell, func(pid int) {
		id := identity(pid)
		if id == "" {
			return // it has ended, or this system does not tell
		}
		if err := os.WriteFile(name, fmt.Appendf(nil, "%d %s\n", pid, id), 0o600); err != nil {
			j.log.Warn("noting what runs", "bottle", j.bottle, "err", err) // it matters only if we are killed
		}
	})
	if rerr := os.Remove(name); ignoreMissing(rerr) != nil {
		j.log.Warn("noting what runs", "bottle", j.bottle, "err", rerr) // whoever finds it sees that the process is gone
	}
	return err
}

// endLeft ends what a desk that was killed has left building or replacing for the bottle. What such a command had left behind when it
// ended by itself goes on.
func (j *job) endLeft(ctx context.Context) error {
	name := j.runningFile()
	b, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking for what was left running for bottle %s: %w", j.bottle, err)
	}
	var pid int
	var id string
	if n, _ := fmt.Sscanf(string(b), "%d %s", &pid, &id); n == 2 && pid > 1 && identity(pid) == id {
		if err := endGroup(ctx, pid, id); err != nil {
			return fmt.Errorf("ending process %d, which a desk that was killed has left running for bottle %s: %w: end it by hand", pid, j.bottle, err)
		}
		j.ended = fmt.Sprintf("ended process %d, which a desk that was killed had left running for bottle %s; see that the bottle is as it should be", pid, j.bottle)
		j.tell.say("dockerfile: %s", j.ended)
	}
	return ignoreMissing(os.Remove(name))
}

// EndLeft is for whoever gives up replacing the bottle and changes nothing.
func (l *Local) EndLeft(ctx context.Context, bottle string) (ended string, err error) {
	j := l.job(bottle, "", io.Discard)
	err = j.endLeft(ctx)
	return j.ended, err
}

// endGroup ends a process and its group as [execute] does.
func endGroup(ctx context.Context, pid int, id string) error {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} { // the second one is for the rest of the group, too
		if err := syscall.Kill(-pid, sig); errors.Is(err, syscall.ESRCH) {
			return nil
		} else if err != nil {
			return err
		}
		for end := time.Now().Add(leftGrace); identity(pid) == id && time.Now().Before(end); {
			if err := wait(ctx, 5*time.Millisecond); err != nil {
				return err
			}
		}
	}
	if identity(pid) == id {
		return fmt.Errorf("it is there %v after SIGKILL", leftGrace)
	}
	return nil
}

// endLeftOf is endLeft before a Dockerfile is changed or put back.
func (j *job) endLeftOf(ctx context.Context, images []Image) *Failure {
	i := slices.IndexFunc(images, func(im Image) bool { return im.Kind == KindDockerfile })
	if i < 0 {
		return nil
	}
	if err := j.endLeft(ctx); err != nil {
		return &Failure{Step: "check", Kind: KindDockerfile, Path: images[i].Path, Err: err}
	}
	return nil
}

// identity tells a living process from any other that has, had or will have its number; "" when there is none, or no way to tell.
func identity(pid int) string {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	// The name, in brackets, may hold anything. The state follows it, and when it started is the twentieth word from there.
	words := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(words) < 20 || words[0] == "Z" || words[0] == "X" {
		return ""
	}
	return strings.TrimSpace(string(boot)) + "/" + words[19]
}
