package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"
)

// process is a server under measurement, with a mailbox of its own.
type process struct {
	cmd  *exec.Cmd
	addr string
	dir  string // the mailbox
	err  chan error
}

var addrRE = regexp.MustCompile(`listening on (127\.0\.0\.1:\d+)`)

// launch starts argv and waits until it says where it listens.
func launch(ctx context.Context, dir string, env []string, argv ...string) (*process, error) {
	p := &process{cmd: exec.CommandContext(ctx, argv[0], argv[1:]...), dir: dir, err: make(chan error, 1)}
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Cancel = func() error { return p.cmd.Process.Signal(syscall.SIGTERM) }
	p.cmd.WaitDelay = 20 * time.Second
	out, err := p.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	addr := make(chan string, 1)
	go func() {
		var last string
		for sc := bufio.NewScanner(out); sc.Scan(); {
			last = sc.Text()
			if m := addrRE.FindStringSubmatch(last); m != nil && p.addr == "" {
				select {
				case addr <- m[1]:
				default:
				}
			}
		}
		if err := p.cmd.Wait(); err != nil {
			err = fmt.Errorf("%s: %w: %s", argv[0], err, last)
			p.err <- err
		}
		close(p.err)
	}()
	select {
	case p.addr = <-addr:
		return p, nil
	case err := <-p.err:
		return nil, cmpErr(err, errors.New("it ended before it listened"))
	case <-time.After(time.Minute):
		p.stop()
		return nil, errors.New("it does not listen")
	}
}

func cmpErr(err, otherwise error) error {
	if err != nil {
		return err
	}
	return otherwise
}

// stop ends it and returns when it has gone.
func (p *process) stop() {
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.err:
	case <-time.After(20 * time.Second):
		p.cmd.Process.Kill()
		<-p.err
	}
}

// cpu is the time that the process has run, on all cores.
func (p *process) cpu() time.Duration {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", p.cmd.Process.Pid))
	if err != nil {
		panic(err) // a fixed pattern
	}
	var sum int64
	for _, t := range tasks {
		b, err := os.ReadFile(t)
		if err != nil {
			continue // a thread that has ended
		}
		n, _, _ := strings.Cut(string(b), " ")
		ns, _ := strconv.ParseInt(n, 10, 64)
		sum += ns
	}
	return time.Duration(sum)
}

// rss is the process's resident anonymous memory in bytes: what it has for itself, without the pages of its file.
func (p *process) rss() float64 { return p.status("RssAnon") }

func (p *process) status(key string) float64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, key+":"); ok {
			n, _ := strconv.ParseFloat(strings.Fields(v)[0], 64)
			return n * 1024
		}
	}
	return 0
}

func (p *process) fds() int {
	names, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid))
	return len(names)
}

// proposals yields the ids of proposals as they appear in a mailbox.
func proposals(ctx context.Context, dir string) (<-chan string, error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, err
	}
	if err := w.Add(dir); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	ids := make(chan string, 1<<16)
	go func() {
		defer w.Close()
		defer close(ids)
		for {
			select {
			case ev, ok := <-w.Events:
				if !ok {
					return
				}
				if id, ok := strings.CutSuffix(filepath.Base(ev.Name), proposalSuffix); ok && ev.Op&fsnotify.Create != 0 {
					ids <- id
				}
			case <-w.Errors:
			case <-ctx.Done():
				return
			}
		}
	}()
	return ids, nil
}

func approval(id string) []byte {
	return []byte(`{"proposal_id": "` + id + `", "status": "approved", "notes": "", "final_file": null, "outcome": "live"}`)
}

// freePort is a port that was free a moment ago.
func freePort() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer ln.Close()
	_, port, err := net.SplitHostPort(ln.Addr().String())
	return port, err
}

func healthy(client *http.Client, addr string) bool {
	resp, err := client.Get("http://" + addr + "/health")
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}
