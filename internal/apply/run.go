package apply

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/bot-bottle/supervise/internal/config"
	"github.com/bot-bottle/supervise/internal/safetext"
)

// execute runs a command in a process group of its own, so that nothing it started is left when ctx ends.
func execute(ctx context.Context, dir string, argv []string, stdout, stderr io.Writer, started func(pid int)) error {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = dir
	cmd.Stdout, cmd.Stderr = stdout, stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 2 * time.Second
	err := cmd.Start()
	if err == nil {
		if started != nil {
			started(cmd.Process.Pid)
		}
		err = cmd.Wait()
	}
	if ctx.Err() == nil {
		if errors.Is(err, exec.ErrWaitDelay) {
			return nil // it exited 0, and what it has started goes on and holds its output
		}
		return err
	}
	if cmd.Process != nil {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // ESRCH: all ended on SIGTERM
	}
	return errors.Join(context.Cause(ctx), err)
}

// run runs argv and puts the end of what it said into the error.
func (l *Local) run(ctx context.Context, argv []string, out io.Writer, started func(pid int)) error {
	var said tail
	both := &shared{w: io.MultiWriter(&said, out)}
	if err := l.opts.Exec(ctx, argv, both, both, started); err != nil {
		err = fmt.Errorf("running %s: %w", safetext.Line(strings.Join(argv, " "), 200), err)
		if s := strings.TrimSpace(safetext.Block(string(said))); s != "" {
			err = fmt.Errorf("%w; it said: %s", err, s)
		}
		return err
	}
	return nil
}

// short runs argv within the reload timeout.
func (l *Local) short(ctx context.Context, argv []string) error {
	ctx, cancel := within(ctx, l.opts.ReloadTimeout)
	defer cancel()
	return l.run(ctx, argv, io.Discard, nil)
}

func within(ctx context.Context, most time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, most, fmt.Errorf("it took over %v", most))
}

// tail keeps the end of what is written.
type tail []byte

const maxTail = 2 << 10

func (t *tail) Write(p []byte) (int, error) {
	*t = append(*t, p...)
	if over := len(*t) - maxTail; over > 0 {
		*t = append((*t)[:0], (*t)[over:]...)
	}
	return len(p), nil
}

// shared lets a command's two streams write to one writer.
type shared struct {
	mu sync.Mutex // guards w
	w  io.Writer
}

func (s *shared) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.w.Write(p)
}

// teller is the operator's progress: one line a step, and build output with everything unsafe in it escaped,
// since a Dockerfile is an agent's. What cannot be written is dropped.
type teller struct {
	w    io.Writer
	part []byte // of a line
}

func newTeller(w io.Writer) *teller {
	if w == nil {
		w = io.Discard
	}
	return &teller{w: w}
}

func (t *teller) say(format string, args ...any) {
	t.flush()
	fmt.Fprintf(t.w, format+"\n", args...)
}

const maxLine = 8 << 10

func (t *teller) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		i := bytes.IndexByte(p, '\n') + 1
		whole := i > 0
		if !whole {
			i = len(p)
		}
		t.part = append(t.part, p[:i]...)
		p = p[i:]
		if whole || len(t.part) > maxLine {
			t.flush()
		}
	}
	return n, nil
}

func (t *teller) flush() {
	if len(t.part) == 0 {
		return
	}
	line := bytes.TrimSuffix(bytes.TrimSuffix(t.part, []byte("\n")), []byte("\r"))
	fmt.Fprintln(t.w, safetext.Block(string(line)))
	t.part = t.part[:0]
}

// reload tells a proxy to read its file again. That it was told proves nothing yet.
func (l *Local) reload(ctx context.Context, r config.Reload) error {
	switch {
	case len(r.Exec) > 0:
		return l.short(ctx, r.Exec)
	case r.Engine != "":
		return l.short(ctx, []string{r.Engine, "kill", "-s", "HUP", r.Name})
	case r.PIDFile != "":
		pid, err := readPID(r.PIDFile)
		if err != nil {
			return err
		}
		if err := hangup(pid); err != nil {
			return fmt.Errorf("%w (from %s)", err, r.PIDFile)
		}
	case r.PID != 0:
		return hangup(r.PID)
	}
	return nil
}

func readPID(file string) (int, error) {
	f, err := os.Open(file)
	if errors.Is(err, os.ErrNotExist) {
		return 0, fmt.Errorf("there is no pid file %s: is the proxy running?", file)
	}
	if err != nil {
		return 0, fmt.Errorf("reading the pid file: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 64))
	if err != nil {
		return 0, fmt.Errorf("reading the pid file: %w", err)
	}
	pid, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 32)
	if err != nil || pid <= 1 {
		return 0, fmt.Errorf("the pid file %s holds %.40q, which is not the number of a process above 1", file, b)
	}
	return int(pid), nil
}

func hangup(pid int) error {
	if pid <= 1 {
		return fmt.Errorf("process %d cannot be signalled: it must be above 1", pid)
	}
	switch err := syscall.Kill(pid, syscall.SIGHUP); {
	case errors.Is(err, syscall.ESRCH):
		return fmt.Errorf("there is no process %d: is the proxy running?", pid)
	case errors.Is(err, syscall.EPERM):
		return fmt.Errorf("process %d is another user's: %w", pid, err)
	default:
		return err
	}
}
