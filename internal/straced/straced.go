// Package straced runs a program under strace and tells what it wrote, synced and named, in that order. It is for tests that
// hold what is said of power cuts: a sync that is missing changes nothing that a program could see.
package straced

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const calls = "trace=openat,write,pwrite64,fsync,fdatasync,?link,linkat,?rename,renameat,renameat2,unlinkat,mkdirat"

// Mark begins what a program may say to tell in its trace where it is.
const Mark = "=="

// Trace is what a program did.
type Trace struct{ file string }

// New returns the arguments to put before a program's own, and where its trace will be once it has ended and its output
// is closed. It skips the test where nobody may be traced. In CI, which installs strace, its absence is a failure.
func New(t testing.TB) (by []string, _ Trace) {
	t.Helper()
	if out, err := exec.Command("strace", "-f", "-o", os.DevNull, "-e", "trace=none", "true").CombinedOutput(); err != nil {
		if errors.Is(err, exec.ErrNotFound) && os.Getenv("CI") != "" {
			t.Fatal("there is no strace: .ci/deps should have installed it")
		}
		t.Skipf("needs strace (.ci/deps installs it), and to be permitted ptrace: %v: %s", err, out)
	}
	file := filepath.Join(t.TempDir(), "trace")
	// -D: the program is our own child, and gets our signals.
	return []string{"strace", "-D", "-f", "-y", "-s", "200", "-e", "signal=none", "-e", calls, "-o", file}, Trace{file}
}

var (
	begunRE = regexp.MustCompile(`^(\d+) +(\w+\(.*) <unfinished \.\.\.>$`)
	endedRE = regexp.MustCompile(`^(\d+) +<\.\.\. \w+ resumed>(.*)$`)
	callRE  = regexp.MustCompile(`^\d+ +(\w+)\((.*)\) += (\d+)`)
	fdRE    = regexp.MustCompile(`^\d+<([^>]*)>`)
	nameRE  = regexp.MustCompile(`(?:(?:AT_FDCWD|\d+)<([^>]*)>, )?"([^"]*)"`)
	uuidRE  = regexp.MustCompile(`(?:\b\d+-)?[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)
)

// Read returns a line for every call that succeeded, on files under dir, with names relative to it and ID for each UUID:
//
//	create NAME, write NAME, sync NAME, link OLD NEW, rename OLD NEW, remove NAME, mkdir NAME
//
// and as it is what was written to a pipe and begins with Mark. Files that got one of the names hints, and locks, are left out: they are
// not meant to last. Calls are in the order in which they ended.
func (tr Trace) Read(t testing.TB, dir string, hints ...string) string {
	t.Helper()
	data, err := os.ReadFile(tr.file)
	if err != nil {
		t.Fatal(err)
	}
	begun := map[string]string{} // by thread
	var lines []string
	hidden := map[string]bool{}
	for raw := range strings.Lines(string(data)) {
		raw = strings.TrimRight(raw, "\n")
		if m := begunRE.FindStringSubmatch(raw); m != nil {
			begun[m[1]] = m[2]
			continue
		}
		if m := endedRE.FindStringSubmatch(raw); m != nil {
			raw = m[1] + " " + begun[m[1]] + m[2]
		}
		m := callRE.FindStringSubmatch(raw)
		if m == nil {
			continue // it failed, or is none
		}
		verb, names := parse(m[1], m[2])
		if verb == "" {
			continue
		}
		if verb != Mark {
			inside := true
			for i, name := range names {
				rel, err := filepath.Rel(dir, name)
				inside = inside && err == nil && rel != ".." && !strings.HasPrefix(rel, "../") && !strings.HasSuffix(rel, ".lock")
				names[i] = rel
			}
			if !inside {
				continue
			}
			for _, h := range hints {
				if filepath.Base(names[len(names)-1]) == h {
					hidden[names[0]], hidden[names[len(names)-1]] = true, true
				}
			}
		}
		lines = append(lines, verb+" "+strings.Join(names, " "))
	}
	var b strings.Builder
	for _, line := range lines {
		if names := strings.Fields(line); len(names) < 2 || !hidden[names[1]] {
			fmt.Fprintln(&b, uuidRE.ReplaceAllString(line, "ID"))
		}
	}
	return b.String()
}

// parse returns no verb for what is of no interest.
func parse(call, args string) (verb string, names []string) {
	fd := ""
	if m := fdRE.FindStringSubmatch(args); m != nil {
		fd = m[1]
	}
	for _, m := range nameRE.FindAllStringSubmatch(args, -1) {
		name := m[2]
		if !filepath.IsAbs(name) {
			name = filepath.Join(m[1], name)
		}
		names = append(names, name)
	}
	switch call {
	case "openat":
		if !strings.Contains(args, "O_CREAT") {
			return "", nil
		}
		return "create", names
	case "write", "pwrite64":
		if _, text, ok := strings.Cut(args, `"`+Mark); ok && strings.HasPrefix(fd, "pipe:") {
			text, _, _ = strings.Cut(text, `\n`)
			return Mark, []string{strings.TrimSpace(text)}
		}
		return "write", []string{fd}
	case "fsync", "fdatasync":
		return "sync", []string{fd}
	case "link", "linkat":
		return "link", names
	case "rename", "renameat", "renameat2":
		return "rename", names
	case "unlinkat":
		return "remove", names
	case "mkdirat":
		return "mkdir", names
	}
	return "", nil
}

// InOrder wants each of the blocks to be in trace, whole, and after the one before.
func InOrder(t testing.TB, trace string, blocks ...string) {
	t.Helper()
	rest := "\n" + trace
	for _, b := range blocks {
		_, after, ok := strings.Cut(rest, "\n"+b)
		if !ok {
			t.Errorf("the trace lacks, after what was found before,\n%s\nin\n%s", b, trace)
			return
		}
		rest = "\n" + after
	}
}
