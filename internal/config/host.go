// Package config reads what people configure: supervise.yaml on the operator's host, the
// environment and flags of the sidecar. Both are strict: a wrong value or unknown key is an error that
// names it and the mend.
package config

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Host is supervise.yaml. A path in it may start with ~ (the home directory) or be relative to the directory of
// supervise.yaml; {slug} in a target's path, URL or argument stands for the bottle's slug.
type Host struct {
	File     string            // where it was read from; "" when there is none
	Root     string            // the mailboxes, absolute; "" when the file does not say; --root and SUPERVISE_ROOT go before it
	Defaults Bottle            // with {slug} still in it
	Bottles  map[string]Bottle // the defaults with a bottle's own keys over them, key by key; with {slug} still in it
	Notify   Notify            // how people are told that proposals wait
}

// Dir is where the commands run that supervise.yaml names: its directory. "" without one.
func (h Host) Dir() string {
	if h.File == "" {
		return ""
	}
	return filepath.Dir(h.File)
}

// Bottle is where a bottle's targets are. A nil target is not managed.
type Bottle struct {
	Egress     *Egress
	Pipelock   *Pipelock
	Capability *Capability
}

// Egress is the route table and the proxy that reads it.
type Egress struct {
	File         string
	Reload       Reload
	AllowlistURL string // "": the outcome is unverified
	Proxy        string // HTTP proxy through which AllowlistURL is asked; "": directly
}

// Pipelock is the second gate's configuration file.
type Pipelock struct {
	File   string
	Reload Reload
	Check  []string // argv that validates a candidate; {file} is replaced
}

// Capability is the bottle's Dockerfile.
type Capability struct {
	File    string
	Build   []string // argv; empty: not built
	Replace []string // argv; run after the answer is archived, since it ends the waiting agent
}

// Reload says how a proxy is told to read its file again. At most one is set; the zero value is none.
type Reload struct {
	PID     int      // signal: SIGHUP to this process
	PIDFile string   // signal: read each time
	Engine  string   // "docker" or "podman": ENGINE kill -s HUP Name
	Name    string   // the container's name
	Exec    []string // argv, no shell, 10 s
}

// None tells whether the target watches its file, so that nothing is told.
func (r Reload) None() bool {
	return r.PID == 0 && r.PIDFile == "" && r.Engine == "" && len(r.Exec) == 0
}

// Notify says how people are told that proposals wait.
type Notify struct {
	Bell        *bool         // of the terminal that a desk runs in, with OSC 9; nil: in review only
	Exec        []string      // argv; {title}, {text} and {url} are replaced
	Webhook     *Webhook      // nil: none
	RemindAfter time.Duration // 0: never
}

// Webhook is where a message is posted to.
type Webhook struct {
	URL        string
	SecretFile string // holds the key that messages are signed with; "": they are not
}

// maxHost is the largest supervise.yaml, in bytes.
const maxHost = 1 << 20

// LoadHost reads supervise.yaml. An empty path means SUPERVISE_CONFIG, else UserFile, else nothing but defaults; a path that
// is given, here or there, must be there. The current directory is not looked in: a file in it may be another's, and names
// programs. For the same reason a file that somebody else can write is refused. Every error names the file, and the line if
// it is about one; all of a file's mistakes are reported at once.
func LoadHost(path string, env func(string) string) (Host, error) {
	data, path, err := readHost(path, env)
	if err != nil {
		return Host{}, fmt.Errorf("reading the configuration: %w", err)
	}
	if path == "" {
		return Host{}, nil
	}
	return ParseHost(data, path, env("HOME"))
}

// UserFile is where the user's own supervise.yaml would be: under $XDG_CONFIG_HOME, ~/.config by default. "" when neither
// that nor HOME says where.
func UserFile(env func(string) string) string {
	dir := env("XDG_CONFIG_HOME")
	if home := env("HOME"); !filepath.IsAbs(dir) && home != "" { // the specification: a relative one is to be ignored
		dir = filepath.Join(home, ".config")
	}
	if !filepath.IsAbs(dir) {
		return ""
	}
	return filepath.Join(dir, "supervise", "supervise.yaml")
}

