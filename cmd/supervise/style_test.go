package main

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bot-bottle/supervise/internal/operator"
	"github.com/bot-bottle/supervise/internal/safetext"
	"github.com/bot-bottle/supervise/queue"
)

func TestAge(t *testing.T) {
	for _, tt := range []struct {
		d    time.Duration
		want string
	}{
		{-time.Second, "0s"},
		{400 * time.Millisecond, "0s"},
		{59*time.Second + 999*time.Millisecond, "59s"},
		{time.Minute, "1m"},
		{59*time.Minute + 59*time.Second, "59m"},
		{3*time.Hour + 12*time.Minute, "3h"},
		{47*time.Hour + 59*time.Minute, "47h"},
		{48 * time.Hour, "2d"},
		{100*24*time.Hour + 23*time.Hour, "100d"},
	} {
		if got := age(tt.d); got != tt.want {
			t.Errorf("age(%v) = %q, want %q", tt.d, got, tt.want)
		}
	}
}

func TestCut(t *testing.T) {
	for _, tt := range []struct {
		s    string
		most int
		want string
	}{
		{"plain", 5, "plain"},
		{"plainer", 5, "plai…"},
		{"日本語", 6, "日本語"},
		{"日本語", 5, "日本…"},
		{"日本語", 4, "日…"},
		{"", 3, ""},
	} {
		if got := cut(tt.s, tt.most); got != tt.want {
			t.Errorf("cut(%q, %d) = %q, want %q", tt.s, tt.most, got, tt.want)
		}
	}
}

func TestRows(t *testing.T) {
	for _, tt := range []struct {
		name  string
		text  string
		width int
		words bool
		want  []string
	}{
		{"no terminal", "漢\t" + strings.Repeat("a", 200), 0, false, []string{"漢\t" + strings.Repeat("a", 200)}},
		{"fits", "abcdefghij", 12, false, []string{"abcdefghij"}},
		{"empty", "", 12, false, []string{""}},
		{"hard", "abc def ghi jkl", 12, false, []string{"abc def gh", "i jkl"}},
		{"words", "abc def ghi jkl", 12, true, []string{"abc def ", "ghi jkl"}},
		{"blanks", "a" + strings.Repeat(" ", 12) + "b", 12, false, []string{"a         ", "   b"}},
		{"many blanks", "a" + strings.Repeat(" ", 6000) + "b", 22, false, []string{"a␠×6000␠b"}},
		{"wide", "漢字漢字漢字", 13, false, []string{"漢字漢字漢", "字"}},
		{"marks stay", "aaaaaaaae\u0301\u0301", 12, false, []string{"aaaaaaaa", "e\u0301\u0301"}},
		{"flags", "🇩🇪🇫🇷🇩🇪", 12, false, []string{"🇩🇪🇫", "🇷🇩🇪"}},
		{"tabs", "a\tb\tc", 12, false, []string{"a       b ", "      c"}},
		{"colour", "\x1b[1mabcdefghijkl\x1b[0mmn", 12, false, []string{"\x1b[1mabcdefghij\x1b[0m", "\x1b[1mkl\x1b[0mmn"}},
		{"too narrow", "abcdefghij", 3, false, []string{"abcdefgh", "ij"}},
	} {
		if diff := cmp.Diff(tt.want, style{width: tt.width}.rows(tt.text, 2, tt.words)); diff != "" {
			t.Errorf("%s: rows (-want +got):\n%s", tt.name, diff)
		}
	}
}

// TestTable: what is asked for is never squeezed out by a long name, and no row goes on in column 0.
// TestTableOfFiles: where names stand first and some rows only go on with the one above, as in bottle list.
func TestTableOfFiles(t *testing.T) {
	const slug = "frontend-nightly-regression-eu-central-1-with-a-very-long-name-a"
	table := table{style: style{width: 80}, head: []string{"BOTTLE", "OPEN", "SIDECAR", "AN APPROVAL CHANGES"}, rows: []row{
		{cells: []string{slug, "1", "no mailbox", "/srv/a/routes.yaml"}},
		{cells: []string{"web", "12", "running", "/srv/web/routes.yaml"}},
		{cells: []string{"", "", "", "/srv/web/Dockerfile"}},
	}}
	pad := strings.Repeat(" ", len(slug))
	want := `BOTTLE` + pad[4:] + `OPEN
↳ SIDECAR
  AN APPROVAL CHANGES
` + slug + `  1
↳ no mailbox
  /srv/a/routes.yaml
web` + pad[1:] + `12
↳ running
  /srv/web/routes.yaml
  /srv/web/Dockerfile
`
	if diff := cmp.Diff(want, table.String()); diff != "" {
		t.Errorf("mismatch (-want +got):\n%s", diff)
	}
}

