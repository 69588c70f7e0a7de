package apply

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/bot-bottle/supervise/internal/payload"
	"github.com/bot-bottle/supervise/internal/routes"
)

// Undo takes authority away, so it fails closed: what it has restored stays restored when a later step fails, and
// Restored names the files that are, without having been seen live. It can be called again until all of it holds.
// Nothing is written unless every target can be restored.
func (l *Local) Undo(ctx context.Context, bottle string, p payload.Payload, images []Image, unmanaged bool, progress io.Writer) (Result, error) {
	j := l.job(bottle, p.Host, progress)
	defer j.tell.flush()
	if f := j.endLeftOf(ctx, images); f != nil { // also if the undo is refused below: its caller has given up replacing the bottle
		f.Undo = true
		return Result{}, f
	}
	var writes []*write // nil where the file is as it should be already
	var changed []Image // with AfterSHA256 of the file as it will be
	for _, im := range slices.Backward(images) {
		if !im.changed() {
			continue
		}
		if !unmanaged && !j.managed(im.Kind) {
			return Result{}, &Failure{Undo: true, Step: "check", Kind: im.Kind, Path: im.Path,
				Err: fmt.Errorf("bottle %s has no %s in supervise.yaml any more: name it there again, or restore the file alone with 'supervise undo --unmanaged', and have it read by hand", bottle, im.Kind)}
		}
		if now, moved := j.moved(im); moved {
			return Result{}, &Failure{Undo: true, Step: "check", Kind: im.Kind, Path: im.Path, Left: []string{now},
				Err: fmt.Errorf("what was changed is %s, and that is no longer the %s file of bottle %s", im.Real, im.Kind, bottle)}
		}
		w, sha, err := restore(im, p.Host)
		if err != nil {
			f := &Failure{Undo: true, Step: "check", Kind: im.Kind, Path: im.Path, Err: err}
			if now, err := sum(im.Real); err == nil {
				f.Left = []string{fmt.Sprintf("%s (before: sha256 %s; we wrote: %s; now: %s)", im.Path, hashName(im.BeforeSHA256), hashName(im.AfterSHA256), hashName(now))}
			}
			return Result{}, f
		}
		im.AfterSHA256 = sha
		writes, changed = append(writes, w), append(changed, im)
	}
	var restored []string
	fail := func(f *Failure) (Result, error) {
		if crashed(f.Err) {
			return Result{}, f.Err
		}
		f.Undo, f.Restored = true, restored
		return Result{}, f
	}
	// A step that fails keeps no other target from being restored: a proxy may be gone for good.
	var first *Failure
	failed := func(f *Failure) (crash bool) {
		if first == nil || crashed(f.Err) {
			first = f
		}
		return crashed(f.Err)
	}
	for i, im := range changed {
		w := writes[i]
		if w == nil {
			restored = append(restored, im.Path) // by an earlier undo, or by hand
			continue
		}
		done, err := j.replace(*w)
		if done {
			restored = append(restored, im.Path)
			j.tell.say("%s: restored %s", im.Kind, im.Path)
		}
		if err != nil && failed(&Failure{Step: "write", Kind: im.Kind, Path: im.Path, Err: err}) {
			return fail(first)
		}
	}
	for _, im := range changed {
		if !slices.Contains(restored, im.Path) || !j.managed(im.Kind) || im.Kind == KindDockerfile && !im.Existed {
			continue // there is nothing to reload, or to build
		}
		if f := j.activate(ctx, im); f != nil && failed(f) {
			return fail(first)
		}
	}
	if first != nil {
		return fail(first)
	}
	res, f := j.outcome(ctx, changed, true)
	if f != nil {
		return fail(f)
	}
	if j.ended != "" {
		res.Notes = append(res.Notes, j.ended)
	}
	return res, nil
}

// managed tells whether the configuration has such a target, as it had when the change was made.
func (j *job) managed(kind Kind) bool {
	switch kind {
	case KindEgress:
		return j.cfg.Egress != nil
	case KindPipelock:
		return j.cfg.Pipelock != nil
	}
	return j.cfg.Capability != nil
}

// moved tells whether a target's file is another one now, and which: what is restored in the old one would change nothing.
func (j *job) moved(im Image) (now string, _ bool) {
	switch {
	case im.Kind == KindEgress && j.cfg.Egress != nil:
		now = j.cfg.Egress.File
	case im.Kind == KindPipelock && j.cfg.Pipelock != nil:
		now = j.cfg.Pipelock.File
	case im.Kind == KindDockerfile && j.cfg.Capability != nil:
		now = j.cfg.Capability.File
	default:
		return "", false // nobody names another
	}
	if real, err := resolve(now); err == nil && real == im.Real {
		return "", false
	}
	a, aerr := os.Stat(now)
	b, berr := os.Stat(im.Real)
	return now, aerr != nil || berr != nil || !os.SameFile(a, b)
}

// restore plans the undo of one target: a write, or nil when the file is as it should be, and the hash the file will
// have.
func restore(im Image, host string) (*write, string, error) {
	data, err := readFile(im.Real)
	if ignoreMissing(err) != nil {
		return nil, "", err
	}
	now := ""
	if err == nil {
		now = SHA256(data)
	}
	w := &write{kind: im.Kind, path: im.Path, real: im.Real, was: now}
	switch now {
	case im.BeforeSHA256:
		return nil, now, nil
	case im.AfterSHA256:
		w.data, w.remove = im.Before, !im.Existed
		return w, im.BeforeSHA256, nil
	case "":
		return nil, "", &ChangedError{im.Path, im.AfterSHA256, now}
	}
	switch im.Kind {
	case KindEgress:
		table, err := routes.Parse(data)
		if err != nil {
			return nil, "", err
		}
		entry := routes.Canonical(table.Lookup(host))
		if entry == im.EntryBefore {
			return nil, now, nil
		}
		if entry != im.EntryAfter {
			return nil, "", fmt.Errorf("the entry of host %s is no longer as it was written: edit it by hand", host)
		}
		before, err := routes.ParseCanonical(im.EntryBefore)
		if err != nil {
			return nil, "", err
		}
		if w.data, err = routes.Set(data, host, before); err != nil {
			return nil, "", err
		}
	case KindPipelock:
		entries, err := routes.PipelockParse(data)
		if err != nil {
			return nil, "", err
		}
		if !slices.ContainsFunc(entries, func(e string) bool { return strings.EqualFold(e, host) }) {
			return nil, now, nil
		}
		if w.data, err = routes.PipelockSet(data, host, false); err != nil {
			return nil, "", err
		}
	default:
		return nil, "", &ChangedError{im.Path, im.AfterSHA256, now}
	}
	return w, SHA256(w.data), nil
}
