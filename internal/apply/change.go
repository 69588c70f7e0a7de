package apply

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/bot-bottle/supervise/internal/config"
	"github.com/bot-bottle/supervise/internal/payload"
	"github.com/bot-bottle/supervise/internal/routes"
	"github.com/bot-bottle/supervise/queue"
)

// job is one change of one bottle.
type job struct {
	*Local
	bottle string
	cfg    config.Bottle
	host   string // the touched one; "" for a Dockerfile
	tell   *teller
	gate   time.Time // when pipelock was told to read its file again; zero if it was not
	ended  string    // what was left running and has been ended, for people
}

func (l *Local) job(bottle, host string, progress io.Writer) *job {
	return &job{Local: l, bottle: bottle, cfg: l.opts.Targets(bottle), host: host, tell: newTeller(progress)}
}

// Apply writes, reloads and verifies. See [Hand].
func (l *Local) Apply(ctx context.Context, plan *Plan, progress io.Writer) (Result, error) {
	j := l.job(plan.Bottle, plan.Payload.Host, progress)
	defer j.tell.flush()
	if plan.Blocked != nil {
		return Result{}, &Failure{Step: "check", Path: plan.Bottle, Err: plan.Blocked}
	}
	var images, written, standing []Image
	for _, t := range plan.Targets {
		images = append(images, ImageOf(t))
	}
	if f := j.endLeftOf(ctx, images); f != nil {
		return Result{}, f
	}
	for i, t := range plan.Targets {
		im := images[i]
		if !t.Changed() {
			j.tell.say("%s: nothing to change in %s", t.Kind, t.Path)
			standing = append(standing, im)
			continue
		}
		done, f := j.put(ctx, im, t.After)
		if done {
			written = append(written, im)
		}
		if f == nil {
			f = j.activate(ctx, im)
		}
		if f != nil {
			return Result{}, j.fail(ctx, f, written)
		}
	}
	res, f := j.outcome(ctx, written, false)
	if f == nil {
		f = j.standing(ctx, &res, standing)
	}
	if f != nil {
		return Result{}, j.fail(ctx, f, written)
	}
	if len(plan.Unmanaged) > 0 {
		res.Outcome = queue.Unverified
		res.Notes = append(res.Notes, fmt.Sprintf("not managed here, to be done by hand: %s", JoinKinds(plan.Unmanaged)))
	}
	return res, nil
}

// standing looks whether what was in the file already is in force: a person may have written it there, and the proxy not
// have read it, which is why the agent asks.
func (j *job) standing(ctx context.Context, res *Result, images []Image) *Failure {
	e := j.cfg.Egress
	for _, im := range images {
		if im.Kind != KindEgress || e == nil {
			continue
		}
		note := func(outcome queue.Outcome, format string, args ...any) {
			res.Outcome = outcome
			res.Notes = append(res.Notes, fmt.Sprintf(format, args...))
			j.tell.say(format, args...)
		}
		route, err := routes.ParseCanonical(im.EntryAfter)
		if err != nil {
			return &Failure{Step: "verify", Kind: im.Kind, Path: im.Path, Err: err}
		}
		want := expectation{sha: im.AfterSHA256, host: j.host, route: route}
		if e.AllowlistURL != "" {
			if _, err := j.verify(ctx, *e, want, 0); err == nil {
				note(res.Outcome, "egress: it was live at %s already", e.AllowlistURL)
				continue
			}
		}
		if f := j.activate(ctx, im); f != nil {
			return f
		}
		if e.AllowlistURL == "" {
			told := "the proxy was told to read it"
			if e.Reload.None() {
				told = "the proxy is to watch it"
			}
			note(queue.Unverified, "egress: it was in the file already, and %s; not verified, no allowlist_url is configured", told)
			continue
		}
		took, err := j.verify(ctx, *e, want, j.opts.VerifyTimeout)
		if err != nil {
			return &Failure{Step: "verify", Kind: im.Kind, Path: im.Path, Err: err}
		}
		note(queue.Live, "egress: it was in the file already and not in force; verified at %s after %d ms", e.AllowlistURL, took.Milliseconds())
	}
	return nil
}

