// Package operator is the desk: the one thing behind the commands, the terminal and the web page.
//
// It shows what is open in every bottle (Snapshot), what one proposal would change (Show), and
// decides (Approve, Reject, Dismiss, Undo). A decision names the digest of the preview that was looked at;
// it is computed again under the locks, and when it differs nothing is done and the new preview comes back in a
// [StaleError]. You approve what you saw.
//
// What the desk knows beyond the mailboxes is in <root>/.desk, mode 0700, shared by all operators of the root
// and mounted nowhere:
//
//	<slug>/<id>.json            one record a proposal: who decided what, and how far it got
//	<slug>/<id>.<n>.<kind>      a target as it was before attempt n, for putting back and undo
//	<slug>/foreign.json         how many answers of other programs were recorded today
//	<slug>/seen.json            when somebody was last seen waiting; a hint
//	<slug>/.lock                flock of whoever decides for this bottle; says who that is, and at what
//	keys/<slug>/<hash>          the last decision on the same question, for retries
//	unfinished/<slug>.<id>      there while a record is not final, so that recovery costs nothing when there is nothing;
//	                            flocked by whoever waits to replace the bottle
//	locks/                      the hand's, if it is told to keep them here
//	.tmp/                       files in writing; what is over an hour old is removed when a desk is opened
//	ledger.jsonl, ledger.lock   every decision and its effect, each line chained to the one before by hash
//
// States of a record: claimed → applied → answered (→ undone); failed is open again with the error beside it;
// stuck is open too, but a target is neither as it was nor as we wrote it; foreign was answered by another program.
package operator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"time"

	"github.com/bot-bottle/supervise/internal/apply"
	"github.com/bot-bottle/supervise/internal/payload"
	"github.com/bot-bottle/supervise/internal/safetext"
	"github.com/bot-bottle/supervise/queue"
)

// Options configure a Desk.
type Options struct {
	Root   string       // the mailboxes' root; .desk is in it
	Dir    string       // instead of .desk, for a root that has none and is only looked at
	Inbox  queue.Inbox  // the mailboxes; the desk does not close it
	Hand   apply.Hand   // what changes the targets
	By     string       // who decides; if empty, USER@HOST
	Via    string       // from where: "cli", "tui", "web"
	Logger *slog.Logger // if nil, nothing is logged
	// Abandoned is how long nobody has been connected before a proposal folds away; if zero, 72 h.
	Abandoned time.Duration
	// Waiting, if set, is told in one line, safe to print, what an operation waits for that has waited for a second; if nil, whoever
	// gave a writer for progress sees it there.
	Waiting func(text string)
	// Step, if set, is called before each durable step with its name; an error ends the operation there,
	// as a crash would. For tests.
	Step func(name string) error
}

// Desk is safe for concurrent use, and for several processes on one root.
type Desk struct {
	opts   Options
	log    *slog.Logger
	store  *store
	ledger *Ledger
	cache  cache
}

// Ref names one proposal.
type Ref struct {
	Bottle string   `json:"bottle"`
	ID     queue.ID `json:"id"`
}

func (r Ref) String() string { return string(r.ID) }

// State is where a proposal stands, seen from the desk.
type State string

const (
	Open     State = "open"
	Failed   State = "failed"   // open; the last attempt failed: Item.Error
	Stuck    State = "stuck"    // open; an interrupted change needs a person's eyes: Item.Error
	Bad      State = "bad"      // does not parse or check: can only be rejected
	Deciding State = "deciding" // claimed, and not finished yet
	Decided  State = "decided"
)

// Connected tells whether somebody waits for the answer.
type Connected string

const (
	Waiting Connected = "waiting" // at least one call
	Away    Connected = "away"    // the sidecar runs, nobody waits
	Unknown Connected = "unknown" // no sidecar was heard of for 90 s
)

// Item is one line of the inbox.
type Item struct {
	Ref
	Tool      string             `json:"tool"`
	Summary   safetext.Untrusted `json:"summary"`
	Host      safetext.Untrusted `json:"host,omitempty"` // for grouping; empty for a Dockerfile
	ArrivedAt time.Time          `json:"arrived_at"`
	Age       time.Duration      `json:"age_ns"`
	Since     time.Time          `json:"-"` // when it was first seen, to a tenth of a second: ids tell the order within that
	Connected Connected          `json:"connected"`
	Findings  []Finding          `json:"findings"`
	Danger    bool               `json:"danger"` // one of the findings is
	State     State              `json:"state"`
	Error     string             `json:"error,omitempty"`     // why it failed, is stuck, or is bad; escaped
	Blocked   string             `json:"blocked,omitempty"`   // why it cannot be approved as things are, and the mend; escaped. A preview sees more than a list
	Unmanaged []apply.Kind       `json:"unmanaged,omitempty"` // approving needs Decision.Unmanaged
	Retry     *Earlier           `json:"retry,omitempty"`     // what was decided before on the same question
	Abandoned bool               `json:"abandoned,omitempty"`
}

