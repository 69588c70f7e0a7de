package operator

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/bot-bottle/supervise/internal/safetext"
	"github.com/bot-bottle/supervise/queue"
)

// What a ledger line records.
const (
	EventDecided = "decided" // an operator decided; nothing is changed yet
	EventApplied = "applied" // the change is made and, where that can be told, seen live
	EventFailed  = "failed"  // the change did not hold and was put back; the proposal is open again
	EventStuck   = "stuck"   // an interrupted change that only a person can sort out
	EventForeign = "foreign" // another program answered; nothing was applied by us
	EventUndone  = "undone"  // an applied change was taken back
	// EventNotReplaced: a Dockerfile's change was applied, and its bottle was not replaced. Outcome is what holds, Error why.
	EventNotReplaced = "not-replaced"
	EventTorn        = "torn" // the line before was cut off by a crash and has been removed
)

// LedgerEntry is one line of the ledger.
type LedgerEntry struct {
	Seq      int64              `json:"seq"`
	At       time.Time          `json:"at"`
	Event    string             `json:"event"`
	Bottle   string             `json:"bottle,omitempty"`
	ID       queue.ID           `json:"id,omitempty"`
	Attempt  int                `json:"attempt,omitempty"`
	Tool     string             `json:"tool,omitempty"`
	Status   queue.Status       `json:"status,omitempty"`
	Outcome  queue.Outcome      `json:"outcome,omitempty"`
	By       string             `json:"by,omitempty"`
	Via      string             `json:"via,omitempty"`
	Summary  safetext.Untrusted `json:"summary,omitempty"`
	Notes    safetext.Untrusted `json:"notes,omitempty"`
	Accepted []string           `json:"accepted,omitempty"` // dangers accepted by code
	Digest   string             `json:"digest,omitempty"`
	Targets  []LedgerTarget     `json:"targets,omitempty"`
	Error    safetext.Untrusted `json:"error,omitempty"`
	Prev     string             `json:"prev"` // hash of the line before; empty for the first
	Hash     string             `json:"hash"` // hex SHA-256 of this line without its hash
}

// LedgerTarget is one file a decision is about.
type LedgerTarget struct {
	Path         string `json:"path"`
	BeforeSHA256 string `json:"before_sha256,omitempty"`
	AfterSHA256  string `json:"after_sha256,omitempty"`
}

