package operator

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/supervise/internal/apply"
	"github.com/bot-bottle/supervise/internal/safetext"
	"github.com/bot-bottle/supervise/queue"
)

// RecordState is how far a decision got.
type RecordState string

const (
	Claimed      RecordState = "claimed"  // decided; targets may be as before, as after, or between
	Applied      RecordState = "applied"  // the change holds; the response may not be there yet
	Answered     RecordState = "answered" // final
	Undone       RecordState = "undone"   // final, and taken back later
	RecordFailed RecordState = "failed"   // open again
	RecordStuck  RecordState = "stuck"    // open again, with a target that is neither as before nor as after
	Foreign      RecordState = "foreign"  // final: another program answered
)

// Record is the desk's memory of one proposal.
type Record struct {
	ID             queue.ID           `json:"id"`
	Bottle         string             `json:"bottle"`
	Tool           string             `json:"tool"`
	Proposed       safetext.Untrusted `json:"proposed_file"`
	ProposalSHA256 string             `json:"proposal_sha256"`
	Attempt        int                `json:"attempt"`
	State          RecordState        `json:"state"`
	By             string             `json:"by"`
	Via            string             `json:"via"`
	At             time.Time          `json:"at"`
	Status         queue.Status       `json:"status"`
	Notes          safetext.Untrusted `json:"notes,omitempty"`
	FinalFile      safetext.Untrusted `json:"final_file,omitempty"`
	Outcome        queue.Outcome      `json:"outcome,omitempty"`
	Digest         string             `json:"digest,omitempty"`
	Accepted       []string           `json:"accepted,omitempty"`
	Unmanaged      bool               `json:"unmanaged,omitempty"`
	Targets        []RecordTarget     `json:"targets,omitempty"`
	Error          safetext.Untrusted `json:"error,omitempty"`
	ReplacePending bool               `json:"replace_pending,omitempty"` // the bottle has still to be replaced by the rebuilt one
	UndoneBy       string             `json:"undone_by,omitempty"`
	UndoneAt       time.Time          `json:"undone_at,omitzero"`
}

// RecordTarget is one file of a decision. Its bytes before are in the file Backup beside the record.
type RecordTarget struct {
	Kind         apply.Kind         `json:"kind"`
	Path         string             `json:"path"`
	Real         string             `json:"real"`
	Existed      bool               `json:"existed"`
	BeforeSHA256 string             `json:"before_sha256,omitempty"`
	AfterSHA256  string             `json:"after_sha256,omitempty"`
	Backup       string             `json:"backup,omitempty"`
	EntryBefore  safetext.Untrusted `json:"entry_before,omitempty"`
	EntryAfter   safetext.Untrusted `json:"entry_after,omitempty"`
}

// open tells whether the proposal is to be decided again.
func (r *Record) open() bool { return r == nil || r.State == RecordFailed || r.State == RecordStuck }

// Undoable tells whether there is a change of ours that Undo takes back.
func (r *Record) Undoable() bool {
	return r != nil && r.State == Answered && r.Status != queue.Rejected && r.changed()
}

func (r *Record) changed() bool {
	return slices.ContainsFunc(r.Targets, func(t RecordTarget) bool { return t.BeforeSHA256 != t.AfterSHA256 })
}

func (r *Record) final() bool { return r.State == Answered || r.State == Undone || r.State == Foreign }

// notReplaced says of a Dockerfile's change that its bottle stays as it is.
func (r *Record) notReplaced() {
	r.ReplacePending = false
	if r.Outcome == queue.Live {
		r.Outcome = queue.Built
	}
}

// store is <root>/.desk: records, backups, markers, locks. All writes are durable when they return. When the root is
// replaced by another directory, the store is in the new one, as the mailboxes are.
type store struct {
	dir  string
	step func(string) error
	sync func(dir string) error // syncDir, but in tests

	patience time.Duration // how long a lock is waited for without a word

	mu   sync.Mutex
	root *os.Root    // guarded by mu: the directory at dir when it was last looked at
	info fs.FileInfo // guarded by mu: of root
	kept bool        // guarded by mu: the entry of root in its parent is durable
}

func openStore(dir string, step func(string) error) (*store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	s := &store{dir: dir, step: step, sync: syncDir, patience: time.Second}
	_, err := s.at()
	return s, err
}