// put writes one target.
func (j *job) put(ctx context.Context, im Image, after []byte) (bool, *Failure) {
	w := write{kind: im.Kind, path: im.Path, real: im.Real, was: im.BeforeSHA256, data: after}
	step := "write"
	if im.Kind == KindPipelock && j.cfg.Pipelock != nil && len(j.cfg.Pipelock.Check) > 0 {
		w.check = func(candidate string) error {
			argv := slices.Clone(j.cfg.Pipelock.Check)
			for i := range argv {
				argv[i] = strings.ReplaceAll(argv[i], "{file}", candidate)
			}
			j.tell.say("pipelock: checking the new configuration")
			if err := j.short(ctx, argv); err != nil {
				step = "check"
				return err
			}
			return nil
		}
	}
	if err := ctx.Err(); err != nil {
		return false, &Failure{Step: step, Kind: im.Kind, Path: im.Path, Err: context.Cause(ctx)}
	}
	done, err := j.replace(w)
	if err != nil {
		return done, &Failure{Step: step, Kind: im.Kind, Path: im.Path, Err: err}
	}
	j.tell.say("%s: wrote %s", im.Kind, im.Path)
	return done, nil
}

// activate makes what was written take effect: a reload, or a build.
func (j *job) activate(ctx context.Context, im Image) *Failure {
	fail := func(step string, err error) *Failure {
		return &Failure{Step: step, Kind: im.Kind, Path: im.Path, Err: err}
	}
	if im.Kind == KindDockerfile {
		if !j.builds() {
			return nil
		}
		if err := j.step(im.Kind, "build"); err != nil {
			return fail("build", err)
		}
		j.tell.say("dockerfile: building")
		err := j.long(ctx, j.cfg.Capability.Build)
		j.tell.flush()
		if err != nil {
			return fail("build", err)
		}
		return nil
	}
	if err := j.step(im.Kind, "reload"); err != nil {
		return fail("reload", err)
	}
	var how config.Reload
	switch {
	case im.Kind == KindEgress && j.cfg.Egress != nil:
		how = j.cfg.Egress.Reload
	case im.Kind == KindPipelock && j.cfg.Pipelock != nil:
		how = j.cfg.Pipelock.Reload
		j.gate = time.Now()
	default:
		return fail("reload", fmt.Errorf("bottle %s has no %s in supervise.yaml any more", j.bottle, im.Kind))
	}
	if err := j.reload(ctx, how); err != nil {
		return fail("reload", err)
	}
	if !how.None() {
		j.tell.say("%s: reloaded", im.Kind)
	}
	return nil
}

// builds tells whether a Dockerfile of this bottle is built.
func (j *job) builds() bool { return j.cfg.Capability != nil && len(j.cfg.Capability.Build) > 0 }

// outcome verifies what was changed and says what holds now. After an undo the touched entries are those before.
func (j *job) outcome(ctx context.Context, changed []Image, undo bool) (Result, *Failure) {
	res := Result{Outcome: queue.Unchanged}
	for _, im := range changed {
		if undo && !j.managed(im.Kind) {
			res.Outcome = queue.Unverified
			res.Notes = append(res.Notes, fmt.Sprintf("%s: %s is as it was before; not verified, and nobody was told to read it: bottle %s has no %[1]s in supervise.yaml any more", im.Kind, im.Path, j.bottle))
			continue
		}
		switch im.Kind {
		case KindDockerfile:
			c := j.cfg.Capability
			build := j.builds()
			replace := c != nil && len(c.Replace) > 0
			res.Replace = replace && !undo
			switch {
			case undo && !im.Existed:
				res.Outcome = queue.Acknowledged
				res.Notes = append(res.Notes, "removed, since there was none before; what was built of it, if anything, is still there")
			case !build && !replace:
				res.Outcome = queue.Acknowledged
				res.Notes = append(res.Notes, "recorded; nothing is built, since no build is configured")
			case !build:
				res.Outcome = queue.Unverified
				res.Notes = append(res.Notes, "recorded; it takes effect when the bottle is replaced")
			case !res.Replace:
				res.Outcome = queue.Built
				res.Notes = append(res.Notes, "built; it takes effect when the bottle is started from it")
			default:
				res.Outcome = queue.Live
				res.Notes = append(res.Notes, "built; it takes effect when the bottle is replaced")
			}
		case KindPipelock:
			if res.Outcome == queue.Unchanged {
				res.Outcome = queue.Unverified
			}
			res.Notes = append(res.Notes, "pipelock: not verified, it does not show its table")
		case KindEgress:
			if err := j.step(im.Kind, "verify"); err != nil {
				return Result{}, &Failure{Step: "verify", Kind: im.Kind, Path: im.Path, Err: err}
			}
			e := j.cfg.Egress
			if e == nil || e.AllowlistURL == "" {
				res.Outcome = queue.Unverified
				res.Notes = append(res.Notes, "egress: not verified, no allowlist_url is configured")
				break
			}
			text := im.EntryAfter
			if undo {
				text = im.EntryBefore
			}
			route, err := routes.ParseCanonical(text)
			var took time.Duration
			if err == nil {
				took, err = j.verify(ctx, *e, expectation{sha: im.AfterSHA256, host: j.host, route: route, most: undo}, j.opts.VerifyTimeout)
			}
			if err != nil {
				return Result{}, &Failure{Step: "verify", Kind: im.Kind, Path: im.Path, Err: err}
			}
			res.Outcome = queue.Live
			res.Notes = append(res.Notes, fmt.Sprintf("egress: verified at %s after %d ms", e.AllowlistURL, took.Milliseconds()))
		}
	}
	if !j.gate.IsZero() {
		if err := wait(ctx, j.opts.PipelockSettle-time.Since(j.gate)); err != nil {
			return Result{}, &Failure{Step: "verify", Kind: KindPipelock, Err: err}
		}
	}
	for _, n := range res.Notes {
		j.tell.say("%s", n)
	}
	return res, nil
}