// StatusUndone stands for a decision that was taken back, where who did that, and when, is said beside it.
const StatusUndone queue.Status = "undone"

// Earlier is a decision made before on the same question.
type Earlier struct {
	ID     queue.ID           `json:"id"`
	Status queue.Status       `json:"status"` // or StatusUndone
	Notes  safetext.Untrusted `json:"notes,omitempty"`
	At     time.Time          `json:"at"`
	By     string             `json:"by"`
}

// Trail tells what the desks of a root have written last. While it is the same, what Show and History say is too, if Saved was a
// while ago already: two records saved within one tick of the file system's clock have one time.
type Trail struct {
	Seq     int64     // of the ledger's newest line
	Records string    // stands for when those of each bottle were saved last
	Saved   time.Time // the last of these times that is not in the future
}

// Problem is something wrong with a mailbox or a file in it, reported and skipped.
type Problem struct {
	Bottle string             `json:"bottle"`
	Name   safetext.Untrusted `json:"name,omitempty"`
	Text   safetext.Untrusted `json:"text"`
	More   int                `json:"more,omitempty"` // it stands for so many that are not named
	Aside  bool               `json:"-"`              // nothing that is open hides behind it
}

// Count is how many problems it stands for.
func (p Problem) Count() int { return max(1, p.More) }

// Snapshot is all bottles at once. Items are stuck first, then in the order first seen; abandoned ones last.
type Snapshot struct {
	Items    []Item    `json:"items"`
	Problems []Problem `json:"problems"`
	Bottles  []string  `json:"bottles"`
}

// TargetView is what would happen to one file.
type TargetView struct {
	Kind    apply.Kind         `json:"kind"`
	Path    string             `json:"path"`
	Changed bool               `json:"changed"`
	Unknown bool               `json:"unknown,omitempty"` // what would change cannot be worked out; Item.Blocked says why
	Before  safetext.Untrusted `json:"before"`            // the touched entry
	After   safetext.Untrusted `json:"after"`
	Diff    safetext.Untrusted `json:"diff"` // unified, of the whole file; empty if nothing changes
}

// Preview is everything an operator decides on.
type Preview struct {
	Item
	Justification safetext.Untrusted `json:"justification"`
	Proposed      safetext.Untrusted `json:"proposed_file"`         // as the agent sent it
	Edited        safetext.Untrusted `json:"edited_file,omitempty"` // as the operator would apply it instead
	Targets       []TargetView       `json:"targets"`
	Digest        string             `json:"digest"`             // of all of this; what Approve wants
	Decision      *Record            `json:"decision,omitempty"` // when it is decided already
}

// Dangers lists the codes that Approve wants accepted.
func (p *Preview) Dangers() []string {
	var codes []string
	for _, f := range p.Findings {
		if f.Level == Danger {
			codes = append(codes, f.Code)
		}
	}
	return codes
}

// Decision is an approval.
type Decision struct {
	Digest    string   // of the preview that was looked at
	Accept    []string // the dangers that were accepted, by code
	Notes     string   // for the agent, as typed
	File      *string  // the edited payload; nil: as proposed
	Unmanaged bool     // approve although a target is not managed: the operator has done it by hand
	Progress  io.Writer
}

// Result is what a decision did.
type Result struct {
	Ref     Ref           `json:"ref"`
	Status  queue.Status  `json:"status"`
	Outcome queue.Outcome `json:"outcome,omitempty"`
	Notes   []string      `json:"notes,omitempty"` // for the operator; escaped

	Undoable bool `json:"-"` // it changed something that Undo takes back
}

var (
	// ErrNotFound: no proposal has that id (or prefix).
	ErrNotFound = errors.New("no such proposal")
	// ErrBlocked: the preview says why it cannot be approved.
	ErrBlocked = errors.New("cannot be applied")
	// ErrNotUndoable: there is nothing of ours to take back.
	ErrNotUndoable = errors.New("cannot be undone")
)

// AmbiguousError is a prefix of several ids.
type AmbiguousError struct {
	Prefix string
	Refs   []Ref
}

func (e *AmbiguousError) Error() string {
	return fmt.Sprintf("%q is the start of %d ids", e.Prefix, len(e.Refs))
}

// StaleError is a decision on something that has changed since. Preview is what it is now.
type StaleError struct {
	Ref     Ref
	Preview *Preview
}

func (e *StaleError) Error() string {
	return fmt.Sprintf("proposal %s: what would change is not what you saw", e.Ref)
}

// DecidedError is a decision that came second. By is empty for a foreign operator.
type DecidedError struct {
	Ref    Ref
	Status queue.Status
	By     string
	Via    string
	At     time.Time
}

func (e *DecidedError) Error() string {
	who := e.By
	if who == "" {
		who = "another program"
	}
	return fmt.Sprintf("proposal %s: already %s by %s", e.Ref, e.Status, who)
}

