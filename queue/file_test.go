package queue

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/jsonschema-go/jsonschema"
)

const (
	testID  = ID("0197f3b2-6d1e-7c3a-9b58-3f6f0a2c4d1e")
	otherID = ID("0197f3b2-6d1e-7c3a-9b58-3f6f0a2c4d1f")
)

var testTime = time.Date(2026, 3, 1, 12, 30, 0, 5000, time.UTC)

func testProposal() Proposal {
	return Proposal{
		ID: testID, Bottle: "web", Tool: "pipelock-block", ProposedFile: "https://example.com/a?b&c=<é>\n",
		Justification: "refused", CurrentFileHash: Hash("https://example.com/a?b&c=<é>\n"), ArrivedAt: testTime,
	}
}

// TestStored freezes the two formats: a change here is one that yesterday's files and other programs would notice.
func TestStored(t *testing.T) {
	p, err := encodeProposal(testProposal())
	if err != nil {
		t.Fatal(err)
	}
	wantP := `{
  "id": "0197f3b2-6d1e-7c3a-9b58-3f6f0a2c4d1e",
  "bottle_slug": "web",
  "tool": "pipelock-block",
  "proposed_file": "https://example.com/a?b&c=<é>\n",
  "justification": "refused",
  "current_file_hash": "719327dcc5d51938c8feaf09a863931a62813dbec119664fa91e015afa49225e",
  "arrived_at": "2026-03-01T12:30:00.000005Z"
}
`
	if diff := cmp.Diff(wantP, string(p)); diff != "" {
		t.Errorf("proposal mismatch (-want +got):\n%s", diff)
	}
	r, err := encodeResponse(Response{ProposalID: testID, Status: Modified, FinalFile: "x", Outcome: Live, Digest: "d", DecidedAt: testTime})
	if err != nil {
		t.Fatal(err)
	}
	wantR := `{
  "proposal_id": "0197f3b2-6d1e-7c3a-9b58-3f6f0a2c4d1e",
  "status": "modified",
  "notes": "",
  "final_file": "x",
  "outcome": "live",
  "digest": "d",
  "decided_at": "2026-03-01T12:30:00.000005Z"
}
`
	if diff := cmp.Diff(wantR, string(r)); diff != "" {
		t.Errorf("response mismatch (-want +got):\n%s", diff)
	}
}