// at returns the directory, opened again if the one at dir is another. It makes what is missing in the root of the
// mailboxes, but not that root.
func (s *store) at() (*os.Root, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st, err := os.Lstat(s.dir)
	if err == nil && s.root != nil && os.SameFile(st, s.info) {
		return s.root, nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.Mkdir(s.dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		st, err = os.Lstat(s.dir)
	}
	if err != nil {
		return nil, err
	}
	if !st.IsDir() {
		return nil, fmt.Errorf("%s is not a directory", s.dir)
	}
	if st.Mode().Perm()&0o077 != 0 {
		if err := os.Chmod(s.dir, 0o700); err != nil {
			return nil, fmt.Errorf("%s is open to others (mode %#o): %w", s.dir, st.Mode().Perm(), err)
		}
	}
	root, err := os.OpenRoot(s.dir)
	if err != nil {
		return nil, err
	}
	if st, err = root.Stat("."); err != nil { // what was opened, whatever has been put in its place since
		return nil, errors.Join(err, root.Close())
	}
	for _, sub := range []string{"unfinished", "keys", "locks", temps} {
		if err := root.Mkdir(sub, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, errors.Join(err, root.Close())
		}
	}
	if s.root != nil {
		s.root.Close() // only read through, or synced
	}
	s.root, s.info, s.kept = root, st, false
	sweep(root)
	return root, nil
}

// temps is where files are written before they get their names: in one place, so that finding what a killed process left
// costs nothing. It is no slug.
const temps = ".tmp"

// staleTemp is how old a temporary file must be to be nobody's.
const staleTemp = time.Hour

// sweep removes the temporary files that killed processes left. What cannot be removed is in nobody's way.
func sweep(root *os.Root) {
	entries, err := fs.ReadDir(root.FS(), temps)
	if err != nil {
		return
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil && time.Since(info.ModTime()).Abs() > staleTemp {
			_ = root.Remove(filepath.Join(temps, e.Name()))
		}
	}
}

func (s *store) before(step string) error {
	if s.step == nil {
		return nil
	}
	return s.step(step)
}

// write replaces name durably.
func (s *store) write(name string, data []byte) error {
	root, err := s.at()
	if err != nil {
		return err
	}
	dir := filepath.Dir(name)
	if err := root.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	tmp := filepath.Join(temps, fmt.Sprintf("%d-%s", os.Getpid(), queue.NewID()))
	f, err := root.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, werr := f.Write(data)
	if err := errors.Join(werr, f.Sync(), f.Close()); err != nil {
		return errors.Join(fmt.Errorf("writing %s: %w", filepath.Join(s.dir, name), err), root.Remove(tmp))
	}
	if err := root.Rename(tmp, name); err != nil {
		return errors.Join(err, root.Remove(tmp))
	}
	for {
		if err := s.sync(filepath.Join(s.dir, dir)); err != nil {
			return err
		}
		if dir == "." {
			return s.keep()
		}
		dir = filepath.Dir(dir) // which may have got a new entry
	}
}

// keep makes the entry of the directory itself durable, once.
func (s *store) keep() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kept {
		return nil
	}
	if err := s.sync(filepath.Dir(s.dir)); err != nil {
		return err
	}
	s.kept = true
	return nil
}

func (s *store) read(name string) ([]byte, error) {
	root, err := s.at()
	if err != nil {
		return nil, err
	}
	return root.ReadFile(name)
}

func recordName(ref Ref) string { return filepath.Join(ref.Bottle, string(ref.ID)+".json") }

// record returns nil when there is none.
func (s *store) record(ref Ref) (*Record, error) {
	root, err := s.at()
	if err != nil { // no store is not the same as no record
		return nil, fmt.Errorf("reading the record of %s: %w", ref, err)
	}
	return s.parseRecord(ref, func() ([]byte, error) { return root.ReadFile(recordName(ref)) })
}

func (s *store) parseRecord(ref Ref, read func() ([]byte, error)) (*Record, error) {
	b, err := read()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the record of %s: %w", ref, err)
	}
	r := &Record{}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("the record %s does not parse (%w): move it away to decide anew", filepath.Join(s.dir, recordName(ref)), err)
	}
	return r, nil
}

// shelf is what the store has of one bottle, opened once for a look at many proposals.
type shelf struct {
	s             *store
	bottle        string
	records, keys *os.Root // nil: there was no such directory
	err           error
}

// shelf must be closed.
func (s *store) shelf(bottle string) *shelf {
	h := &shelf{s: s, bottle: bottle}
	root, err := s.at()
	if err != nil {
		h.err = err
		return h
	}
	open := func(name string) *os.Root {
		sub, err := root.OpenRoot(name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			h.err = errors.Join(h.err, err)
		}
		return sub
	}
	h.records, h.keys = open(bottle), open(filepath.Join("keys", bottle))
	return h
}

func (h *shelf) close() {
	for _, sub := range []*os.Root{h.records, h.keys} {
		if sub != nil {
			sub.Close()
		}
	}
}

func readIn(dir *os.Root, name string) ([]byte, error) {
	if dir == nil {
		return nil, fs.ErrNotExist
	}
	return dir.ReadFile(name)
}

