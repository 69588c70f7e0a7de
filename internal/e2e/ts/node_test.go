package ts

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/bot-bottle/supervise/internal/testbin"
)

// tsDir is where the Node clients are. It is an error, with the mend, when what is installed there is not what
// package.json pins.
func tsDir(t *testing.T) string {
	t.Helper()
	const mend = "run 'npm ci --prefix internal/e2e/ts'"
	dir, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	var pins struct {
		Dependencies map[string]string
	}
	readJSON(t, filepath.Join(dir, "package.json"), &pins)
	for name, want := range pins.Dependencies {
		var got struct{ Version string }
		data, err := os.ReadFile(filepath.Join(dir, "node_modules", name, "package.json"))
		if err != nil {
			t.Fatalf("the Node package %s is not installed: %s: %v", name, mend, err)
		}
		if err := json.Unmarshal(data, &got); err != nil || got.Version != want {
			t.Fatalf("the Node package %s has version %q, want %q: %s", name, got.Version, want, mend)
		}
	}
	return dir
}

func readJSON(t *testing.T, path string, v any) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, v); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

// node is the path of a Node that is new enough for the conformance suite: the one that npm installed beside it, else
// the machine's, which on other systems than Linux must be 22 or later.
func node(t *testing.T) string {
	t.Helper()
	arch := map[string]string{"amd64": "x64", "arm64": "arm64"}[runtime.GOARCH]
	path := filepath.Join(tsDir(t), "node_modules", "node-"+runtime.GOOS+"-"+arch, "bin", "node")
	if _, err := os.Stat(path); err == nil {
		return path
	}
	path, err := exec.LookPath("node")
	if err != nil {
		t.Fatalf("there is no Node: install Node 22 or later: %v", err)
	}
	return path
}

// binary builds the real binary, once.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "supervise-e2e")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "supervise")
	return path, testbin.Build(path)
})

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := binary(); err == nil {
		os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

// sidecar is a running `supervise serve`.
type sidecar struct {
	url     string
	mailbox string
}

var listening = regexp.MustCompile(`listening on ([0-9.]+:[0-9]+)`)

// startSidecar runs the real binary until the test ends; then it must end cleanly on SIGTERM.
func startSidecar(t *testing.T, env ...string) *sidecar {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatalf("building supervise: %v", err)
	}
	s := &sidecar{mailbox: filepath.Join(t.TempDir(), "web")}
	cmd := exec.Command(path, "serve")
	cmd.Env = append(os.Environ(), "SUPERVISE_BOTTLE_SLUG=web", "SUPERVISE_QUEUE_DIR="+s.mailbox,
		"SUPERVISE_BIND=127.0.0.1", "SUPERVISE_PORT=0")
	cmd.Env = append(cmd.Env, env...)
	r, w := io.Pipe()
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	bound := make(chan string, 1)
	logged := make(chan struct{})
	go func() {
		defer close(logged)
		for sc := bufio.NewScanner(r); sc.Scan(); {
			io.WriteString(t.Output(), "sidecar: "+sc.Text()+"\n")
			if m := listening.FindStringSubmatch(sc.Text()); m != nil {
				select {
				case bound <- m[1]:
				default:
				}
			}
		}
	}()
	exited := make(chan error, 1)
	go func() {
		exited <- cmd.Wait()
		w.Close()
	}()
	select {
	case addr := <-bound:
		s.url = "http://" + addr + "/"
	case err := <-exited:
		<-logged
		t.Fatalf("supervise serve ended before it listened: %v", err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		if err := <-exited; err != nil {
			t.Errorf("supervise serve after SIGTERM: %v", err)
		}
		<-logged
	})
	return s
}

// run runs a Node program and returns its output; the error is that of its exit code.
func run(ctx context.Context, t *testing.T, env []string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(ctx, node(t), args...)
	cmd.Dir = tsDir(t)
	cmd.Env = append(os.Environ(), env...)
	var out, errOut strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	if s := errOut.String(); s != "" {
		t.Logf("stderr: %s", s)
	}
	return out.String(), err
}
