package tui

import (
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/charmbracelet/x/ansi"
	"github.com/google/go-cmp/cmp"

	"github.com/bot-bottle/supervise/internal/operator"
	"github.com/bot-bottle/supervise/internal/safetext"
)

func TestCutMiddle(t *testing.T) {
	for _, tt := range []struct {
		s    string
		w    int
		want string
	}{
		{"frontend-nightly-1", 18, "frontend-nightly-1"},
		{"frontend-nightly-1", 12, "fronte…tly-1"},
		{"frontend-nightly-1", 3, "f…1"},
		{"frontend-nightly-1", 2, "f…"},
		{"frontend-nightly-1", 0, ""},
	} {
		if got := cutMiddle(tt.s, tt.w); got != tt.want {
			t.Errorf("cutMiddle(%q, %d) = %q, want %q", tt.s, tt.w, got, tt.want)
		}
	}
}

// TestLongNamesStayApart: bottles whose names differ at the end only are told apart in the list.
func TestLongNamesStayApart(t *testing.T) {
	const name = "frontend-nightly-regression-eu-central-"
	for _, w := range []int{80, 240} {
		start(t, w, 40, newDesk(routeAsk(2, name+"1", "a.example.com", "/"), routeAsk(1, name+"2", "b.example.com", "/")), func(r *rig) {
			r.wantScreen("-1 ", "-2 ")
			if got := strings.Count(r.screen(), "…"); got < 2 {
				t.Errorf("at %d the names are not cut:\n%s", w, r.screen())
			}
		})
	}
}

func TestCut(t *testing.T) {
	for _, tt := range []struct {
		in   string
		w    int
		want string
	}{
		{"abc", 3, "abc"},
		{"abcd", 3, "ab…"},
		{"abc", 1, "…"},
		{"abc", 0, ""},
		{"abc", -1, ""},
		{"世界", 4, "世界"},
		{"世界世", 4, "世…"},
		{"世界", 1, "…"},
		{"e\u0301e\u0301e\u0301", 2, "e\u0301…"},
	} {
		if got := cut(tt.in, tt.w); got != tt.want {
			t.Errorf("cut(%q, %d) = %q, want %q", tt.in, tt.w, got, tt.want)
		}
	}
}

func TestWrap(t *testing.T) {
	for _, tt := range []struct {
		in    string
		w     int
		words bool
		want  []string
	}{
		{"", 10, true, []string{""}},
		{"one two three", 8, true, []string{"one two", "three"}},
		{"one two", 7, true, []string{"one two"}},
		{"onetwothree four", 8, true, []string{"onetwoth", "ree four"}},
		{"one two three", 8, false, []string{"one two ", "three"}},
		{"  one two", 8, false, []string{"  one tw", "o"}},
		{"世界世界世", 6, false, []string{"世界世", "界世"}},
		{"FROM a" + strings.Repeat(" ", 6000) + "&& b", 80, false, []string{"FROM a␠×6000␠&& b"}},
	} {
		if diff := cmp.Diff(tt.want, wrap(tt.in, tt.w, tt.words)); diff != "" {
			t.Errorf("wrap(%q, %d, %v) (-want +got):\n%s", tt.in, tt.w, tt.words, diff)
		}
	}
}

func TestUntab(t *testing.T) {
	for in, want := range map[string]string{"a": "a", "\ta": "    a", "ab\tc\td": "ab  c   d", "世\tx": "世  x"} {
		if got := untab(in); got != want {
			t.Errorf("untab(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestSteady(t *testing.T) {
	for in, want := range map[string]string{
		"plain":                "plain",
		"世界 é e\u0301":         "世界 é e\u0301",
		"\U0001F1E9\U0001F1EA": `\U0001f1e9\U0001f1ea`, // a flag, or two letters
		"\U0001F44D\U0001F3FD": `\U0001f44d\U0001f3fd`, // with a skin tone, or beside a patch
		"\u0928\u093f":         `\u0928\u093f`,
		"a\nb\tc":              "a\nb\tc",
	} {
		if got := steady(in); got != want {
			t.Errorf("steady(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestAge(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 0: "0s", 59 * time.Second: "59s", time.Minute: "1m", 59 * time.Minute: "59m", time.Hour: "1h", 47 * time.Hour: "47h",
		48 * time.Hour: "2d", 999 * 24 * time.Hour: "999d", 1000 * 24 * time.Hour: "old",
	} {
		if got := age(d); got != want || len(got) > ageWidth {
			t.Errorf("age(%v) = %q, want %q", d, got, want)
		}
	}
}

func TestProgress(t *testing.T) {
	p := &progress{}
	for _, s := range []string{"one\ntw", "o\n\n", "\x1b[2Jthree\r\n", strings.Repeat("x", 2*progressLine)} {
		if n, err := p.Write([]byte(s)); n != len(s) || err != nil {
			t.Errorf("Write(%d bytes) = %d, %v", len(s), n, err)
		}
	}
	want := []string{"one", "two", `\x1b[2Jthree`, strings.Repeat("x", 2*progressLine)}
	if diff := cmp.Diff(want, p.tail()); diff != "" {
		t.Errorf("tail (-want +got):\n%s", diff)
	}
	for range 100 {
		if _, err := p.Write([]byte("line\n")); err != nil {
			t.Fatal(err)
		}
	}
	if got := p.tail(); len(got) != progressLines {
		t.Errorf("%d lines are kept, want %d", len(got), progressLines)
	}
	if got := (*progress)(nil).tail(); got != nil {
		t.Errorf("tail of none = %q", got)
	}
}

// FuzzCard: whatever an agent writes, every line of its card fits, prints, and none of its lines stands where ours do.
func FuzzCard(f *testing.F) {
	f.Add(hostileText, 30)
	f.Add("a\n+ b\n@@ c", 45)
	f.Add(strings.Repeat("世", 100)+"\t\t\U0001F1E9", 20)
	f.Add("\\x1b \\\\ \u1100\u1161\u11a8 \u0e33\u0e33 \u0600a", 33)
	f.Fuzz(func(t *testing.T, text string, w int) {
		if len(text) > 4<<10 || w < 20 || w > 200 {
			return
		}
		p := hostileAsk(1)
		agent := safetext.Untrusted(text)
		p.Summary, p.Host, p.Justification, p.Proposed = agent, agent, agent, agent
		p.Findings = []operator.Finding{{Code: "punycode", Level: operator.Danger, Text: "It is.", Evidence: agent}}
		p.Targets[0].Diff = "--- a\n+++ b\n@@ -1 +1 @@\n-" + agent + "\n+" + agent // if it has lines, no diff
		c := &card{ref: p.Ref}
		c.show(p, nil)
		for i, l := range c.layout(w) {
			got := l.String()
			if n := width(got); n > w {
				t.Errorf("line %d is %d cells wide, want at most %d: %q", i, n, w, got)
			}
			if steady(got) != got {
				t.Errorf("line %d is not steady: %q", i, got)
			}
			for _, r := range got {
				if !unicode.IsPrint(r) {
					t.Errorf("line %d holds %U: %q", i, r, got)
				}
			}
		}
		var b inbox
		b.set([]operator.Item{p.Item}, time.Now())
		for _, l := range b.view(w+20, 4, true, nil) {
			if n := width(ansi.Strip(l)); n != w+20 {
				t.Errorf("a line of the list is %d cells wide, want %d: %q", n, w+20, l)
			}
		}
	})
}