func TestHash(t *testing.T) {
	if got, want := Hash("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"; got != want {
		t.Errorf("Hash(abc) = %s, want %s", got, want)
	}
}

func resolve(t testing.TB, schema []byte) *jsonschema.Resolved {
	t.Helper()
	var s jsonschema.Schema
	if err := json.Unmarshal(schema, &s); err != nil {
		t.Fatal(err)
	}
	r, err := s.Resolve(nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func validates(t testing.TB, s *jsonschema.Resolved, data []byte) error {
	t.Helper()
	var v any
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	return s.Validate(v)
}

// TestSchemas checks that the published schemas take what we write, and agree with the readers on what others may.
func TestSchemas(t *testing.T) {
	ps, rs := resolve(t, ProposalSchema), resolve(t, ResponseSchema)
	data, err := encodeProposal(testProposal())
	if err != nil {
		t.Fatal(err)
	}
	if err := validates(t, ps, data); err != nil {
		t.Errorf("a proposal as we write it: %v", err)
	}
	for _, status := range []Status{Approved, Modified, Rejected} {
		for _, outcome := range []Outcome{"", Live, Built, Unchanged, Unverified, Acknowledged} {
			data, err := encodeResponse(Response{ProposalID: testID, Status: status, Outcome: outcome, DecidedAt: testTime})
			if err != nil {
				t.Fatal(err)
			}
			if err := validates(t, rs, data); err != nil {
				t.Errorf("a response as we write it: %v\n%s", err, data)
			}
		}
	}
	for name, tt := range responses {
		if tt.bare {
			continue // outside what the schema promises; the reader is lenient
		}
		var v any
		if json.Unmarshal([]byte(tt.data), &v) != nil {
			continue
		}
		if err := rs.Validate(v); (err == nil) != (tt.bad == "") && tt.bad != "proposal_id is not the one in the file's name" {
			t.Errorf("%s: schema says %v, the reader %q", name, err, tt.bad)
		}
	}
}

// responses are what a foreign operator may write; bad is why it is refused.
var responses = map[string]struct {
	data string
	want Response
	bad  string
	bare bool // the reader takes it, the schema does not
}{
	"the four": {
		data: `{"proposal_id": "0197f3b2-6d1e-7c3a-9b58-3f6f0a2c4d1e", "status": "approved", "notes": "go", "final_file": "f"}`,
		want: Response{ProposalID: testID, Status: Approved, Notes: "go", FinalFile: "f", DecidedAt: testTime},
	},
	"nulls": {
		data: `{"proposal_id": "0197f3b2-6d1e-7c3a-9b58-3f6f0a2c4d1e", "status": "rejected", "notes": null, "final_file": null, "outcome": null, "digest": null, "decided_at": null}`,
		want: Response{ProposalID: testID, Status: Rejected, DecidedAt: testTime},
	},
	"everything, and more": {
		data: `{"x": [1], "proposal_id": "0197f3b2-6d1e-7c3a-9b58-3f6f0a2c4d1e", "status": "modified", "notes": "", "final_file": "f", "outcome": "live", "digest": "d", "decided_at": "2026-03-01T13:30:00+01:00"}`,
		want: Response{ProposalID: testID, Status: Modified, FinalFile: "f", Outcome: Live, Digest: "d", DecidedAt: time.Date(2026, 3, 1, 12, 30, 0, 0, time.UTC)},
	},
	"the optional ones wrong": {
		data: `{"proposal_id": "0197f3b2-6d1e-7c3a-9b58-3f6f0a2c4d1e", "status": "approved", "notes": "", "final_file": "", "outcome": "splendid", "digest": 7, "decided_at": 1772368200}`,
		want: Response{ProposalID: testID, Status: Approved, DecidedAt: testTime}, bare: true,
	},
	"decided before the year 1": {
		data: `{"proposal_id": "0197f3b2-6d1e-7c3a-9b58-3f6f0a2c4d1e", "status": "approved", "notes": "", "final_file": "", "decided_at": "0000-01-01T00:00:00+14:00"}`,
		want: Response{ProposalID: testID, Status: Approved, DecidedAt: testTime},
	},
	"decided after the year 9999": {
		data: `{"proposal_id": "0197f3b2-6d1e-7c3a-9b58-3f6f0a2c4d1e", "status": "approved", "notes": "", "final_file": "", "decided_at": "9999-12-31T23:59:59-14:00"}`,
		want: Response{ProposalID: testID, Status: Approved, DecidedAt: testTime},
	},
	"two only": {
		data: `{"proposal_id": "0197f3b2-6d1e-7c3a-9b58-3f6f0a2c4d1e", "status": "approved"}`,
		want: Response{ProposalID: testID, Status: Approved, DecidedAt: testTime}, bare: true,
	},
	"empty":          {data: ``, bad: "not valid JSON at byte 0"},
	"cut":            {data: `{"proposal_id": "0197f3b2-6d1e-7c3a-9b5`, bad: "not valid JSON at byte 39"},
	"two values":     {data: `{"proposal_id": "0197f3b2-6d1e-7c3a-9b58-3f6f0a2c4d1e", "status": "approved"} {}`, bad: "not valid JSON at byte 79"},
	"not an object":  {data: `[]`, bad: " has the wrong type"},
	"null":           {data: `null`, bad: "proposal_id is not the one in the file's name"},
	"another's id":   {data: `{"proposal_id": "0197f3b2-6d1e-7c3a-9b58-3f6f0a2c4d1f", "status": "approved", "notes": null, "final_file": null}`, bad: "proposal_id is not the one in the file's name"},
	"no status":      {data: `{"proposal_id": "0197f3b2-6d1e-7c3a-9b58-3f6f0a2c4d1e", "notes": null, "final_file": null}`, bad: "status is not approved, modified or rejected"},
	"unknown status": {data: `{"proposal_id": "0197f3b2-6d1e-7c3a-9b58-3f6f0a2c4d1e", "status": "Approved", "notes": null, "final_file": null}`, bad: "status is not approved, modified or rejected"},
	"notes a number": {data: `{"proposal_id": "0197f3b2-6d1e-7c3a-9b58-3f6f0a2c4d1e", "status": "approved", "notes": 7, "final_file": null}`, bad: "notes has the wrong type"},
	"not UTF-8":      {data: "{\"proposal_id\": \"0197f3b2-6d1e-7c3a-9b58-3f6f0a2c4d1e\", \"status\": \"approved\", \"notes\": \"\xff\"}", bad: "not valid UTF-8"},
	"too big":        {data: `{"notes": "` + strings.Repeat("x", MaxFile) + `"}`, bad: "over 2097152 bytes"},
}

func TestParseResponse(t *testing.T) {
	for name, tt := range responses {
		t.Run(name, func(t *testing.T) {
			got, err := parseResponse([]byte(tt.data), testID, testTime)
			if tt.bad != "" {
				if err == nil || err.Error() != tt.bad {
					t.Errorf("error = %v, want %q", err, tt.bad)
				}
				return
			}
			if diff := cmp.Diff(tt.want, got); err != nil || diff != "" {
				t.Errorf("error %v, mismatch (-want +got):\n%s", err, diff)
			}
		})
	}
}

// TestParseResponseWrittenWhen: a file system keeps times that JSON cannot hold.
func TestParseResponseWrittenWhen(t *testing.T) {
	for _, mtime := range []time.Time{time.Date(-5, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(20_000, 1, 1, 0, 0, 0, 0, time.UTC)} {
		before := time.Now()
		r, err := parseResponse([]byte(responses["two only"].data), testID, mtime)
		if err != nil || r.DecidedAt.Before(before.Round(0)) || r.DecidedAt.After(time.Now()) {
			t.Errorf("last written at %v: decided at %v, %v; want now", mtime, r.DecidedAt, err)
		}
	}
}

func TestParseProposal(t *testing.T) {
	edit := func(old, new string) string {
		data, err := encodeProposal(testProposal())
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(data, []byte(old)) {
			t.Fatalf("%q is not in the file", old)
		}
		return strings.Replace(string(data), old, new, 1)
	}
	for _, tt := range []struct {
		name, data, bad string
	}{
		{"as written", edit("", ""), ""},
		{"one field more", edit(`"id"`, `"x": 1, "id"`), ""},
		{"another id", edit("4d1e", "4d1f"), "id is not the one in the file's name"},
		{"another's slug", edit(`"web"`, `"other"`), "bottle_slug is not the directory's name"},
		{"no tool", edit(`"pipelock-block"`, `""`), "tool is missing"},
		{"another hash", edit(`"current_file_hash": "`, `"current_file_hash": "0`), "current_file_hash is not the SHA-256 of proposed_file"},
		{"another file", edit("example.com", "example.org"), "current_file_hash is not the SHA-256 of proposed_file"},
		{"no time", edit(`"arrived_at"`, `"arrived"`), "arrived_at is missing"},
		{"a time of its own", edit("2026-03-01T12:30:00.000005Z", "yesterday"), "a field does not parse"},
		{"before the year 1", edit("2026-03-01T12:30:00.000005Z", "0000-01-01T00:00:00+14:00"), "arrived_at is outside the years 1 to 9999"},
		{"in the year 0", edit("2026-03-01T12:30:00.000005Z", "0000-12-31T23:59:59Z"), "arrived_at is outside the years 1 to 9999"},
		{"after the year 9999", edit("2026-03-01T12:30:00.000005Z", "9999-12-31T23:59:59-14:00"), "arrived_at is outside the years 1 to 9999"},
		{"cut", edit("\n}\n", ""), "not valid JSON at byte 334"},
		{"not UTF-8", edit("refused", "\xff"), "not valid UTF-8"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parseProposal([]byte(tt.data), "web", testID)
			if tt.bad != "" {
				if err == nil || strings.TrimRight(err.Error(), "0123456789") != strings.TrimRight(tt.bad, "0123456789") {
					t.Errorf("error = %v, want %q", err, tt.bad)
				}
				return
			}
			if diff := cmp.Diff(testProposal(), got); err != nil || diff != "" {
				t.Errorf("error %v, mismatch (-want +got):\n%s", err, diff)
			}
		})
	}
}

func TestBadErrorEscapes(t *testing.T) {
	for name, want := range map[string]string{
		"a.proposal.json":              "web/a.proposal.json: why",
		"\x1b[2J\u202eb.proposal.json": `web/"\x1b[2J\u202eb.proposal.json": why`,
		"a b\nc":                       `web/"a b\nc": why`,
	} {
		if got := (&BadError{Bottle: "web", Name: name, Reason: "why"}).Error(); got != want {
			t.Errorf("Error() = %s, want %s", got, want)
		}
	}
}

func TestParseID(t *testing.T) {
	for _, bad := range []string{
		"", "x", "..", strings.ToUpper(string(testID)), "{" + string(testID) + "}", "urn:uuid:" + string(testID),
		string(testID) + "\n", strings.ReplaceAll(string(testID), "-", ""), "0b8f8f3e-94a7-4b4e-9c4f-0a4f3a5f4f4f",
		"0197f3b2-6d1e-7c3a-cb58-3f6f0a2c4d1e",
	} {
		if id, err := ParseID(bad); err == nil {
			t.Errorf("ParseID(%q) = %s, want an error", bad, id)
		}
	}
	for range 100 {
		if id := NewID(); id != mustParse(t, string(id)) {
			t.Errorf("NewID = %s does not parse to itself", id)
		}
	}
}

func mustParse(t *testing.T, s string) ID {
	t.Helper()
	id, err := ParseID(s)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// seeds adds the files of testdata/seed with the suffix.
func seeds(f *testing.F, suffix string) {
	f.Helper()
	names, err := filepath.Glob("testdata/seed/*" + suffix)
	if err != nil || len(names) == 0 {
		f.Fatalf("no seeds: %v", err)
	}
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
}

func FuzzParseProposal(f *testing.F) {
	seeds(f, proposalSuffix)
	schema := resolve(f, ProposalSchema)
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := parseProposal(data, "web", testID)
		if err != nil {
			return
		}
		again, err := encodeProposal(p)
		if err != nil {
			return // grew past the limit
		}
		if q, err := parseProposal(again, "web", testID); err != nil || q != p {
			t.Errorf("written and read again: %+v, %v; want %+v", q, err, p)
		}
		if err := validates(t, schema, again); err != nil {
			t.Errorf("written again it does not fit the schema: %v", err)
		}
	})
}

func FuzzParseResponse(f *testing.F) {
	seeds(f, responseSuffix)
	for _, tt := range responses {
		if len(tt.data) < 1024 {
			f.Add([]byte(tt.data))
		}
	}
	schema := resolve(f, ResponseSchema)
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parseResponse(data, testID, testTime)
		if err != nil {
			return
		}
		if _, err := r.checked(); err != nil {
			t.Errorf("read %+v, which may not be written: %v", r, err)
		}
		again, err := encodeResponse(r)
		if err != nil {
			return
		}
		if q, err := parseResponse(again, testID, testTime); err != nil || !q.Equal(r) {
			t.Errorf("written and read again: %+v, %v; want %+v", q, err, r)
		}
		if err := validates(t, schema, again); err != nil {
			t.Errorf("written again it does not fit the schema: %v", err)
		}
	})
}

func TestCheckSlug(t *testing.T) {
	for slug, ok := range map[string]bool{
		"a": true, "0": true, "a-": true, "web-2": true, strings.Repeat("a", 63): true,
		"": false, "-a": false, strings.Repeat("a", 64): false, "A": false, "a.b": false, "..": false, "a/b": false, "a\n": false, "é": false, "a b": false,
	} {
		if err := CheckSlug(slug); (err == nil) != ok {
			t.Errorf("CheckSlug(%q) = %v, want ok %v", slug, err, ok)
		}
	}
}
