package operator

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bot-bottle/supervise/internal/safetext"
)

func newLedger(t *testing.T) *Ledger {
	t.Helper()
	return &Ledger{dir: t.TempDir()}
}

func appendN(t *testing.T, l *Ledger, n int) {
	t.Helper()
	for i := range n {
		e := LedgerEntry{Event: EventDecided, Bottle: "web", ID: "x", Attempt: i + 1, Summary: safetext.Untrusted(fmt.Sprintf("entry %d \x1b[31m\u202e", i)), At: time.Unix(1700000000+int64(i), 123456789)}
		if err := l.Append(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
}

func entries(t *testing.T, l *Ledger) (out []LedgerEntry) {
	t.Helper()
	for e, err := range l.backwards() {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, e)
	}
	return out
}

func verify(t *testing.T, l *Ledger, head string) *AuditReport {
	t.Helper()
	r, err := l.Verify(t.Context(), head)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestLedgerChain(t *testing.T) {
	l := newLedger(t)
	if r := verify(t, l, ""); !r.OK() || r.Entries != 0 || r.Head != "" {
		t.Errorf("Verify of no ledger = %+v, want OK and empty", r)
	}
	appendN(t, l, 300) // several of backwards' chunks
	r := verify(t, l, "")
	if !r.OK() || r.Entries != 300 {
		t.Fatalf("Verify = %+v, want OK with 300 entries", r)
	}
	got := entries(t, l)
	if len(got) != 300 {
		t.Fatalf("backwards yields %d entries, want 300", len(got))
	}
	for i, e := range got {
		if e.Seq != int64(300-i) {
			t.Fatalf("entry %d has seq %d, want %d", i, e.Seq, 300-i)
		}
	}
	if got[0].Hash != r.Head {
		t.Errorf("newest entry has hash %s, want the head %s", got[0].Hash, r.Head)
	}
	if raw := got[0].Summary.Raw(); raw != "entry 299 \x1b[31m\u202e" {
		t.Errorf("summary came back as %q", raw)
	}
	b, err := os.ReadFile(l.path())
	if err != nil {
		t.Fatal(err)
	}
	if bytes.ContainsAny(b, "\x1b\u202e") {
		t.Error("the ledger holds raw control or bidi characters, so that cat of it is not safe")
	}
}

// TestLedgerOfInvalidText: a line holds whatever bytes a terminal, a host name or a path had, as UTF-8, and verifies.
func TestLedgerOfInvalidText(t *testing.T) {
	l := newLedger(t)
	e := LedgerEntry{Event: EventDecided, Bottle: "web", By: "m\xfcller@host", Notes: "caf\xe9", Error: "\xff\xff", Targets: []LedgerTarget{{Path: "/b\xfccher"}}}
	if err := l.Append(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	appendN(t, l, 1)
	if r := verify(t, l, ""); !r.OK() || r.Entries != 2 {
		t.Errorf("Verify = %+v, want OK with 2 entries", r)
	}
	if got := entries(t, l)[1]; got.By != "m\ufffdller@host" || got.Notes != "caf\ufffd" {
		t.Errorf("the line is %+v", got)
	}
}

func TestLedgerShowsTampering(t *testing.T) {
	lines := func(b []byte) [][]byte { return bytes.SplitAfter(bytes.TrimSuffix(b, []byte("\n")), []byte("\n")) }
	tests := []struct {
		name   string
		tamper func(b []byte) []byte
		want   string
	}{
		{"edited", func(b []byte) []byte { return bytes.Replace(b, []byte("entry 4"), []byte("entry X"), 1) }, "line 5 was edited"},
		{"edited with spaces only", func(b []byte) []byte { return bytes.Replace(b, []byte(`"seq":3,`), []byte(`"seq": 3,`), 1) }, "line 3 was edited"},
		{"a key repeated", func(b []byte) []byte { return bytes.Replace(b, []byte(`{"seq":3,`), []byte(`{"seq":3,"seq":3,`), 1) }, "line 3 was edited"},
		{"a key added", func(b []byte) []byte { return bytes.Replace(b, []byte(`{"seq":3,`), []byte(`{"x":3,"seq":3,`), 1) }, "line 3 does not parse"},
		{"removed", func(b []byte) []byte { l := lines(b); return bytes.Join(slices.Delete(l, 5, 6), nil) }, "line 6 does not follow line 5"},
		{"moved", func(b []byte) []byte { l := lines(b); l[2], l[3] = l[3], l[2]; return bytes.Join(l, nil) }, "line 3 does not follow line 2"},
		{"removed, and the rest chained again", func(b []byte) []byte { l := lines(b); return rechained(t, slices.Delete(l, 5, 6)) }, "line 6 has number 7, not 6"},
		{"first removed", func(b []byte) []byte { return bytes.Join(lines(b)[1:], nil) }, "line 1 does not follow line 0"},
		{"not a ledger", func(b []byte) []byte { return append([]byte("\x1b[31mhello\n"), b...) }, "line 1 does not parse"},
		{"a huge line", func(b []byte) []byte { return append(bytes.Repeat([]byte("x"), 2*maxLine), b...) }, "line 1 is over"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := newLedger(t)
			appendN(t, l, 10)
			b, err := os.ReadFile(l.path())
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(l.path(), tt.tamper(b), 0o600); err != nil {
				t.Fatal(err)
			}
			if r := verify(t, l, ""); !strings.HasPrefix(r.Problem, tt.want) {
				t.Errorf("Verify says %q, want %q", r.Problem, tt.want)
			}
		})
	}
}

// rechained makes a chain of lines, as somebody who knows how it is made would.
func rechained(t *testing.T, lines [][]byte) (out []byte) {
	t.Helper()
	prev := ""
	for _, line := range lines {
		var e LedgerEntry
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatal(err)
		}
		e.Prev = prev
		e.Hash = e.sum()
		prev = e.Hash
		b, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		out = append(append(out, b...), '\n')
	}
	return out
}

func TestLedgerHeadShowsTruncation(t *testing.T) {
	l := newLedger(t)
	appendN(t, l, 5)
	head := verify(t, l, "").Head
	appendN(t, l, 2)
	if r := verify(t, l, head); !r.OK() {
		t.Errorf("Verify with an older head says %q, want OK", r.Problem)
	}
	b, err := os.ReadFile(l.path())
	if err != nil {
		t.Fatal(err)
	}
	cut := bytes.Join(bytes.SplitAfter(b, []byte("\n"))[:3], nil)
	if err := os.WriteFile(l.path(), cut, 0o600); err != nil {
		t.Fatal(err)
	}
	if r := verify(t, l, ""); !r.OK() {
		t.Errorf("a truncated ledger without its head says %q: nothing in it shows that", r.Problem)
	}
	if r := verify(t, l, head); r.OK() {
		t.Error("a truncated ledger passes with its former head")
	}
	if err := os.Remove(l.path()); err != nil {
		t.Fatal(err)
	}
	if r := verify(t, l, head); r.OK() {
		t.Error("a missing ledger passes with its former head")
	}
}

// A crash can cut the last line anywhere; what is before it stays, and the cut is noted.
func TestLedgerTornLastLine(t *testing.T) {
	l := newLedger(t)
	appendN(t, l, 3)
	whole, err := os.ReadFile(l.path())
	if err != nil {
		t.Fatal(err)
	}
	start := bytes.LastIndexByte(whole[:len(whole)-1], '\n') + 1
	for cut := start; cut < len(whole); cut += 13 {
		if err := os.WriteFile(l.path(), whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		if r := verify(t, l, ""); !r.OK() || r.Entries != 2 || r.Torn != int64(cut-start) {
			t.Fatalf("cut at %d: Verify = %+v, want OK, 2 entries, %d torn", cut, r, cut-start)
		}
		if n := len(entries(t, l)); n != 2 {
			t.Fatalf("cut at %d: backwards yields %d entries, want 2", cut, n)
		}
		if err := l.Append(t.Context(), LedgerEntry{Event: EventApplied}); err != nil {
			t.Fatal(err)
		}
		want := []string{EventApplied, EventTorn, EventDecided, EventDecided}
		if cut == start {
			want = slices.Delete(want, 1, 2) // nothing was torn
		}
		var got []string
		for _, e := range entries(t, l) {
			got = append(got, e.Event)
		}
		if !slices.Equal(got, want) {
			t.Errorf("cut at %d: events %v, want %v", cut, got, want)
		}
		if r := verify(t, l, ""); !r.OK() {
			t.Errorf("cut at %d, then appended: %s", cut, r.Problem)
		}
	}
}

func TestLedgerEnsureAppendsOnce(t *testing.T) {
	l := newLedger(t)
	e := LedgerEntry{Event: EventApplied, Bottle: "web", ID: "a", Attempt: 1}
	for range 3 {
		if err := l.Ensure(t.Context(), time.Time{}, e); err != nil {
			t.Fatal(err)
		}
	}
	for _, other := range []LedgerEntry{{Event: EventFailed, Bottle: "web", ID: "a", Attempt: 1}, {Event: EventApplied, Bottle: "web", ID: "a", Attempt: 2}, {Event: EventApplied, Bottle: "db", ID: "a", Attempt: 1}} {
		if err := l.Ensure(t.Context(), time.Now(), other); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(entries(t, l)); n != 4 {
		t.Errorf("ledger has %d entries, want 4", n)
	}
}

// TestLedgerEnsureLooksNoFurtherBack than what can have written the entry.
func TestLedgerEnsureLooksNoFurtherBack(t *testing.T) {
	l := newLedger(t)
	e := LedgerEntry{Event: EventForeign, Bottle: "web", ID: "a", At: time.Now().Add(-48 * time.Hour)}
	if err := l.Append(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	e.At = time.Time{}
	for _, tt := range []struct {
		since time.Time
		want  int
	}{{time.Now().Add(-48 * time.Hour), 1}, {time.Now(), 2}, {time.Now(), 2}} {
		if err := l.Ensure(t.Context(), tt.since, e, e); err != nil {
			t.Fatal(err)
		}
		if n := len(entries(t, l)); n != tt.want {
			t.Errorf("since %v: ledger has %d entries, want %d", tt.since, n, tt.want)
		}
	}
}

func TestLedgerManyWriters(t *testing.T) {
	dir := t.TempDir()
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			l := &Ledger{dir: dir} // as another process would
			for i := range 10 {
				if err := l.Append(t.Context(), LedgerEntry{Event: EventDecided, Attempt: w*10 + i}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if r := verify(t, &Ledger{dir: dir}, ""); !r.OK() || r.Entries != 80 {
		t.Errorf("Verify = %+v, want OK with 80 entries", r)
	}
	if _, err := os.Stat(filepath.Join(dir, "ledger.jsonl")); err != nil {
		t.Error(err)
	}
}

func FuzzLedgerRead(f *testing.F) {
	l := &Ledger{dir: f.TempDir()}
	if err := l.Append(f.Context(), LedgerEntry{Event: EventDecided}); err != nil {
		f.Fatal(err)
	}
	b, err := os.ReadFile(l.path())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte("\n\n"))
	f.Add([]byte(`{"seq":1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		l := newLedger(t)
		if err := os.WriteFile(l.path(), data, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := l.Verify(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		n := int64(0)
		for _, err := range l.backwards() {
			if err == nil {
				n++
			}
		}
		if r.OK() && n != r.Entries {
			t.Errorf("Verify counts %d entries, backwards %d", r.Entries, n)
		}
		err = l.Append(t.Context(), LedgerEntry{Event: EventApplied})
		if !r.OK() {
			return
		}
		if err != nil {
			t.Fatalf("Append to a good ledger = %v", err)
		}
		if r2, err := l.Verify(t.Context(), ""); err != nil || !r2.OK() {
			t.Errorf("a good ledger is bad after Append: %+v, %v", r2, err)
		}
	})
}
