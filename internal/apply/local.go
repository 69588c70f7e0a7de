package apply

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/supervise/internal/config"
	"github.com/bot-bottle/supervise/internal/payload"
	"github.com/bot-bottle/supervise/internal/routes"
)

// Options configure a Local hand.
type Options struct {
	// Targets returns a bottle's targets, ready to use: see config.Host.For.
	Targets func(bottle string) config.Bottle
	// LockDir holds one lock file a target, named by the hash of its real path, and a note of the command that runs for a bottle;
	// made if missing. All processes that change the same files must name the same directory.
	LockDir string
	// Dir is where commands run, the directory of supervise.yaml; if empty, the current one: an agent may have written what is
	// there, and docker compose, for one, reads it.
	Dir string

	VerifyTimeout time.Duration // how long a change may take to be seen live; if zero, 5 s
	VerifyEvery   time.Duration // how often to look; if zero, 100 ms
	// PipelockSettle is how long pipelock, which does not show its table, is given to read its file again before
	// the agent is told; if zero, 250 ms, if negative, none.
	PipelockSettle time.Duration
	ReloadTimeout  time.Duration // of a reload or check command; if zero, 10 s
	// ReplaceTimeout is of the command that replaces a bottle, which all others for that bottle wait for; if zero, 10 min. A build has
	// none: a good one may take long, and it ends with the desk that runs it.
	ReplaceTimeout time.Duration

	// Exec runs a command to its end and fails unless it exits 0; if nil, os/exec without a shell, with this process's environment
	// and no input. When ctx ends it must kill the command and return. It may call started, unless that is nil, with the process that
	// leads the command's process group.
	Exec func(ctx context.Context, argv []string, stdout, stderr io.Writer, started func(pid int)) error
	// Step, if set, is called before each durable step with its name, such as "egress.rename"; an error ends the operation there
	// and is returned as it is, with nothing put back, as a crash would. For tests.
	Step func(name string) error

	Logger *slog.Logger // if nil, nothing is logged
}

// Local is the Hand on this host. It is safe for concurrent use.
type Local struct {
	opts Options
	log  *slog.Logger
}

var _ Hand = (*Local)(nil)

// New checks the options and makes the lock directory.
func New(o Options) (*Local, error) {
	if o.Targets == nil {
		panic("apply.New: no Targets")
	}
	if o.LockDir == "" {
		return nil, errors.New("apply: no lock directory")
	}
	if err := os.MkdirAll(o.LockDir, 0o700); err != nil {
		return nil, fmt.Errorf("making the lock directory: %w", err)
	}
	o.VerifyTimeout = cmp.Or(o.VerifyTimeout, 5*time.Second)
	o.VerifyEvery = cmp.Or(o.VerifyEvery, 100*time.Millisecond)
	o.PipelockSettle = cmp.Or(o.PipelockSettle, 250*time.Millisecond)
	o.ReloadTimeout = cmp.Or(o.ReloadTimeout, 10*time.Second)
	o.ReplaceTimeout = cmp.Or(o.ReplaceTimeout, 10*time.Minute)
	if o.Exec == nil {
		o.Exec = func(ctx context.Context, argv []string, stdout, stderr io.Writer, started func(pid int)) error {
			return execute(ctx, o.Dir, argv, stdout, stderr, started)
		}
	}
	return &Local{opts: o, log: cmp.Or(o.Logger, slog.New(slog.DiscardHandler))}, nil
}

// SHA256 is the hex hash of data.
func SHA256(data []byte) string {
	h := sha256.Sum256(data)
	return hex.EncodeToString(h[:])
}

// ImageOf keeps what is needed of a target that is about to be applied.
func ImageOf(t Target) Image {
	im := Image{Kind: t.Kind, Path: t.Path, Real: t.Real, Existed: t.Exists, EntryBefore: t.EntryBefore, EntryAfter: t.EntryAfter, AfterSHA256: SHA256(t.After)}
	if t.Exists {
		im.Before, im.BeforeSHA256 = t.Before, SHA256(t.Before)
	}
	return im
}

func (im Image) changed() bool { return im.BeforeSHA256 != im.AfterSHA256 }

// Lock takes the locks of the given real paths, sorted, for all processes of this host. It waits until ctx ends.
func (l *Local) Lock(ctx context.Context, real []string) (func(), error) {
	var held []*os.File
	unlock := func() {
		for _, f := range slices.Backward(held) {
			f.Close() // which releases the lock
		}
	}
	for _, path := range slices.Compact(slices.Sorted(slices.Values(real))) {
		f, err := lockFile(ctx, filepath.Join(l.opts.LockDir, SHA256([]byte(path))[:32]+".lock"))
		if err != nil {
			unlock()
			return nil, fmt.Errorf("locking %s: %w", path, err)
		}
		held = append(held, f)
	}
	return unlock, nil
}

// lockFile waits by looking again, so that nothing is left behind when ctx ends. The file stays: removing it
// would let two processes hold locks on two files of one name.
func lockFile(ctx context.Context, name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, err
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			f.Close()
			return nil, fmt.Errorf("another operator holds it: %w", context.Cause(ctx))
		}
	}
}

// Preview reads and plans; it changes nothing.
func (l *Local) Preview(ctx context.Context, bottle string, p payload.Payload) (*Plan, error) {
	return l.plan(ctx, bottle, p, reading{}, true)
}

// Glance is Preview of several, without the edits.
func (l *Local) Glance(ctx context.Context, bottle string, ps ...payload.Payload) ([]*Plan, error) {
	plans, read := make([]*Plan, len(ps)), reading{}
	for i, p := range ps {
		var err error
		if plans[i], err = l.plan(ctx, bottle, p, read, false); err != nil {
			return nil, err
		}
	}
	return plans, nil
}

