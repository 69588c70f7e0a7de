// Package testbin builds the real program for tests that run it.
package testbin

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Build builds cmd/supervise as path. The go command does not see that a test depends on what it builds, and would tell the
// result of an earlier run; but it notes which directories a test reads, and runs it again when a file in one has changed.
func Build(path string, flags ...string) error {
	root, err := moduleRoot()
	if err != nil {
		return err
	}
	err = filepath.WalkDir(root, func(dir string, d fs.DirEntry, err error) error {
		name := d.Name()
		switch {
		case err != nil:
			return err
		case !d.IsDir():
			return nil
		case dir != root && (strings.HasPrefix(name, ".") || name == "node_modules" || name == "testdata" || name == "bin" || name == "docs"):
			return fs.SkipDir
		}
		return nil // WalkDir reads it
	})
	if err != nil {
		return fmt.Errorf("reading the source: %w", err)
	}
	cmd := exec.Command("go", append(append([]string{"build"}, flags...), "-o", path, "./cmd/supervise")...)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building the command: %w\n%s", err, out)
	}
	return nil
}

// moduleRoot looks upwards from the working directory, which is the package's own in a test.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	for err == nil {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if filepath.Dir(dir) == dir {
			err = errors.New("there is no go.mod above")
		}
		dir = filepath.Dir(dir)
	}
	return "", err
}
