package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// A mailbox that is gone, is no directory or can be written no more is not ready.
func TestMailboxThere(t *testing.T) {
	if dir := os.Getenv("SUPERVISE_TEST_MAILBOX"); dir != "" {
		if err := mailboxThere(dir); err == nil || !strings.Contains(err.Error(), "cannot be written") {
			t.Errorf("%v, want that it cannot be written", err)
		}
		return
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{dir: "", file: "is not a directory", filepath.Join(dir, "none"): "no such file"} {
		if err := mailboxThere(path); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}

	// Root may write everything, so somebody else has to look.
	if os.Getuid() != 0 {
		if err := os.Chmod(dir, 0o500); err != nil {
			t.Fatal(err)
		}
		defer os.Chmod(dir, 0o700)
		if err := mailboxThere(dir); err == nil {
			t.Error("one that cannot be written is there")
		}
		return
	}
	base, err := os.MkdirTemp("", "supervise-ready-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(base)
	data, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	exe, box := filepath.Join(base, "supervise.test"), filepath.Join(base, "web")
	if err := errors.Join(os.Chmod(base, 0o755), os.WriteFile(exe, data, 0o755), os.Chmod(exe, 0o755), os.Mkdir(box, 0o755), os.Chmod(box, 0o755)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-test.run=^TestMailboxThere$")
	cmd.Dir = base
	cmd.Env = append(os.Environ(), "SUPERVISE_TEST_MAILBOX="+box)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 61001, Gid: 61001}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