// DangerError lists the dangers that were not accepted.
type DangerError struct {
	Ref      Ref
	Findings []Finding
}

func (e *DangerError) Error() string {
	var codes []string
	for _, f := range e.Findings {
		codes = append(codes, f.Code)
	}
	return fmt.Sprintf("proposal %s: not accepted: %s", e.Ref, strings.Join(codes, ", "))
}

// UnmanagedError lists targets that the configuration leaves out.
type UnmanagedError struct {
	Ref   Ref
	Kinds []apply.Kind
}

func (e *UnmanagedError) Error() string {
	var k []string
	for _, kind := range e.Kinds {
		k = append(k, string(kind))
	}
	return fmt.Sprintf("proposal %s: not managed for bottle %s: %s", e.Ref, e.Ref.Bottle, strings.Join(k, ", "))
}

// InTheWayError is a file that has the name of a response and is none, so that nobody can answer the agent.
type InTheWayError struct {
	Ref     Ref
	File    string       // safe to print
	Reason  string       // what is wrong with it
	Decided queue.Status // and recorded, so that only the answer is missing; empty: nothing is done
}

func (e *InTheWayError) Error() string {
	way := fmt.Sprintf("%s is in the way (%s)", e.File, e.Reason)
	switch e.Decided {
	case "":
		return fmt.Sprintf("proposal %s of bottle %s cannot be answered: %s. Unless another program is writing it, remove it", e.Ref, e.Ref.Bottle, way)
	case queue.Rejected:
		return fmt.Sprintf("proposal %s of bottle %s is rejected, but its agent cannot be told: %s. Remove it", e.Ref, e.Ref.Bottle, way)
	}
	return fmt.Sprintf("proposal %s of bottle %s is applied, but its agent cannot be told: %s. Remove it, or take the change back with 'supervise undo %s'", e.Ref, e.Ref.Bottle, way, e.Ref)
}

// Level is a finding's weight.
type Level string

const (
	Note   Level = "note"
	Danger Level = "danger" // must be accepted by its code
)

// Finding is one deterministic fact about the authority that approving adds.
type Finding struct {
	Code     string             `json:"code"`
	Level    Level              `json:"level"`
	Text     string             `json:"text"`               // one sentence, safe to print
	Evidence safetext.Untrusted `json:"evidence,omitempty"` // what of the proposal shows it
}

// findingsFor is in findings.go: every finding that plan raises, dangers first, each code once.
var _ func(p payload.Payload, plan *apply.Plan) []Finding = findingsFor

// These are the desk's verbs; each is in the file of its name.
var _ interface {
	Snapshot(ctx context.Context) (*Snapshot, error)
	Find(ctx context.Context, prefix string) (Ref, error)                // open or decided, by id or unique prefix
	Show(ctx context.Context, ref Ref, edited *string) (*Preview, error) // edited: the preview of an operator's edit
	Approve(ctx context.Context, ref Ref, d Decision) (*Result, error)
	Reject(ctx context.Context, ref Ref, notes string) (*Result, error)
	Dismiss(ctx context.Context, refs ...Ref) ([]*Result, error) // rejects with "not decided: abandoned"
	Undo(ctx context.Context, ref Ref, progress io.Writer) (*Result, error)
	UndoUnmanaged(ctx context.Context, ref Ref, progress io.Writer) (*Result, error) // restores what the configuration no longer names
	History(ctx context.Context, f HistoryFilter) iter.Seq2[LedgerEntry, error]      // newest first
	Audit(ctx context.Context, head string) (*AuditReport, error)
	Recover(ctx context.Context) ([]Recovered, error)     // finishes or puts back what was interrupted
	Changes(ctx context.Context) (<-chan struct{}, error) // "look now"; closed when ctx ends
	Trail(ctx context.Context) (Trail, error)             // for whoever looks again, since Changes does not tell of the desk's own files
	Run(ctx context.Context) error                        // long-running desks: recovers every 5 s until ctx ends
	Forget(ctx context.Context, bottle string) error      // removes a bottle's mailbox; its records and the ledger stay
} = (*Desk)(nil)

// New prepares the desk's directory and returns the desk. It does not recover: call Recover, or Run.
func New(o Options) (*Desk, error) {
	if o.By == "" {
		o.By = whoami()
	}
	if o.Abandoned == 0 {
		o.Abandoned = 72 * time.Hour
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	dir := cmp.Or(o.Dir, filepath.Join(o.Root, ".desk"))
	st, err := openStore(dir, o.Step)
	if err != nil {
		return nil, fmt.Errorf("opening the desk in %s: %w", dir, err)
	}
	return &Desk{opts: o, log: o.Logger, store: st, ledger: &Ledger{dir: dir, step: o.Step}}, nil
}

func whoami() string {
	name := "unknown"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if host, err := os.Hostname(); err == nil {
		name += "@" + host
	}
	return name
}
