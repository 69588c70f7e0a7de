package queue

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// ProposalSchema and ResponseSchema are the JSON Schemas of the two stored files.
var (
	//go:embed schema/proposal.schema.json
	ProposalSchema []byte
	//go:embed schema/response.schema.json
	ResponseSchema []byte
)

// proposalFile is stored: add fields, never rename or retype one.
type proposalFile struct {
	ID              string    `json:"id"`
	BottleSlug      string    `json:"bottle_slug"`
	Tool            string    `json:"tool"`
	ProposedFile    string    `json:"proposed_file"`
	Justification   string    `json:"justification"`
	CurrentFileHash string    `json:"current_file_hash"`
	ArrivedAt       time.Time `json:"arrived_at"`
}

// responseFile is stored: add fields, never rename or retype one. A foreign operator need only write the first four.
type responseFile struct {
	ProposalID string     `json:"proposal_id"`
	Status     string     `json:"status"`
	Notes      *string    `json:"notes"`
	FinalFile  *string    `json:"final_file"`
	Outcome    string     `json:"outcome,omitempty"`
	Digest     string     `json:"digest,omitempty"`
	DecidedAt  *time.Time `json:"decided_at,omitempty"`
}

// lenient reads what responseFile does not. What a foreign operator need not write cannot make its answer bad either.
type lenient struct {
	ProposalID string          `json:"proposal_id"`
	Status     string          `json:"status"`
	Notes      *string         `json:"notes"`
	FinalFile  *string         `json:"final_file"`
	Outcome    json.RawMessage `json:"outcome"`
	Digest     json.RawMessage `json:"digest"`
	DecidedAt  json.RawMessage `json:"decided_at"`
}

// Hash is the CurrentFileHash of a payload.
func Hash(proposedFile string) string {
	sum := sha256.Sum256([]byte(proposedFile))
	return hex.EncodeToString(sum[:])
}

// checked returns p as it is stored: times in UTC and to the nanosecond, the hash filled in.
func (p Proposal) checked(slug string) (Proposal, error) {
	if _, err := ParseID(string(p.ID)); err != nil {
		return p, err
	}
	if p.Bottle != slug {
		return p, fmt.Errorf("bottle %.80q is not this mailbox's %q", p.Bottle, slug)
	}
	if p.Tool == "" {
		return p, errors.New("tool is empty")
	}
	for _, s := range []string{p.Tool, p.ProposedFile, p.Justification} {
		if !utf8.ValidString(s) {
			return p, errors.New("text is not valid UTF-8")
		}
	}
	hash := Hash(p.ProposedFile)
	if p.CurrentFileHash == "" {
		p.CurrentFileHash = hash
	}
	if p.CurrentFileHash != hash {
		return p, fmt.Errorf("current_file_hash %.80q is not the SHA-256 of the proposed file, %s", p.CurrentFileHash, hash)
	}
	if p.ArrivedAt.IsZero() {
		p.ArrivedAt = time.Now()
	}
	p.ArrivedAt = p.ArrivedAt.UTC().Round(0)
	if !storable(p.ArrivedAt) {
		return p, fmt.Errorf("arrived at %v, outside the years 1 to 9999", p.ArrivedAt)
	}
	return p, nil
}

// storable tells whether t can be written as JSON again, in UTC too: another program's offset may move it out of RFC 3339's years.
func storable(t time.Time) bool {
	y := t.UTC().Year()
	return 1 <= y && y <= 9999
}

// same tells whether q asks what p asks, under the same id. When it arrived may differ between repeats.
func (p Proposal) same(q Proposal) bool {
	q.ArrivedAt = p.ArrivedAt
	return p == q
}

// checked returns r as it is stored.
func (r Response) checked() (Response, error) {
	if _, err := ParseID(string(r.ProposalID)); err != nil {
		return r, err
	}
	if !slices.Contains([]Status{Approved, Modified, Rejected}, r.Status) {
		return r, fmt.Errorf("status %.40q must be approved, modified or rejected", r.Status)
	}
	if !knownOutcome(r.Outcome) {
		return r, fmt.Errorf("outcome %.40q must be live, built, unchanged, unverified, acknowledged or empty", r.Outcome)
	}
	for _, s := range []string{r.Notes, r.FinalFile, r.Digest} {
		if !utf8.ValidString(s) {
			return r, errors.New("text is not valid UTF-8")
		}
	}
	if r.DecidedAt.IsZero() {
		r.DecidedAt = time.Now()
	}
	r.DecidedAt = r.DecidedAt.UTC().Round(0)
	if !storable(r.DecidedAt) {
		return r, fmt.Errorf("decided at %v, outside the years 1 to 9999", r.DecidedAt)
	}
	return r, nil
}

func knownOutcome(o Outcome) bool {
	return slices.Contains([]Outcome{"", Live, Built, Unchanged, Unverified, Acknowledged}, o)
}

// Equal tells whether two responses say the same; times are compared as instants.
func (r Response) Equal(o Response) bool {
	at := r.DecidedAt.Equal(o.DecidedAt)
	r.DecidedAt, o.DecidedAt = time.Time{}, time.Time{}
	return at && r == o
}

func encodeProposal(p Proposal) ([]byte, error) {
	return encode(proposalFile{
		ID: string(p.ID), BottleSlug: p.Bottle, Tool: p.Tool, ProposedFile: p.ProposedFile,
		Justification: p.Justification, CurrentFileHash: p.CurrentFileHash, ArrivedAt: p.ArrivedAt,
	})
}