func wait(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// fail takes back what was written, whether or not ctx has ended, and completes the failure.
func (j *job) fail(ctx context.Context, f *Failure, written []Image) error {
	if crashed(f.Err) {
		return f.Err
	}
	left, err := j.takeBack(context.WithoutCancel(ctx), written, false)
	if crashed(err) {
		return err
	}
	f.Left = left
	if err != nil {
		f.Err = errors.Join(f.Err, err)
	}
	return f
}

// takeBack restores, last first, the files that are as we wrote them, and tells their proxies. A file that is as
// before already may still have to be read again, and if something may have been built of what we wrote, a Dockerfile is
// built again. What someone else has edited is listed and left alone.
func (j *job) takeBack(ctx context.Context, images []Image, built bool) (left []string, err error) {
	var errs []error
	for _, im := range slices.Backward(images) {
		if !im.changed() {
			continue
		}
		removed := false
		now, err := sum(im.Real)
		if err == nil && now == im.AfterSHA256 {
			w := write{kind: im.Kind, path: im.Path, real: im.Real, was: now, data: im.Before, remove: !im.Existed}
			var done bool
			if done, err = j.replace(w); crashed(err) {
				return left, err
			}
			if done {
				j.tell.say("%s: put %s back", im.Kind, im.Path)
				now, removed = im.BeforeSHA256, w.remove
			}
		}
		if c, ok := errors.AsType[*ChangedError](err); ok {
			now, err = c.Now, nil
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("putting %s back: %w", im.Path, err))
			if now == "" {
				now = "unknown"
			}
		}
		if now != im.BeforeSHA256 {
			left = append(left, fmt.Sprintf("%s (before: sha256 %s; we wrote: %s; now: %s)", im.Path, hashName(im.BeforeSHA256), hashName(im.AfterSHA256), hashName(now)))
			continue
		}
		if im.Kind == KindDockerfile && !im.Existed && removed && built && j.builds() {
			errs = append(errs, fmt.Errorf("after removing %s, which was not there before: what was built of it, if anything, is still there", im.Path))
		}
		if im.Kind == KindDockerfile && (!im.Existed || !built) {
			continue
		}
		if f := j.activate(ctx, im); f != nil {
			if crashed(f.Err) {
				return left, f.Err
			}
			errs = append(errs, fmt.Errorf("after putting %s back: %w", im.Path, f))
		}
	}
	return left, errors.Join(errs...)
}

// Inspect compares files with their images. A target that the change left alone counts as both while the touched
// entry is what it was, whatever else has been edited.
func (l *Local) Inspect(ctx context.Context, images []Image) ([]State, error) {
	states := make([]State, len(images))
	for i, im := range images {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		data, err := readFile(im.Real)
		now := ""
		switch {
		case err == nil:
			now = SHA256(data)
		case ignoreMissing(err) != nil:
			return nil, fmt.Errorf("looking at %s: %w", im.Path, err)
		}
		switch {
		case !im.changed():
			states[i] = Neither
			if now == im.AfterSHA256 || now != "" && im.standsIn(data) {
				states[i] = IsBoth
			}
		case now == im.BeforeSHA256:
			states[i] = IsBefore
		case now == im.AfterSHA256:
			states[i] = IsAfter
		default:
			states[i] = Neither
		}
	}
	return states, nil
}

