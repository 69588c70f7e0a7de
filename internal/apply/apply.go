// Package apply makes the changes an approval stands for, on the host where the targets are: the egress route
// table, the pipelock allowlist, the bottle's Dockerfile. A [Hand] previews, applies, confirms, puts back and undoes;
// who decides, and why, is the desk's affair (package operator), which may one day run elsewhere.
//
// A file is replaced only while its hash is the one that was read, by rename in its own directory with its
// old mode, owner and access list. A file is put back only while its hash is the one we wrote: a person's edit is
// never overwritten. Nothing here is undone by an error half-way: either the error says what was put back, or
// it says exactly what could not be.
//
// A process may die between any two steps. What it leaves is told by [Hand.Inspect] from the [Image] of each target,
// and finished by [Hand.Confirm] or taken back by [Hand.PutBack]; a temporary file it left is replaced by the next write.
package apply

import (
	"context"
	"io"

	"github.com/bot-bottle/supervise/internal/payload"
	"github.com/bot-bottle/supervise/queue"
)

// Kind names a target.
type Kind string

const (
	KindPipelock   Kind = "pipelock"
	KindEgress     Kind = "egress"
	KindDockerfile Kind = "dockerfile"
)

// Plan is what applying one payload to one bottle would do, read from the files as they are now.
type Plan struct {
	Bottle    string
	Payload   payload.Payload
	Targets   []Target // in the order of application: pipelock, then egress; or the Dockerfile
	Unmanaged []Kind   // targets the payload needs that the configuration leaves out; a bottle without pipelock needs none for a route
	Blocked   error    // why this cannot be applied (an unreadable or refused file, with what to do by hand); the rest of the plan is as far as it got
}

// Target is one file of a plan.
type Target struct {
	Kind        Kind
	Path        string // as configured
	Real        string // symlinks resolved: the file's identity, and the order of locks
	Before      []byte // the whole file; nil if missing (only a Dockerfile may be)
	After       []byte // equal to Before: nothing to write
	EntryBefore string // the touched entry as stable text; "" if there is none; the whole file for a Dockerfile
	EntryAfter  string
	Exists      bool // false: the file is missing and would be created

	// What the findings want to know.
	RouteWidened bool     // a host that was limited to paths becomes the whole host
	AuthIgnored  bool     // auth was proposed for a host that has an entry already
	Covered      bool     // nothing to change
	NotStrict    bool     // pipelock is not in strict mode
	Table        []string // egress, pipelock: the hosts that are there now, for look-alike and public-suffix findings
}

// Changed tells whether applying writes this target.
func (t Target) Changed() bool {
	return !t.Exists && t.After != nil || string(t.Before) != string(t.After)
}

// Image is a target as a record keeps it: enough to recover, put back or undo.
type Image struct {
	Kind         Kind
	Path, Real   string
	Existed      bool
	Before       []byte
	BeforeSHA256 string // hex; "" if it did not exist
	AfterSHA256  string
	EntryBefore  string
	EntryAfter   string
}

// State is how a file compares with an image.
type State string

const (
	IsBefore State = "before"
	IsAfter  State = "after"
	IsBoth   State = "both" // before and after are the same
	Neither  State = "neither"
)

// Result is a change that holds.
type Result struct {
	Outcome queue.Outcome
	Notes   []string // for the operator: "verified at URL after 120 ms", "not verified: no allowlist_url"
	Replace bool     // a Dockerfile was changed, and a command is configured that replaces the bottle: Hand.Replace is to be called
}

// Failure is a change that did not hold. What was written has been put back unless Left says otherwise. That of an undo is the
// other way round: what was restored stays so.
type Failure struct {
	Step string // "check", "write", "reload", "verify", "build", "put back"
	Kind Kind
	Path string
	Err  error    // cause, with the mend
	Left []string // files that could not be put back, each with the hashes; empty: everything is as before

	Undo     bool     // it was an undo; if Restored is empty, it has changed nothing
	Restored []string // files that are as they were before the change, which was not seen in force, or is not
}

func (f *Failure) Error() string { return f.Step + " " + f.Path + ": " + f.Err.Error() }
func (f *Failure) Unwrap() error { return f.Err }

// Hand is what the desk asks. Every method but Preview and Glance is called with the locks of Lock held.
type Hand interface {
	// Preview reads and plans; it changes nothing.
	Preview(ctx context.Context, bottle string, p payload.Payload) (*Plan, error)
	// Glance is Preview of several payloads for one bottle, each file read once, without the edits: After is nil, unless it is a
	// Dockerfile's, and what only the edit would have shown to be blocked is not. The plans share what they were made from.
	Glance(ctx context.Context, bottle string, ps ...payload.Payload) ([]*Plan, error)
	// Lock takes the locks of the given real paths, sorted, for all processes of this host. It waits until ctx ends.
	Lock(ctx context.Context, real []string) (unlock func(), err error)
	// Apply writes, reloads and verifies, pipelock first. On failure it puts back what it wrote, reloads, and
	// returns a *Failure. progress gets build output and one line a step; it may be nil.
	Apply(ctx context.Context, plan *Plan, progress io.Writer) (Result, error)
	// Inspect compares files with their images.
	Inspect(ctx context.Context, images []Image) ([]State, error)
	// Confirm reloads (or builds) and verifies what an interrupted Apply has written; every changed target must be in state
	// after. It puts nothing back.
	Confirm(ctx context.Context, bottle string, p payload.Payload, images []Image, progress io.Writer) (Result, error)
	// PutBack restores the images that are in state after and leaves alone what someone else has edited; a *Failure lists
	// that. What is as before, now or already, is reloaded (or built again): a process that died may have restored a file and not
	// yet told its proxy. Calling it again does no harm.
	PutBack(ctx context.Context, bottle string, images []Image, progress io.Writer) error
	// Undo restores the touched entry where it still equals EntryAfter (the whole file where its hash is still
	// AfterSHA256, else by textual edit), reloads and verifies that it is gone. Nothing is written unless every target
	// can be restored. It takes authority away, so it fails closed: what is restored stays so when a later step
	// fails (Restored says which files), and calling it again goes on from there. A target that the configuration no longer
	// has is refused, or with unmanaged its file is restored and no more.
	Undo(ctx context.Context, bottle string, p payload.Payload, images []Image, unmanaged bool, progress io.Writer) (Result, error)
	// Replace runs the bottle's capability replace command; it fails if there is none.
	Replace(ctx context.Context, bottle string, progress io.Writer) error
	// EndLeft ends what a process that died has left building or replacing for the bottle, and says so; "" when there was nothing.
	EndLeft(ctx context.Context, bottle string) (ended string, err error)
}