func readHost(path string, env func(string) string) (data []byte, _ string, err error) {
	named := true
	if path == "" {
		path = env("SUPERVISE_CONFIG")
		if path != "" && !filepath.IsAbs(path) {
			return nil, "", fmt.Errorf("SUPERVISE_CONFIG %q must be absolute: else it would name another file in every directory", path)
		}
	}
	if path == "" {
		named, path = false, UserFile(env)
	}
	if path == "" {
		return nil, "", nil
	}
	path, err = filepath.Abs(path)
	if err != nil {
		return nil, "", err
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) && !named {
		return nil, "", nil
	}
	if err != nil {
		return nil, "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := (trust{os.Getuid(), readOnly}).check(f, path); err != nil {
		return nil, "", err
	}
	data, err = io.ReadAll(io.LimitReader(f, maxHost+1))
	return data, path, err
}

// isSlug is what package queue checks of a bottle's name.
func isSlug(s string) bool {
	return s != "" && len(s) <= 63 && s[0] != '-' && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

// For returns a bottle's targets, ready to use. A bottle that is not listed has the defaults. A target without a
// file is not managed, and a slug that is none has no targets.
func (h Host) For(slug string) Bottle {
	if !isSlug(slug) {
		return Bottle{}
	}
	b, listed := h.Bottles[slug]
	if !listed {
		b = h.Defaults
	}
	b = b.clone()
	in := func(s *string) { *s = strings.ReplaceAll(*s, "{slug}", slug) }
	all := func(argv []string) {
		for i := range argv {
			in(&argv[i])
		}
	}
	reload := func(r *Reload) {
		in(&r.PIDFile)
		in(&r.Name)
		all(r.Exec)
	}
	if e := b.Egress; e != nil {
		in(&e.File)
		in(&e.AllowlistURL)
		in(&e.Proxy)
		reload(&e.Reload)
		if e.File == "" {
			b.Egress = nil
		}
	}
	if p := b.Pipelock; p != nil {
		in(&p.File)
		all(p.Check)
		reload(&p.Reload)
		if p.File == "" {
			b.Pipelock = nil
		}
	}
	if c := b.Capability; c != nil {
		in(&c.File)
		all(c.Build)
		all(c.Replace)
		if c.File == "" {
			b.Capability = nil
		}
	}
	return b
}

func (b Bottle) clone() Bottle {
	if b.Egress != nil {
		e := *b.Egress
		e.Reload.Exec = slices.Clone(e.Reload.Exec)
		b.Egress = &e
	}
	if b.Pipelock != nil {
		p := *b.Pipelock
		p.Check, p.Reload.Exec = slices.Clone(p.Check), slices.Clone(p.Reload.Exec)
		b.Pipelock = &p
	}
	if b.Capability != nil {
		c := *b.Capability
		c.Build, c.Replace = slices.Clone(c.Build), slices.Clone(c.Replace)
		b.Capability = &c
	}
	return b
}

// near is the known key that was probably meant, or "".
func near(key string, known []string) string {
	best, at := "", 0
	for _, k := range known {
		d := distance(strings.ToLower(key), k)
		if d <= max(1, len(k)/3) && (best == "" || d < at) {
			best, at = k, d
		}
	}
	return best
}

// distance counts the bytes to insert, remove, replace or swap with the next.
func distance(a, b string) int {
	var before, last []int
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		before, last, row = last, row, make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
	}
	return row[len(b)]
}

// byLine joins mistakes in the order of their lines.
func byLine(ms []mistake) error {
	slices.SortStableFunc(ms, func(a, b mistake) int { return cmp.Compare(a.line, b.line) })
	var errs []error
	for _, m := range ms {
		errs = append(errs, m)
	}
	return errors.Join(errs...)
}
