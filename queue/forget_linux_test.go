package queue

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestForgetMount: a mailbox that is a mount cannot be removed, but what is in it can, and it is said what is left.
func TestForgetMount(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "web")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=16m"); err != nil {
		t.Skipf("needs a mount: %v", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	store(t, filepath.Join(dir, processed), 1000)
	if err := openRoot(t, root, RootOptions{}).Forget(t.Context(), "web"); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("Forget = %v, want that it is a mount", err)
	}
	if got := names(t, dir); len(got) != 0 {
		t.Errorf("it holds %d names, want none", len(got))
	}
}