func TestTable(t *testing.T) {
	const slug = "frontend-nightly-regression-eu-central-1-with-a-very-long-name-a"
	rows := func(slug string) []row {
		return []row{
			{cells: []string{"0197f3b2-6d01", slug, "egress-block", "3m", "waiting", "allow packages.acme.test /react /react-dom"}, under: []string{"DANGER: credential"}},
			{cells: []string{"0197f3b2-6d02", "web", "capability-block", "12m", "away", "replace the Dockerfile"}},
		}
	}
	for _, tt := range []struct {
		name  string
		width int
		slug  string
		want  string
	}{
		{"no terminal", 0, slug, `
ID             BOTTLE                                                            TOOL              AGE  AGENT    ASKS TO
0197f3b2-6d01  ` + slug + `  egress-block      3m   waiting  allow packages.acme.test /react /react-dom
  DANGER: credential
0197f3b2-6d02  web                                                               capability-block  12m  away     replace the Dockerfile
`},
		{"wide", 160, slug, `
ID             BOTTLE                                                            TOOL              AGE  AGENT    ASKS TO
0197f3b2-6d01  ` + slug + `  egress-block      3m   waiting  allow packages.acme.test /react /react-dom
  DANGER: credential
0197f3b2-6d02  web                                                               capability-block  12m  away     replace the Dockerfile
`},
		{"room for a short name", 116, slug, `
ID             BOTTLE                    TOOL              AGE  AGENT    ASKS TO
0197f3b2-6d01  frontend-nig…long-name-a  egress-block      3m   waiting  allow packages.acme.test /react /react-dom
  DANGER: credential
0197f3b2-6d02  web                       capability-block  12m  away     replace the Dockerfile
`},
		{"narrow", 80, slug, `
ID             BOTTLE                    TOOL              AGE  AGENT
  ASKS TO
0197f3b2-6d01  frontend-nig…long-name-a  egress-block      3m   waiting
  allow packages.acme.test /react /react-dom
  DANGER: credential
0197f3b2-6d02  web                       capability-block  12m  away
  replace the Dockerfile
`},
		{"narrow, with a name that fits", 80, "build-farm-eu-central-1-small", `
ID             BOTTLE                         TOOL              AGE  AGENT
  ASKS TO
0197f3b2-6d01  build-farm-eu-central-1-small  egress-block      3m   waiting
  allow packages.acme.test /react /react-dom
  DANGER: credential
0197f3b2-6d02  web                            capability-block  12m  away
  replace the Dockerfile
`},
		{"very narrow", 42, slug, `
ID             BOTTLE
↳ TOOL              AGE  AGENT
  ASKS TO
0197f3b2-6d01  frontend-nig…long-name-a
↳ egress-block      3m   waiting
  allow packages.acme.test /react /react-…
  DANGER: credential
0197f3b2-6d02  web
↳ capability-block  12m  away
  replace the Dockerfile
`},
	} {
		table := table{style: style{width: tt.width}, head: []string{"ID", "BOTTLE", "TOOL", "AGE", "AGENT", "ASKS TO"}, middle: 1, rows: rows(tt.slug)}
		if diff := cmp.Diff(strings.TrimPrefix(tt.want, "\n"), table.String()); diff != "" {
			t.Errorf("%s: table (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestDismissQuestion(t *testing.T) {
	ref := operator.Ref{Bottle: "web", ID: "0197f3b2-6d01-7c3a-9b58-3f6f0a2c4d01"}
	for _, tt := range []struct {
		n, waiting int
		want       string
	}{
		{1, 1, "An agent is waiting for the answer to 0197f3b2-6d01-7c3a-9b58-3f6f0a2c4d01 of bottle web. Dismiss it?"},
		{2, 0, "Dismiss 2, though no agent waits for them at this moment?"},
		{2, 2, "Dismiss 2, for each of which an agent is waiting?"},
		{5, 3, "Dismiss 5, for 3 of which an agent is waiting?"},
		{5, 1, "Dismiss 5, for 1 of which an agent is waiting?"},
	} {
		if got := dismissQuestion(slices.Repeat([]operator.Ref{ref}, tt.n), tt.waiting); got != tt.want {
			t.Errorf("dismissQuestion(%d, %d) = %q, want %q", tt.n, tt.waiting, got, tt.want)
		}
	}
}

func TestQuote(t *testing.T) {
	for _, tt := range []struct{ s, want string }{
		{"plain/path-1.json", "plain/path-1.json"},
		{"", "''"},
		{"a b", "'a b'"},
		{"it's", `'it'\''s'`},
		{"$HOME", "'$HOME'"},
		{"~", "'~'"},
	} {
		if got := quote(tt.s); got != tt.want {
			t.Errorf("quote(%q) = %q, want %q", tt.s, got, tt.want)
		}
	}
}

func TestEscape(t *testing.T) {
	for _, tt := range []struct{ name, s, want string }{
		{"plain", "a\nb", "a\nb"},
		{"raw", "a\x1b[2J", `a\x1b[2J`},
		{"escaped before", `a\x1b[2J`, `a\x1b[2J`},
		{"both", "\\x1b\x1b", `\\x1b\x1b`},
	} {
		if got := escape(tt.s); got != tt.want {
			t.Errorf("%s: escape(%q) = %q, want %q", tt.name, tt.s, got, tt.want)
		}
	}
	if got, want := escapeLine("a\nb"), `a\nb`; got != want {
		t.Errorf("escapeLine = %q, want %q", got, want)
	}
}

func TestShortIDs(t *testing.T) {
	items := func(ids ...string) []operator.Item {
		var out []operator.Item
		for _, id := range ids {
			out = append(out, operator.Item{Ref: operator.Ref{ID: queue.ID(id)}})
		}
		return out
	}
	for _, tt := range []struct {
		name string
		in   []operator.Item
		want []string
	}{
		{"one", items("0197f3b2-6d1e-7c3a-9b58-3f6f0a2c4d1e"), []string{"0197f3b2-6d1e"}},
		{"another millisecond", items("0197f3b2-6d1e-7c3a-9b58-3f6f0a2c4d1e", "0197f3b2-6d1f-7c3a-9b58-3f6f0a2c4d1e"), []string{"0197f3b2-6d1e", "0197f3b2-6d1f"}},
		{"the same millisecond", items("0197f3b2-6d1e-7c3a-9b58-3f6f0a2c4d1e", "0197f3b2-6d1e-7c3b-9b58-3f6f0a2c4d1e"), []string{"0197f3b2-6d1e-7c3a", "0197f3b2-6d1e-7c3b"}},
		{"the same in two bottles", items("0197f3b2-6d1e-7c3a-9b58-3f6f0a2c4d1e", "0197f3b2-6d1e-7c3a-9b58-3f6f0a2c4d1e"), []string{"0197f3b2-6d1e", "0197f3b2-6d1e"}},
	} {
		if diff := cmp.Diff(tt.want, shortIDs(tt.in)); diff != "" {
			t.Errorf("%s: shortIDs (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestParseSince(t *testing.T) {
	now := time.Date(2026, 5, 17, 12, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		s    string
		want time.Time
		ok   bool
	}{
		{"", time.Time{}, true},
		{"90m", now.Add(-90 * time.Minute), true},
		{"7d", now.AddDate(0, 0, -7), true},
		{"2026-05-01", time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC), true},
		{"2026-05-01T08:00:00Z", time.Date(2026, 5, 1, 8, 0, 0, 0, time.UTC), true},
		{"-1h", time.Time{}, false},
		{"-3d", time.Time{}, false},
		{"soon", time.Time{}, false},
	} {
		got, err := parseSince(tt.s, now)
		if (err == nil) != tt.ok || !got.Equal(tt.want) {
			t.Errorf("parseSince(%q) = %v, %v, want %v, ok %v", tt.s, got, err, tt.want, tt.ok)
		}
	}
}

func TestLineWriter(t *testing.T) {
	var out bytes.Buffer
	w := &lineWriter{w: &out}
	for _, part := range []string{"one\ntw", "o\r\n\x1b[2Jthree", "\n\n", strings.Repeat("x", longest), "y\n", "end"} {
		if n, err := w.Write([]byte(part)); n != len(part) || err != nil {
			t.Fatalf("Write(%q) = %d, %v, want %d and no error", part, n, err, len(part))
		}
	}
	w.Flush()
	want := "  one\n  two\n  \\x1b[2Jthree\n  \n  " + strings.Repeat("x", longest) + "\n  y\n  end\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
}

// TestChanged: what a stale decision prints is a diff against what was seen, if we showed it.
func TestChanged(t *testing.T) {
	preview := func(diff string) *operator.Preview {
		return &operator.Preview{
			Item:    operator.Item{Ref: operator.Ref{Bottle: "web", ID: "0197f3b2-6d1e-7c3a-9b58-3f6f0a2c4d1e"}, Summary: "allow example.com", State: operator.Open},
			Targets: []operator.TargetView{{Kind: "egress", Path: "routes.yaml", Changed: true, Diff: safetext.Untrusted(diff)}},
		}
	}
	seen, now := preview("+  - host: example.com\n"), preview("+      - /all\x1b[2J\n")
	seen.Age, now.Age = time.Second, time.Hour
	for _, tt := range []struct {
		name string
		seen *operator.Preview
		want string
	}{
		{"seen", seen, "  -  +  - host: example.com\n  +  +      - /all\\x1b[2J\n"},
		{"not seen", nil, "What would change now:\n\nasks to   allow example.com\n"},
	} {
		var out bytes.Buffer
		a := &app{out: &out}
		if err := a.changed(tt.seen, now); err != nil {
			t.Errorf("%s: changed: %v", tt.name, err)
		}
		if got := out.String(); !strings.Contains(got, tt.want) || tt.seen != nil && strings.Contains(got, "+arrived") || strings.Contains(got, "\x1b") {
			t.Errorf("%s: changed printed:\n%s\nwant in it:\n%s", tt.name, got, tt.want)
		}
	}
}
