// Package queue keeps proposals until an operator answers them.
//
// A [Mailbox] is one bottle's: the sidecar puts proposals into it, waits for their
// responses and archives a pair once its answer has gone out. An [Inbox] is the
// operator's sight of every mailbox under one root: it lists what is open and
// creates responses. The two meet only in stored files (package comment of the
// Dir backend, docs/mailbox.md), so that other programs can be either side.
//
// The contract, which package queuetest holds as code and every backend passes:
//
//   - Put, Respond and Archive return nil only when the change would survive a power cut.
//     An error means "not known to be stored": the caller may repeat the call with
//     the same arguments, and a repeat of something already stored is no error.
//   - A proposal is answered at most once: the first Respond wins, every other one
//     gets a [ConflictError] that carries the winning response.
//   - A response is never altered (that it was taken back stands beside it), and never lost while it is unarchived (a backend may give one up that nobody
//     came for in 7 days).
//   - Wait returns a response only if it is valid and names the proposal waited for.
//   - What others wrote badly is reported once, skipped, and never in the way of the rest.
//   - No lookup leaves the mailbox it was made on, whatever the id says.
//   - All methods may be called concurrently, from several processes where the backend is shared.
package queue

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"
)

// Status is an operator's decision.
type Status string

const (
	Approved Status = "approved"
	Modified Status = "modified" // approved with changes; Response.FinalFile has what was applied
	Rejected Status = "rejected"
)

// Outcome is what holds after the decision. Empty: not said (a foreign operator).
type Outcome string

const (
	Live         Outcome = "live"         // applied and seen in the live table; a Dockerfile: built, and the bottle is about to be replaced
	Built        Outcome = "built"        // a Dockerfile: built, and nothing replaces the bottle
	Unchanged    Outcome = "unchanged"    // it was allowed already
	Unverified   Outcome = "unverified"   // applied, or done by hand, and not seen live
	Acknowledged Outcome = "acknowledged" // recorded, nothing rebuilt
)

// Proposal is one change an agent asked for.
type Proposal struct {
	ID              ID
	Bottle          string // slug; in a Dir it equals the directory's name
	Tool            string
	ProposedFile    string // the payload, as package payload encodes it
	Justification   string
	CurrentFileHash string // hex SHA-256 of ProposedFile
	ArrivedAt       time.Time
}

// Response is an operator's answer to one proposal.
type Response struct {
	ProposalID ID
	Status     Status
	Notes      string
	FinalFile  string // what was applied instead of the proposed file; empty: the proposed file
	Outcome    Outcome
	Digest     string // of the preview the operator decided on; empty from a foreign operator
	DecidedAt  time.Time
}

// Entry is a proposal and, once there is one, its response.
type Entry struct {
	Proposal    Proposal
	Response    *Response     // nil: open
	Since       time.Time     // when it was first seen here; after a restart the file's mtime. The same each time
	Age         time.Duration // since then, on the monotonic clock
	BadResponse *BadError     // a file with the response's name that is not valid: it may be in writing, and nobody else can answer
	Delivered   time.Time     // when the answer went out; zero while it has not (that is: while outside processed/)
	Undone      time.Time     // when what was approved was taken back; zero if it was not. Get tells it, lists may not
}

var (
	ErrNotFound = errors.New("no such proposal")
	ErrNoBottle = errors.New("no such bottle") // such an error is ErrNotFound too
	ErrDecided  = errors.New("already decided")
	ErrLate     = errors.New("already answered and archived") // Respond to an archived proposal
	ErrLocked   = errors.New("mailbox is in use by another sidecar")
	ErrFlooded  = errors.New("mailbox flooded") // more than 4,096 names
	ErrBad      = errors.New("bad file")
	ErrTooBig   = errors.New("too big") // encoded over MaxFile bytes
	ErrClosed   = errors.New("mailbox is closed")
)

// ConflictError tells who won. It unwraps to ErrDecided.
type ConflictError struct {
	ID       ID
	Response Response // the one that stands
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("proposal %s: already %s", e.ID, e.Response.Status)
}
func (e *ConflictError) Unwrap() error { return ErrDecided }

