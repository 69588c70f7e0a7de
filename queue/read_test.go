package queue

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The size that a mount tells may be an old one.
func TestReadAll(t *testing.T) {
	for _, size := range []int{0, 1, 99, 100, 101, MaxFile * 2} {
		for _, length := range []int{0, 1, 100, 5000, MaxFile, MaxFile + 1, MaxFile + 9} {
			path := filepath.Join(t.TempDir(), "f")
			want := strings.Repeat("x", length)
			if err := os.WriteFile(path, []byte(want), 0o600); err != nil {
				t.Fatal(err)
			}
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			got, err := readAll(int(f.Fd()), size)
			if err != nil || string(got) != want[:min(length, MaxFile+1)] {
				t.Errorf("a file of %d bytes that is said to have %d: %d bytes, %v", length, size, len(got), err)
			}
			f.Close()
		}
	}
}