func (l *Local) plan(ctx context.Context, bottle string, p payload.Payload, read reading, edit bool) (*Plan, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	plan := &Plan{Bottle: bottle, Payload: p}
	cfg := l.opts.Targets(bottle)
	var blocked []error
	add := func(kind Kind, path string, fill func(*Target, *table) error) {
		f := read.file(kind, path)
		t, err := f.target, f.err
		if err == nil {
			err = fill(&t, &f.table)
		}
		if err != nil {
			blocked = append(blocked, fmt.Errorf("%s file %s: %w", kind, path, err))
			t.After = t.Before
		}
		plan.Targets = append(plan.Targets, t)
	}
	switch p.Tool {
	case payload.Egress:
		if cfg.Pipelock != nil {
			add(KindPipelock, cfg.Pipelock.File, func(t *Target, now *table) error { return t.allow(now, p.Host, edit) })
		}
		if cfg.Egress == nil {
			plan.Unmanaged = append(plan.Unmanaged, KindEgress)
		} else {
			add(KindEgress, cfg.Egress.File, func(t *Target, now *table) error { return t.route(now, p, edit) })
		}
	case payload.Pipelock:
		if cfg.Pipelock == nil {
			plan.Unmanaged = append(plan.Unmanaged, KindPipelock)
		} else {
			add(KindPipelock, cfg.Pipelock.File, func(t *Target, now *table) error { return t.allow(now, p.Host, edit) })
		}
	case payload.Capability:
		if cfg.Capability == nil {
			plan.Unmanaged = append(plan.Unmanaged, KindDockerfile)
		} else {
			add(KindDockerfile, cfg.Capability.File, func(t *Target, _ *table) error {
				t.After = []byte(p.Dockerfile)
				t.EntryBefore, t.EntryAfter = string(t.Before), p.Dockerfile
				t.Covered = !t.Changed()
				return nil
			})
		}
	default:
		return nil, fmt.Errorf("tool %.40q proposes nothing that can be applied", p.Tool)
	}
	if ts := plan.Targets; len(ts) == 2 && ts[0].Real == ts[1].Real {
		blocked = append(blocked, fmt.Errorf("pipelock and egress of bottle %s have the same file %s: they must be two", bottle, ts[0].Real))
	}
	plan.Blocked = errors.Join(blocked...)
	return plan, nil
}

// reading is the files that one look has read, by kind and path.
type reading map[[2]string]*file

// file is a target as it is now.
type file struct {
	target Target
	err    error
	table  table
}

// table is what a file of routes or of hosts holds.
type table struct {
	routes routes.Table
	hosts  []string
	strict bool
	err    error
}

func (r reading) file(kind Kind, path string) *file {
	key := [2]string{string(kind), path}
	if f := r[key]; f != nil {
		return f
	}
	f := &file{target: Target{Kind: kind, Path: path}}
	r[key] = f
	t, now := &f.target, &f.table
	if f.err = t.read(); f.err != nil {
		return f
	}
	switch kind {
	case KindPipelock:
		now.strict = routes.PipelockStrict(t.Before)
		now.hosts, now.err = routes.PipelockParse(t.Before)
	case KindEgress:
		if now.routes, now.err = routes.Parse(t.Before); now.err != nil {
			return f
		}
		for _, r := range now.routes.Routes {
			now.hosts = append(now.hosts, routes.Key(r.Host))
		}
	}
	return f
}

// read fills in what the file is now.
func (t *Target) read() error {
	real, err := resolve(t.Path)
	t.Real = cmp.Or(real, t.Path)
	if err != nil {
		return err
	}
	t.Before, err = readFile(real)
	if errors.Is(err, fs.ErrNotExist) && t.Kind == KindDockerfile {
		return nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New("there is no such file: create it, or correct supervise.yaml")
	}
	if err != nil {
		return err
	}
	t.Exists = true
	return nil
}

// route plans the merge of the payload's route.
func (t *Target) route(now *table, p payload.Payload, edit bool) error {
	if now.err != nil {
		_, err := routes.Set(t.Before, p.Host, new(routeOf(p))) // the same error, with the lines to add by hand
		return err
	}
	t.Table = now.hosts
	_, change := routes.Merge(now.routes, routeOf(p))
	t.EntryBefore, t.EntryAfter = routes.Canonical(change.Before), routes.Canonical(change.After)
	t.RouteWidened, t.AuthIgnored, t.Covered = change.Widened, change.AuthIgnored, change.Covered
	if !edit {
		return nil
	}
	var err error
	t.After, err = routes.Set(t.Before, p.Host, change.After)
	return err
}

func routeOf(p payload.Payload) routes.Route {
	r := routes.Route{Host: p.Host, PathAllowlist: slices.Clone(p.Route.PathAllowlist)}
	if a := p.Route.Auth; a != nil {
		r.Auth = &routes.Auth{Scheme: a.Scheme, TokenRef: a.TokenRef}
	}
	return r
}

// allow plans a host for pipelock's allowlist.
func (t *Target) allow(now *table, host string, edit bool) error {
	t.NotStrict = !now.strict
	if now.err == nil {
		t.Table = now.hosts
		t.EntryBefore = routes.PipelockCover(now.hosts, host)
		t.EntryAfter = cmp.Or(t.EntryBefore, host)
		t.Covered = t.EntryBefore != ""
		if !edit {
			return nil
		}
	}
	var err error
	t.After, err = routes.PipelockSet(t.Before, host, true)
	return err
}