func encodeResponse(r Response) ([]byte, error) {
	f := responseFile{
		ProposalID: string(r.ProposalID), Status: string(r.Status), Notes: &r.Notes,
		Outcome: string(r.Outcome), Digest: r.Digest, DecidedAt: &r.DecidedAt,
	}
	if r.FinalFile != "" {
		f.FinalFile = &r.FinalFile
	}
	return encode(f)
}

func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	if b.Len() > MaxFile {
		return nil, fmt.Errorf("%d bytes encoded, limit %d: %w", b.Len(), MaxFile, ErrTooBig)
	}
	return b.Bytes(), nil
}

// parseProposal reads the file <id>.proposal.json of the mailbox slug. Its errors hold nothing the writer wrote.
func parseProposal(data []byte, slug string, id ID) (Proposal, error) {
	var f proposalFile
	if err := decode(data, &f); err != nil {
		return Proposal{}, err
	}
	switch {
	case f.ID != string(id):
		return Proposal{}, errors.New("id is not the one in the file's name")
	case f.BottleSlug != slug:
		return Proposal{}, errors.New("bottle_slug is not the directory's name")
	case f.Tool == "":
		return Proposal{}, errors.New("tool is missing")
	case f.ArrivedAt.IsZero():
		return Proposal{}, errors.New("arrived_at is missing")
	case !storable(f.ArrivedAt):
		return Proposal{}, errors.New("arrived_at is outside the years 1 to 9999")
	case f.CurrentFileHash != Hash(f.ProposedFile):
		return Proposal{}, errors.New("current_file_hash is not the SHA-256 of proposed_file")
	}
	return Proposal{
		ID: id, Bottle: slug, Tool: f.Tool, ProposedFile: f.ProposedFile, Justification: f.Justification,
		CurrentFileHash: f.CurrentFileHash, ArrivedAt: f.ArrivedAt.UTC(),
	}, nil
}

// parseResponse reads the file <id>.response.json, last modified at mtime.
func parseResponse(data []byte, id ID, mtime time.Time) (Response, error) {
	f, err := decodeResponse(data)
	if err != nil {
		return Response{}, err
	}
	r := Response{ProposalID: id, Status: Status(f.Status)}
	if f.ProposalID != string(id) {
		return Response{}, errors.New("proposal_id is not the one in the file's name")
	}
	if !slices.Contains([]Status{Approved, Modified, Rejected}, r.Status) {
		return Response{}, errors.New("status is not approved, modified or rejected")
	}
	if f.Notes != nil {
		r.Notes = *f.Notes
	}
	if f.FinalFile != nil {
		r.FinalFile = *f.FinalFile
	}
	if o := Outcome(f.Outcome); knownOutcome(o) {
		r.Outcome = o
	}
	r.Digest = f.Digest
	if f.DecidedAt != nil {
		r.DecidedAt = *f.DecidedAt
	}
	if r.DecidedAt.IsZero() || !storable(r.DecidedAt) {
		r.DecidedAt = mtime
		if now := time.Now(); now.Before(mtime) || !storable(mtime) {
			r.DecidedAt = now
		}
	}
	r.DecidedAt = r.DecidedAt.UTC().Round(0)
	return r, nil
}

func decodeResponse(data []byte) (f responseFile, err error) {
	if decode(data, &f) == nil { // as the desk's are, and the agent waits
		return f, nil
	}
	var in lenient
	if err := decode(data, &in); err != nil {
		return f, err
	}
	f = responseFile{ProposalID: in.ProposalID, Status: in.Status, Notes: in.Notes, FinalFile: in.FinalFile}
	if !parsed(in.Outcome, &f.Outcome) {
		f.Outcome = ""
	}
	if !parsed(in.Digest, &f.Digest) {
		f.Digest = ""
	}
	if !parsed(in.DecidedAt, &f.DecidedAt) {
		f.DecidedAt = nil
	}
	return f, nil
}

// parsed is for what may be missing.
func parsed(data json.RawMessage, v any) bool { return len(data) > 0 && json.Unmarshal(data, v) == nil }

func decode(data []byte, v any) error {
	if len(data) > MaxFile {
		return fmt.Errorf("over %d bytes", MaxFile)
	}
	if !utf8.Valid(data) {
		return errors.New("not valid UTF-8")
	}
	if err := json.Unmarshal(data, v); err != nil {
		if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
			return fmt.Errorf("%s has the wrong type", e.Field)
		}
		if e, ok := errors.AsType[*json.SyntaxError](err); ok {
			return fmt.Errorf("not valid JSON at byte %d", e.Offset)
		}
		return errors.New("a field does not parse")
	}
	return nil
}

// The names in a mailbox.
const (
	proposalSuffix = ".proposal.json"
	responseSuffix = ".response.json"
	lateSuffix     = ".late.json"
	undoneSuffix   = ".undone"
	tempSuffix     = ".tmp"
	processed      = "processed"
	presenceFile   = "presence.json"
	lockFile       = ".lock"
)

func proposalName(id ID) string { return string(id) + proposalSuffix }
func responseName(id ID) string { return string(id) + responseSuffix }
func undoneName(id ID) string   { return string(id) + undoneSuffix }
func archived(name string) string {
	return processed + "/" + name
}

// splitName tells which id a name stands for and in what role (one of the suffixes). Names that are nobody's
// have no role; a name with a role and no valid id is bad.
func splitName(name string) (id ID, role string) {
	stem, role := cutRole(name)
	if role != "" {
		id, _ = ParseID(stem)
	}
	return id, role
}

func cutRole(name string) (stem, role string) {
	for _, s := range []string{proposalSuffix, responseSuffix, lateSuffix} {
		if stem, ok := strings.CutSuffix(name, s); ok {
			return stem, s
		}
	}
	return "", ""
}