// BadError names a file that was skipped and why. It unwraps to ErrBad.
// Name and Bottle may be a hostile writer's: escape them before showing.
type BadError struct {
	Bottle string
	Name   string
	Reason string
}

// Error escapes what a hostile writer may have put into the names.
func (e *BadError) Error() string {
	return fmt.Sprintf("%s/%s: %s", quote(e.Bottle), quote(e.Name), e.Reason)
}
func (e *BadError) Unwrap() error { return ErrBad }

// bottleError says that there is no such mailbox. It unwraps to ErrNoBottle and to ErrNotFound.
type bottleError struct{ bottle, root string }

func (e *bottleError) Error() string {
	return fmt.Sprintf("bottle %s has no mailbox under %s", quote(e.bottle), e.root)
}
func (e *bottleError) Unwrap() []error { return []error{ErrNoBottle, ErrNotFound} }

// MaxFile is the largest encoded proposal or response file, in bytes; writers and readers check it.
const MaxFile = 2 << 20

// Mailbox is one bottle's side. Its user is the sidecar.
type Mailbox interface {
	// Put stores p durably. p.ID must be new; the same ID with the same content again is no error (ArrivedAt may
	// differ: the first one stays). An empty CurrentFileHash and a zero ArrivedAt are filled in. ErrTooBig, ErrFlooded.
	Put(ctx context.Context, p Proposal) error
	// Get looks in both places, open and archived. ErrNotFound.
	Get(ctx context.Context, id ID) (Entry, error)
	// Wait blocks until id has a valid response. It ends with context.Cause(ctx), ErrNotFound, or ErrClosed.
	Wait(ctx context.Context, id ID) (Response, error)
	// Entries lists what is not archived, oldest first: open, and answered but undelivered.
	Entries(ctx context.Context) iter.Seq2[Entry, error]
	// Pending counts open proposals without looking. It is never less than the number of those that Put stored, and is more
	// while decisions have not been noticed.
	Pending() int
	// Recent lists archived pairs that were delivered at or after since, oldest first.
	Recent(ctx context.Context, since time.Time) iter.Seq2[Entry, error]
	// Archive records that the answer of id went out on a live call. Again is no error. Without a response: an error.
	Archive(ctx context.Context, id ID) error
	// Close ends every Wait with ErrClosed and releases the mailbox.
	Close() error
}

// Presence is a hint of who is waiting, never a fact.
type Presence struct {
	Known   bool       // false: no sidecar wrote within 90 s
	Waiting map[ID]int // calls waiting, by proposal
	At      time.Time  // when it was last written
}

// Inbox is the operator's side: every mailbox under one root.
type Inbox interface {
	// Bottles lists the slugs that have a mailbox, sorted.
	Bottles(ctx context.Context) ([]string, error)
	// Entries lists one bottle's unarchived entries, oldest first. Bad files are errors in the sequence (BadError),
	// a flooded mailbox is ErrFlooded; neither ends the listing of what is good.
	Entries(ctx context.Context, bottle string) iter.Seq2[Entry, error]
	// Get looks in both places of one bottle.
	Get(ctx context.Context, bottle string, id ID) (Entry, error)
	// Respond creates the response; the first one wins. ErrNotFound, ErrLate, ConflictError (also for an equal repeat,
	// whose Response then equals r).
	Respond(ctx context.Context, bottle string, r Response) error
	// Undone says that what was approved has been taken back, so that no agent is told from now on that it holds. Again is no
	// error. ErrNotFound; without a response: an error.
	Undone(ctx context.Context, bottle string, id ID) error
	// Presence reads one bottle's hint.
	Presence(ctx context.Context, bottle string) (Presence, error)
	// Changes returns a channel that receives (and coalesces) whenever anything under the root may have changed:
	// "look now". It works until ctx ends, then the channel is closed.
	Changes(ctx context.Context) (<-chan struct{}, error)
	// Forget removes a bottle's mailbox with all its files. It fails with ErrLocked while a sidecar holds it.
	Forget(ctx context.Context, bottle string) error
	Close() error
}