// record is store.record. A directory that has come to be since the shelf was opened is not seen.
func (h *shelf) record(id queue.ID) (*Record, error) {
	ref := Ref{h.bottle, id}
	if h.err != nil {
		return nil, fmt.Errorf("reading the record of %s: %w", ref, h.err)
	}
	return h.s.parseRecord(ref, func() ([]byte, error) { return readIn(h.records, string(id)+".json") })
}

func (h *shelf) earlier(tool, canonical string) *Earlier {
	return parseEarlier(readIn(h.keys, keyHash(tool, canonical)))
}

func (s *store) save(r *Record) error {
	if err := s.before("record " + string(r.State)); err != nil {
		return err
	}
	b, err := safetext.JSON(r)
	if err != nil {
		return fmt.Errorf("encoding the record of %s: %w", r.ID, err)
	}
	if err := s.write(recordName(Ref{r.Bottle, r.ID}), append(b, '\n')); err != nil {
		return fmt.Errorf("saving the record of %s: %w", r.ID, err)
	}
	return nil
}

// sinceSaved is how long ago a record was saved: of one that is answered, when that was. A time in the future counts as now.
func (s *store) sinceSaved(ref Ref) time.Duration {
	root, err := s.at()
	if err != nil {
		return 0
	}
	info, err := root.Stat(recordName(ref))
	if err != nil {
		return 0
	}
	return max(0, time.Since(info.ModTime()))
}

// saved tells when a file was last put under its name, or taken away, among the records of each bottle, and the last of these times
// that has come: a clock that was set back, or a backup, leaves others. Hints that are kept beside the records count too.
func (s *store) saved() (all string, last time.Time, _ error) {
	root, err := s.at()
	if err != nil {
		return "", last, fmt.Errorf("looking at the records: %w", err)
	}
	entries, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return "", last, fmt.Errorf("looking at the records: %w", err)
	}
	h := sha256.New()
	now := time.Now()
	for _, e := range entries {
		if queue.CheckSlug(e.Name()) != nil || !e.IsDir() {
			continue
		}
		info, err := e.Info()
		if err != nil {
			continue // it is gone, and its records are
		}
		at := info.ModTime()
		fmt.Fprintln(h, e.Name(), at.UnixNano())
		if at.After(last) && !at.After(now) {
			last = at
		}
	}
	return hex.EncodeToString(h.Sum(nil)), last, nil
}

// backup keeps a target's bytes and returns the name that record keeps.
func (s *store) backup(r *Record, im apply.Image) (string, error) {
	if err := s.before("backup " + string(im.Kind)); err != nil {
		return "", err
	}
	name := fmt.Sprintf("%s.%d.%s", r.ID, r.Attempt, im.Kind)
	if err := s.write(filepath.Join(r.Bottle, name), im.Before); err != nil {
		return "", fmt.Errorf("keeping %s as it was: %w", im.Path, err)
	}
	return name, nil
}

// images reads a record's targets back, with their bytes before.
func (s *store) images(r *Record) ([]apply.Image, error) {
	var out []apply.Image
	for _, t := range r.Targets {
		im := apply.Image{Kind: t.Kind, Path: t.Path, Real: t.Real, Existed: t.Existed, BeforeSHA256: t.BeforeSHA256, AfterSHA256: t.AfterSHA256,
			EntryBefore: t.EntryBefore.Raw(), EntryAfter: t.EntryAfter.Raw()}
		if t.Backup != "" {
			b, err := s.read(filepath.Join(r.Bottle, filepath.Base(t.Backup)))
			if err != nil {
				return nil, fmt.Errorf("reading %s as it was: %w", t.Path, err)
			}
			if got := apply.SHA256(b); got != t.BeforeSHA256 {
				return nil, fmt.Errorf("the backup of %s has hash %s, not %s", t.Path, got, t.BeforeSHA256)
			}
			im.Before = b
		}
		out = append(out, im)
	}
	return out, nil
}

func marker(ref Ref) string { return filepath.Join("unfinished", ref.Bottle+"."+string(ref.ID)) }

// begin marks ref as unfinished, so that Recover looks at it after a crash.
func (s *store) begin(ref Ref) error {
	if err := s.before("begin"); err != nil {
		return err
	}
	root, err := s.at()
	if err != nil {
		return fmt.Errorf("marking %s: %w", ref, err)
	}
	f, err := root.OpenFile(marker(ref), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("marking %s: %w", ref, err)
	}
	return errors.Join(f.Sync(), f.Close(), s.sync(filepath.Join(s.dir, "unfinished")))
}