func (e LedgerEntry) sum() string {
	e.Hash = ""
	b, err := json.Marshal(e)
	if err != nil {
		panic(err) // only strings, numbers and times
	}
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

// Ledger is the append-only history of a root.
type Ledger struct {
	dir  string
	step func(string) error
}

func (l *Ledger) path() string { return filepath.Join(l.dir, "ledger.jsonl") }

// maxLine bounds one ledger line; [Record.entry] keeps within it whatever an agent or an operator wrote.
const maxLine = 256 << 10

// Append adds e at the end, durably. Seq, Prev, Hash and, when zero, At are set here. A torn last line is removed
// and noted first.
func (l *Ledger) Append(ctx context.Context, e LedgerEntry) error {
	lock, err := lockFile(ctx, filepath.Join(l.dir, "ledger.lock"), nil)
	if err != nil {
		return fmt.Errorf("locking the ledger: %w", err)
	}
	defer lock.Close()
	return l.appendLocked(e)
}

// Ensure appends those of which no line with the event, bottle, id and attempt is there already. It looks back to a day before
// since, when the first of them may have been written; zero: to the beginning.
func (l *Ledger) Ensure(ctx context.Context, since time.Time, all ...LedgerEntry) error {
	type key struct {
		event, bottle string
		id            queue.ID
		attempt       int
	}
	keyOf := func(e LedgerEntry) key { return key{e.Event, e.Bottle, e.ID, e.Attempt} }
	want := make(map[key]bool, len(all))
	for _, e := range all {
		want[keyOf(e)] = true
	}
	lock, err := lockFile(ctx, filepath.Join(l.dir, "ledger.lock"), nil)
	if err != nil {
		return fmt.Errorf("locking the ledger: %w", err)
	}
	defer lock.Close()
	for have, err := range l.backwards() {
		if err != nil {
			break // torn or edited: appending is still right, audit verify tells of the rest
		}
		if !since.IsZero() && have.At.Before(since.Add(-24*time.Hour)) {
			break // lines are in order of time; a step of the clock by more than a day costs one double entry
		}
		if delete(want, keyOf(have)); len(want) == 0 {
			return nil
		}
	}
	for _, e := range all {
		if !want[keyOf(e)] {
			continue
		}
		delete(want, keyOf(e))
		if err := l.appendLocked(e); err != nil {
			return err
		}
	}
	return nil
}

func (l *Ledger) appendLocked(e LedgerEntry) (err error) {
	if l.step != nil {
		if err := l.step("ledger " + e.Event); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(l.path(), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("opening the ledger: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	st, err := f.Stat()
	if err != nil {
		return fmt.Errorf("opening the ledger: %w", err)
	}
	end := st.Size()
	last, torn, err := lastLine(f, end)
	if err != nil {
		return fmt.Errorf("reading the end of %s: %w", l.path(), err)
	}
	end -= torn
	if torn > 0 {
		if err := f.Truncate(end); err != nil {
			return fmt.Errorf("cutting the torn last line of the ledger: %w", err)
		}
		note := LedgerEntry{At: time.Now().UTC(), Event: EventTorn, Error: safetext.Untrusted(fmt.Sprintf("%d bytes of a line that a crash cut off were removed", torn))}
		if last, end, err = writeLine(f, end, last, note); err != nil {
			return err
		}
	}
	if e.At.IsZero() {
		e.At = time.Now().UTC()
	}
	if _, _, err := writeLine(f, end, last, e); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("syncing the ledger: %w", err)
	}
	if end == 0 {
		return syncDir(l.dir)
	}
	return nil
}

func writeLine(f *os.File, end int64, last LedgerEntry, e LedgerEntry) (LedgerEntry, int64, error) {
	e.At = e.At.UTC().Truncate(time.Microsecond) // what JSON keeps, so that the hash can be computed again
	e.Seq, e.Prev = last.Seq+1, last.Hash
	b, err := json.Marshal(e)
	var read LedgerEntry // as Verify will have it: text that is not UTF-8 comes back as what JSON makes of it
	if err == nil {
		err = json.Unmarshal(b, &read)
	}
	if err != nil {
		return e, end, fmt.Errorf("encoding a ledger line: %w", err)
	}
	e = read
	e.Hash = e.sum()
	if b, err = json.Marshal(e); err != nil {
		return e, end, fmt.Errorf("encoding a ledger line: %w", err)
	}
	if len(b) >= maxLine {
		return e, end, fmt.Errorf("a ledger line of %d bytes is over %d", len(b), maxLine)
	}
	b = append(b, '\n')
	if _, err := f.WriteAt(b, end); err != nil {
		return e, end, errors.Join(fmt.Errorf("writing the ledger: %w", err), f.Truncate(end))
	}
	return e, end + int64(len(b)), nil
}

// lastLine returns the last whole line and how many bytes of a torn one follow it.
func lastLine(f io.ReaderAt, size int64) (last LedgerEntry, torn int64, err error) {
	n := min(size, 2*maxLine)
	buf := make([]byte, n)
	if _, err := f.ReadAt(buf, size-n); err != nil && err != io.EOF {
		return last, 0, err
	}
	i := bytes.LastIndexByte(buf, '\n')
	torn = n - int64(i+1)
	if i < 0 {
		if size > n {
			return last, 0, errors.New("no line end in the last half megabyte: it is not a ledger; move it away and keep it")
		}
		return last, torn, nil
	}
	line := buf[bytes.LastIndexByte(buf[:i], '\n')+1 : i]
	if err := json.Unmarshal(line, &last); err != nil {
		return last, 0, fmt.Errorf("the last line is not a ledger entry (%v); see 'supervise audit verify'", err)
	}
	return last, torn, nil
}

// backwards yields whole lines, newest first.
func (l *Ledger) backwards() iter.Seq2[LedgerEntry, error] {
	return func(yield func(LedgerEntry, error) bool) {
		f, err := os.Open(l.path())
		if errors.Is(err, fs.ErrNotExist) {
			return
		}
		if err != nil {
			yield(LedgerEntry{}, fmt.Errorf("opening the ledger: %w", err))
			return
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil {
			yield(LedgerEntry{}, fmt.Errorf("opening the ledger: %w", err))
			return
		}
		pos, rest := st.Size(), []byte(nil)
		torn := true // until the first line end from the back
		for pos > 0 {
			n := min(pos, 64<<10)
			pos -= n
			chunk := make([]byte, n, int(n)+len(rest))
			if _, err := f.ReadAt(chunk, pos); err != nil {
				yield(LedgerEntry{}, fmt.Errorf("reading the ledger: %w", err))
				return
			}
			rest = append(chunk, rest...)
			for {
				i := bytes.LastIndexByte(rest, '\n')
				if i < 0 && pos > 0 {
					break
				}
				line := rest[i+1:]
				rest = rest[:max(i, 0)]
				if torn {
					torn = false
				} else if !yieldLine(line, yield) {
					return
				}
				if i < 0 {
					break
				}
			}
			if len(rest) > maxLine {
				yield(LedgerEntry{}, fmt.Errorf("a ledger line is over %d bytes", maxLine))
				return
			}
		}
	}
}

func yieldLine(line []byte, yield func(LedgerEntry, error) bool) bool {
	var e LedgerEntry
	if err := json.Unmarshal(line, &e); err != nil {
		return yield(LedgerEntry{}, fmt.Errorf("a ledger line does not parse (%w); see 'supervise audit verify'", err))
	}
	return yield(e, nil)
}

// AuditReport is what the ledger's chain proves.
type AuditReport struct {
	Entries int64  `json:"entries"`
	Head    string `json:"head"`              // hash of the last line: note it down elsewhere to be able to prove truncation
	Problem string `json:"problem,omitempty"` // the first break, with its line; empty: the chain holds
	Torn    int64  `json:"torn,omitempty"`    // bytes of a cut-off last line, which the next entry will remove
}

// OK tells whether nothing is wrong.
func (r *AuditReport) OK() bool { return r.Problem == "" }

// Verify reads the whole ledger. With head, that hash must be in it: otherwise lines it once had are gone.
func (l *Ledger) Verify(ctx context.Context, head string) (*AuditReport, error) {
	r := &AuditReport{}
	f, err := os.Open(l.path())
	if errors.Is(err, fs.ErrNotExist) {
		if head != "" {
			r.Problem = "the ledger is missing, and it once had the given head"
		}
		return r, nil
	}
	if err != nil {
		return nil, fmt.Errorf("opening the ledger: %w", err)
	}
	defer f.Close()
	seen := head == ""
	br := bufio.NewReaderSize(f, maxLine+1)
	var last LedgerEntry
	for {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		line, err := br.ReadSlice('\n')
		if err == io.EOF {
			r.Torn = int64(len(line))
			break
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			r.Problem = fmt.Sprintf("line %d is over %d bytes", r.Entries+1, maxLine)
			return r, nil
		}
		if err != nil {
			return nil, fmt.Errorf("reading the ledger: %w", err)
		}
		var e LedgerEntry
		dec := json.NewDecoder(bytes.NewReader(line))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&e); err != nil {
			r.Problem = fmt.Sprintf("line %d does not parse: %s", r.Entries+1, safetext.Line(err.Error(), 200))
			return r, nil
		}
		canon, _ := json.Marshal(e)
		switch {
		case e.Prev != last.Hash:
			r.Problem = fmt.Sprintf("line %d does not follow line %d: a line was removed, added or moved", r.Entries+1, r.Entries)
		case e.Seq != last.Seq+1:
			r.Problem = fmt.Sprintf("line %d has number %d, not %d", r.Entries+1, e.Seq, last.Seq+1)
		case e.sum() != e.Hash || !bytes.Equal(canon, bytes.TrimSuffix(line, []byte("\n"))):
			r.Problem = fmt.Sprintf("line %d was edited", r.Entries+1)
		}
		if r.Problem != "" {
			return r, nil
		}
		r.Entries++
		r.Head, last = e.Hash, e
		seen = seen || e.Hash == head
	}
	if !seen {
		r.Problem = "the given head is not in the ledger: lines were cut off, or it belongs to another ledger"
	}
	return r, nil
}

// HistoryFilter narrows History. Zero fields do not.
type HistoryFilter struct {
	Bottle string
	ID     queue.ID
	Tool   string
	Status queue.Status
	Event  string
	Since  time.Time
	Query  string // a part of summary, notes, bottle, id or who, without case
	Limit  int    // at most so many; 0: all
}

func (f HistoryFilter) match(e LedgerEntry) bool {
	if f.Bottle != "" && e.Bottle != f.Bottle || f.ID != "" && e.ID != f.ID || f.Tool != "" && e.Tool != f.Tool ||
		f.Status != "" && e.Status != f.Status || f.Event != "" && e.Event != f.Event {
		return false
	}
	if f.Query == "" {
		return true
	}
	q := strings.ToLower(f.Query)
	return slices.ContainsFunc([]string{e.Summary.Raw(), e.Notes.Raw(), e.Bottle, string(e.ID), e.By, e.Error.Raw()}, func(s string) bool {
		return strings.Contains(strings.ToLower(s), q)
	})
}

// History yields what was decided and done, newest first, from the ledger.
func (d *Desk) History(ctx context.Context, f HistoryFilter) iter.Seq2[LedgerEntry, error] {
	return func(yield func(LedgerEntry, error) bool) {
		n := 0
		for e, err := range d.ledger.backwards() {
			if ctx.Err() != nil {
				yield(LedgerEntry{}, context.Cause(ctx))
				return
			}
			if err != nil {
				if !yield(e, err) {
					return
				}
				continue
			}
			if !f.Since.IsZero() && e.At.Before(f.Since) {
				return
			}
			if !f.match(e) {
				continue
			}
			if !yield(e, nil) {
				return
			}
			if n++; f.Limit > 0 && n >= f.Limit {
				return
			}
		}
	}
}

// Audit verifies the ledger's chain; see [Ledger.Verify]. A ledger without a line is broken once something has been decided.
func (d *Desk) Audit(ctx context.Context, head string) (*AuditReport, error) {
	r, err := d.ledger.Verify(ctx, head)
	if err == nil && r.OK() && r.Entries == 0 {
		if ref, ok := d.store.anyDecided(); ok {
			r.Problem = fmt.Sprintf("the ledger has no line, and %s of bottle %s was decided: it was removed, or cut off", ref.ID, ref.Bottle)
		}
	}
	return r, err
}

// anyDecided finds a decision that the ledger must know of.
func (s *store) anyDecided() (Ref, bool) {
	root, err := s.at()
	if err != nil {
		return Ref{}, false
	}
	dirs, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return Ref{}, false
	}
	for _, dir := range dirs {
		if queue.CheckSlug(dir.Name()) != nil {
			continue
		}
		for _, ref := range s.recorded(dir.Name(), "") {
			if rec, err := s.record(ref); err == nil && rec != nil && rec.final() {
				return ref, true
			}
		}
	}
	return Ref{}, false
}