// standsIn tells whether the touched entry is in the file as it was.
func (im Image) standsIn(data []byte) bool {
	switch im.Kind {
	case KindEgress:
		want, err := routes.ParseCanonical(im.EntryAfter)
		if err != nil || want == nil {
			return false
		}
		table, err := routes.Parse(data)
		return err == nil && routes.Equal(table.Lookup(want.Host), want)
	case KindPipelock:
		entries, err := routes.PipelockParse(data)
		return err == nil && slices.ContainsFunc(entries, func(e string) bool { return strings.EqualFold(e, im.EntryAfter) })
	}
	return false
}

// Confirm reloads and verifies what an interrupted Apply has written. It puts nothing back.
func (l *Local) Confirm(ctx context.Context, bottle string, p payload.Payload, images []Image, progress io.Writer) (Result, error) {
	j := l.job(bottle, p.Host, progress)
	defer j.tell.flush()
	if f := j.endLeftOf(ctx, images); f != nil {
		return Result{}, f
	}
	var changed, standing []Image
	for _, im := range images {
		now, err := sum(im.Real)
		if err == nil && !im.changed() {
			im.AfterSHA256 = now // Inspect knows that the entry is there
			standing = append(standing, im)
			continue
		}
		if err == nil && now != im.AfterSHA256 {
			err = &ChangedError{im.Path, im.AfterSHA256, now}
		}
		if err != nil {
			return Result{}, &Failure{Step: "verify", Kind: im.Kind, Path: im.Path, Err: err}
		}
		changed = append(changed, im)
	}
	for _, im := range changed {
		if f := j.activate(ctx, im); f != nil {
			return Result{}, uncrash(f)
		}
	}
	res, f := j.outcome(ctx, changed, false)
	if f == nil {
		f = j.standing(ctx, &res, standing)
	}
	if f != nil {
		return Result{}, uncrash(f)
	}
	if len(images) == 0 {
		res.Outcome = queue.Unverified
	}
	return res, nil
}

func uncrash(f *Failure) error {
	if crashed(f.Err) {
		return f.Err
	}
	return f
}

// PutBack restores the images that are in state after, reloads them and those that are as before, and leaves the others alone.
func (l *Local) PutBack(ctx context.Context, bottle string, images []Image, progress io.Writer) error {
	j := l.job(bottle, "", progress)
	defer j.tell.flush()
	running := j.endLeftOf(ctx, images) // what cannot be ended keeps nothing from being put back
	left, err := j.takeBack(ctx, images, true)
	if crashed(err) {
		return err
	}
	if running != nil {
		err = errors.Join(running, err)
	}
	if len(left) == 0 && err == nil {
		return nil
	}
	f := &Failure{Step: "put back", Path: bottle, Left: left, Err: err}
	if err == nil {
		f.Err = fmt.Errorf("%d of %d files %w, and left as they are", len(left), len(images), ErrChanged)
	}
	return f
}

// Replace runs the bottle's capability replace command.
func (l *Local) Replace(ctx context.Context, bottle string, progress io.Writer) error {
	j := l.job(bottle, "", progress)
	defer j.tell.flush()
	c := j.cfg.Capability
	if c == nil || len(c.Replace) == 0 {
		return fmt.Errorf("bottle %s has no capability.replace in supervise.yaml any more", bottle)
	}
	j.tell.say("dockerfile: replacing the bottle")
	if err := j.endLeft(ctx); err != nil {
		return fmt.Errorf("replacing bottle %s: %w", bottle, err)
	}
	ctx, cancel := within(ctx, j.opts.ReplaceTimeout)
	defer cancel()
	if err := j.long(ctx, c.Replace); err != nil {
		return fmt.Errorf("replacing bottle %s: %w", bottle, err)
	}
	return nil
}

// JoinKinds lists kinds of target for people.
func JoinKinds(kinds []Kind) string {
	var s []string
	for _, k := range kinds {
		s = append(s, string(k))
	}
	return strings.Join(s, ", ")
}