// hold tells other processes, until release is called or this one dies, that what ref still lacks is being seen to. It returns
// nil when somebody else holds it, or it is not marked.
func (s *store) hold(ref Ref) (release func(), err error) {
	root, err := s.at()
	if err != nil {
		return nil, fmt.Errorf("holding %s: %w", ref, err)
	}
	f, err := root.OpenFile(marker(ref), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("holding %s: %w", ref, err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, f.Close()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("holding %s: %w", ref, err), f.Close())
	}
	return func() { f.Close() }, nil // closing releases it
}

func (s *store) end(ref Ref) error {
	if err := s.before("end"); err != nil {
		return err
	}
	root, err := s.at()
	if err != nil {
		return fmt.Errorf("unmarking %s: %w", ref, err)
	}
	if err := root.Remove(marker(ref)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("unmarking %s: %w", ref, err)
	}
	return nil // not synced: a marker that comes back is looked at and removed again
}

func (s *store) unfinished() ([]Ref, error) {
	root, err := s.at()
	if err != nil {
		return nil, fmt.Errorf("listing unfinished decisions: %w", err)
	}
	entries, err := fs.ReadDir(root.FS(), "unfinished")
	if err != nil {
		return nil, fmt.Errorf("listing unfinished decisions: %w", err)
	}
	var refs []Ref
	for _, e := range entries {
		bottle, id, _ := strings.Cut(e.Name(), ".")
		pid, err := queue.ParseID(id)
		if err != nil || queue.CheckSlug(bottle) != nil {
			continue
		}
		refs = append(refs, Ref{bottle, pid})
	}
	return refs, nil
}

// foreignDay counts the answers of other programs that were recorded on one day.
type foreignDay struct {
	Day string `json:"day"` // UTC
	N   int    `json:"n"`
}

func (s *store) foreignToday(bottle string) int {
	var c foreignDay
	if b, err := s.read(filepath.Join(bottle, "foreign.json")); err != nil || json.Unmarshal(b, &c) != nil || c.Day != today() {
		return 0
	}
	return c.N
}

func (s *store) countForeign(bottle string, n int) error {
	b, err := json.Marshal(foreignDay{today(), n})
	if err != nil {
		return err
	}
	return s.write(filepath.Join(bottle, "foreign.json"), b)
}

func today() string { return time.Now().UTC().Format(time.DateOnly) }

func keyName(bottle, tool, canonical string) string {
	return filepath.Join("keys", bottle, keyHash(tool, canonical))
}

func keyHash(tool, canonical string) string {
	return apply.SHA256([]byte(tool + "\x00" + canonical))[:40]
}

// setEarlier remembers the last decision on a question; earlier returns it, or nil.
func (s *store) setEarlier(bottle, tool, canonical string, e Earlier) error {
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	return s.write(keyName(bottle, tool, canonical), b)
}

func (s *store) earlier(bottle, tool, canonical string) *Earlier {
	return parseEarlier(s.read(keyName(bottle, tool, canonical)))
}

func parseEarlier(b []byte, err error) *Earlier {
	var e Earlier
	if err != nil || json.Unmarshal(b, &e) != nil {
		return nil
	}
	return &e
}

// lockBottle is held while anything is decided for a bottle. holder says by whom and for what, to whoever waits longer than a moment;
// busy is told what the one who has it says.
func (s *store) lockBottle(ctx context.Context, bottle, holder string, busy func(holder string)) (unlock func(), err error) {
	if err := queue.CheckSlug(bottle); err != nil {
		return nil, err
	}
	root, err := s.at()
	if err != nil {
		return nil, err
	}
	if err := root.MkdirAll(bottle, 0o700); err != nil {
		return nil, err
	}
	began := time.Now()
	f, err := lockFile(ctx, filepath.Join(s.dir, bottle, ".lock"), func(f *os.File) {
		if busy == nil || time.Since(began) < s.patience {
			return
		}
		have := make([]byte, maxHolder)
		n, _ := f.ReadAt(have, 0) // what cannot be read is not told
		busy(string(have[:n]))
		busy = nil // once
	})
	if err != nil {
		return nil, fmt.Errorf("waiting for whoever decides for bottle %s: %w", bottle, err)
	}
	// A hint: it is not synced, and who cannot write it on a full disk decides all the same.
	if err := f.Truncate(0); err == nil {
		_, _ = f.WriteAt([]byte(holder[:min(len(holder), maxHolder)]), 0)
	}
	return func() { f.Close() }, nil
}

// maxHolder bounds what a lock file says of who has it.
const maxHolder = 512

// lockFile takes an exclusive flock, waiting until ctx ends; waiting, if it is not nil, is called before each further look. Closing the
// file releases the lock.
func lockFile(ctx context.Context, path string, waiting func(f *os.File)) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(err, f.Close())
		}
		if waiting != nil {
			waiting(f)
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(context.Cause(ctx), f.Close())
		case <-time.After(pause):
		}
	}
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
