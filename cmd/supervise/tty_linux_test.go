package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

func init() { terminalCommand = onTerminal }

// openPTY returns the two ends of a new terminal.
func openPTY(rows, cols uint16) (ours, theirs *os.File, err error) {
	ours, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, err
	}
	fd := int(ours.Fd())
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
	}
	if err == nil {
		theirs, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		return nil, nil, errors.Join(err, ours.Close())
	}
	return ours, theirs, nil
}

// onTerminal N OUT [QUESTION=ANSWER]... -- ARGS... runs supervise on a terminal, wants exit code N and saves what the terminal
// showed in the file OUT. Each answer is typed once its question (a part of it) has been shown. The terminal is
// $SIZE large, 40x100 without.
func onTerminal(ts *testscript.TestScript, neg bool, args []string) {
	sep := slices.Index(args, "--")
	if neg || sep < 2 {
		ts.Fatalf("usage: terminal N OUT [QUESTION=ANSWER]... -- ARGS...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	rows, cols := uint16(40), uint16(100)
	if size := ts.Getenv("SIZE"); size != "" {
		_, err := fmt.Sscanf(size, "%dx%d", &rows, &cols)
		ts.Check(err)
	}
	ours, theirs, err := openPTY(rows, cols)
	ts.Check(err)
	self, err := os.Executable()
	ts.Check(err)
	cmd := &exec.Cmd{Path: self, Args: append([]string{"supervise"}, args[sep+1:]...), Dir: ts.MkAbs(".")}
	for _, name := range []string{"HOME", "PATH", "TMPDIR", "WORK", "TERM", "NO_COLOR", "EDITOR", "SUPERVISE_ROOT", "SUPERVISE_CONFIG"} {
		if v := ts.Getenv(name); v != "" {
			cmd.Env = append(cmd.Env, name+"="+v)
		}
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = theirs, theirs, theirs
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	ts.Check(cmd.Start())
	ts.Check(theirs.Close())
	watchdog := time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() })
	defer watchdog.Stop()

	var screen bytes.Buffer
	seen := 0
	questions := args[2:sep]
	buf := make([]byte, 4096)
	for {
		n, err := ours.Read(buf)
		screen.Write(buf[:n])
		for len(questions) > 0 {
			q, answer, _ := strings.Cut(questions[0], "=")
			i := strings.Index(screen.String()[seen:], q)
			if i < 0 {
				break
			}
			seen += i + len(q)
			questions = questions[1:]
			_, werr := io.WriteString(ours, answer+"\n")
			ts.Check(werr)
		}
		if err != nil {
			break // EIO: the other end is closed
		}
	}
	_ = cmd.Wait() // the code is looked at below
	ts.Check(ours.Close())
	text := strings.ReplaceAll(screen.String(), "\r\n", "\n")
	ts.Logf("[terminal]\n%s", strings.ReplaceAll(text, "\x1b", "␛"))
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(text), 0o600))
	if got := cmd.ProcessState.ExitCode(); got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
	if len(questions) > 0 {
		ts.Fatalf("never asked: %q", questions)
	}
}

// TestStyleBesideTerminal: output that goes through a pipe to the terminal of our other streams is broken as wide as that is.
func TestStyleBesideTerminal(t *testing.T) {
	ours, theirs, err := openPTY(24, 60)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ours.Close(); theirs.Close() })
	env := func(string) string { return "" }
	for _, tt := range []struct {
		name   string
		others []any
		want   int
	}{
		{"none", []any{&bytes.Buffer{}, nil}, elsewhere},
		{"stderr", []any{theirs, &bytes.Buffer{}}, 60},
		{"stdin", []any{&bytes.Buffer{}, theirs}, 60},
	} {
		s := styleBeside(&bytes.Buffer{}, env, tt.others...)
		if s.tty || s.color || s.width != 0 || s.cells() != tt.want {
			t.Errorf("%s: %+v breaks lines at %d, want %d and no terminal", tt.name, s, s.cells(), tt.want)
		}
	}
	if s := styleBeside(theirs, env); !s.tty || s.wrap != 0 || s.cells() != 60 {
		t.Errorf("on the terminal itself: %+v", s)
	}
}
