package safetext

import (
	"bytes"
	"encoding/json"
	"fmt"
	"html/template"
	"log/slog"
	"strconv"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/clipperhouse/displaywidth"
	"github.com/google/go-cmp/cmp"
	"github.com/mattn/go-runewidth"
)

func TestBlockAndLine(t *testing.T) {
	tests := []struct{ name, in, block, line string }{
		{"plain", "FROM a # é 漢 🙂 'x' \"y\"", "FROM a # é 漢 🙂 'x' \"y\"", "FROM a # é 漢 🙂 'x' \"y\""},
		{"lines", "a\n\tb\r\n", "a\n\tb\\r\n", `a\n\tb\r\n`},
		{"C0 and DEL", "\x00\x07\x08\x1f\x7f", `\x00\x07\x08\x1f\x7f`, `\x00\x07\x08\x1f\x7f`},
		{"C1", "\u0080\u009b31m", `\u0080\u009b31m`, `\u0080\u009b31m`},
		{"ANSI", "\x1b[31mred\x1b[0m", `\x1b[31mred\x1b[0m`, `\x1b[31mred\x1b[0m`},
		{"OSC 52", "\x1b]52;c;aGk=\x07", `\x1b]52;c;aGk=\x07`, `\x1b]52;c;aGk=\x07`},
		{"OSC 8", "\x1b]8;;http://x\x1b\\y", `\x1b]8;;http://x\x1b\y`, `\x1b]8;;http://x\x1b\y`},
		{"bidi", "\u202a\u202e\u2066\u2069\u200e\u200f\u061c", `\u202a\u202e\u2066\u2069\u200e\u200f\u061c`, `\u202a\u202e\u2066\u2069\u200e\u200f\u061c`},
		{"zero width", "a\u200bb\u200c\u200d\u2060\ufeff", `a\u200bb\u200c\u200d\u2060\ufeff`, `a\u200bb\u200c\u200d\u2060\ufeff`},
		{"variation selectors", "❤\ufe0f\U000e0100\u180b", `❤\ufe0f\U000e0100\u180b`, `❤\ufe0f\U000e0100\u180b`},
		{"tags", "\U000e0001\U000e0041", `\U000e0001\U000e0041`, `\U000e0001\U000e0041`},
		{"soft hyphen, separators, spaces", "\u00ad\u2028\u2029\u00a0\u3000", `\u00ad\u2028\u2029\u00a0\u3000`, `\u00ad\u2028\u2029\u00a0\u3000`},
		{"invisible letters", "\u034f\u115f\u3164\uffa0\u2800", `\u034f\u115f\u3164\uffa0\u2800`, `\u034f\u115f\u3164\uffa0\u2800`},
		{"invisible symbols", "a\ufffcb\U0001d159c", `a\ufffcb\U0001d159c`, `a\ufffcb\U0001d159c`},
		{"the mark of Spaces", "␠×60␠", `\u2420×60\u2420`, `\u2420×60\u2420`},
		{"private, unassigned, noncharacter", "\ue000\U000f0000\u0378\uffff", `\ue000\U000f0000\u0378\uffff`, `\ue000\U000f0000\u0378\uffff`},
		{"not UTF-8", "a\xffb\xc3", `a\xffb\xc3`, `a\xffb\xc3`},
		{"replacement character itself", "\ufffd", "\ufffd", "\ufffd"},
		{"marks kept", "e\u0301 พี่", "e\u0301 พี่", "e\u0301 พี่"},
		{"zalgo", "e\u0301\u0301\u0301\u0301\u0301\u0301", "e\u0301\u0301\u0301\u0301\\u0301\\u0301", "e\u0301\u0301\u0301\u0301\\u0301\\u0301"},
		{"mark without base", "\u0301 \u0301\n\u0301", "\\u0301 \\u0301\n\\u0301", `\u0301 \u0301\n\u0301`},
		{"mark on an escape", "\x1b\u0301", `\x1b\u0301`, `\x1b\u0301`},
		{"literal escape", `\x1b \u202e \U000e0001 \r`, `\\x1b \\u202e \\U000e0001 \\r`, `\\x1b \\u202e \\U000e0001 \\r`},
		{"literal \\n", `printf 'a\n\t'`, `printf 'a\n\t'`, `printf 'a\\n\\t'`},
		{"other backslashes", `C:\a\\b \x1 \u12 \`, `C:\a\\b \x1 \u12 \`, `C:\a\\b \x1 \u12 \`},
		{"backslash before an escape", "\\\x1b \\\\\x1b \\\xff", `\\\x1b \\\\\x1b \\\xff`, `\\\x1b \\\\\x1b \\\xff`},
		{"continued line", "RUN a \\\n  b", "RUN a \\\n  b", `RUN a \\\n  b`},
	}
	for _, tt := range tests {
		if got := Block(tt.in); got != tt.block {
			t.Errorf("%s: Block(%q)\n got %q\nwant %q", tt.name, tt.in, got, tt.block)
		}
		if got := Line(tt.in, 0); got != tt.line {
			t.Errorf("%s: Line(%q)\n got %q\nwant %q", tt.name, tt.in, got, tt.line)
		}
	}
}

func TestSpaces(t *testing.T) {
	run := func(n int) string { return strings.Repeat(" ", n) }
	for _, tt := range []struct{ in, want string }{
		{"", ""},
		{"a b", "a b"},
		{run(40) + "a" + run(40), run(40) + "a" + run(40)},
		{run(41), "␠×41␠"},
		{"a" + run(6000) + "0" + run(2) + "b" + run(50) + "\n" + run(41) + "c", "a␠×6000␠0  b␠×50␠\n␠×41␠c"},
	} {
		if got := Spaces(tt.in); got != tt.want {
			t.Errorf("Spaces(%q) = %q, want %q", tt.in, got, tt.want)
		}
		if got := Spaces(tt.want); got != tt.want {
			t.Errorf("Spaces(%q) = %q, want it unchanged", tt.want, got)
		}
	}
}

func TestLineCuts(t *testing.T) {
	tests := []struct {
		in   string
		max  int
		want string
	}{
		{"abc", 3, "abc"},
		{"abcd", 3, "ab…"},
		{"abcd", 1, "…"},
		{"a", 1, "a"},
		{"", 1, ""},
		{"abcd", -1, "abcd"},
		{"漢字", 4, "漢字"},
		{"漢字", 3, "漢…"},
		{"漢字", 2, "…"},
		{"a\x1bb", 6, `a\x1bb`},
		{"a\x1bb", 5, "a…"}, // never half an escape
		{"e\u0301e\u0301e\u0301", 2, "e\u0301…"},
		{"🇩🇪🇫🇷", 4, "🇩…"},
		{strings.Repeat("x", 1<<20), 5, "xxxx…"},
		{strings.Repeat("\\", 1<<20) + "\x1b", 5, `\\\\…`},
	}
	for _, tt := range tests {
		if got := Line(tt.in, tt.max); got != tt.want {
			t.Errorf("Line(%.20q, %d) = %q, want %q", tt.in, tt.max, got, tt.want)
		}
	}
}

func TestHost(t *testing.T) {
	tests := []struct{ in, want string }{
		{"api.github.com", "api.github.com"},
		{"a\x1b[2J\n.com", `a\x1b[2J\n.com`},
		{"\u0430pple.com", "xn--pple-43d.com (\u0430pple.com, mixed script)"},
		{"xn--pple-43d.com", "xn--pple-43d.com (\u0430pple.com, mixed script)"},
		{"XN--PPLE-43d.COM", "xn--pple-43d.com (\u0430pple.com, mixed script)"},
		{"пример.example", "xn--e1afmkfd.example (пример.example)"},
		{"bücher.example", "xn--bcher-kva.example (bücher.example)"},
		{"ひらカタ漢字abc.jp", "xn--abc-0c4bpeui6eq847a6htb.jp (ひらカタ漢字abc.jp)"},
		{"a\u202eb.com", `xn--ab-g4t.com (a\u202eb.com)`},
		{"xn--a.com", `xn--a.com (\u0080.com)`},
		{"xn--\u0430.com", "xn--\u0430.com (not a valid name)"},
		{"xn--99999999.com", "xn--99999999.com (not a valid name)"},
		{"ａpple．com", "apple.com (written ａpple．com)"},
		{"BÜCHER.example", "xn--bcher-kva.example (bücher.example)"},
		{"a\xff.com", `a\xff.com (not a valid name)`},
	}
	for _, tt := range tests {
		if got := Host(tt.in); got != tt.want {
			t.Errorf("Host(%q)\n got %q\nwant %q", tt.in, got, tt.want)
		}
	}
}

func TestUntrustedIsNeverPrintedRaw(t *testing.T) {
	const hostile = "a\x1b]52;c;x\x07\u202e\n<b>"
	u := Untrusted(hostile)
	if u.Raw() != hostile {
		t.Errorf("Raw() = %q, want %q", u.Raw(), hostile)
	}
	for _, format := range []string{"%v", "%s", "%q", "%+v", "%#v", "%d", "%10s", "%t", "%-5.3s"} {
		if got := fmt.Sprintf(format, u); strings.ContainsAny(got, "\x1b\x07\u202e") {
			t.Errorf("Sprintf(%s) = %q is raw", format, got)
		}
	}
	if got := fmt.Sprintf("%v", struct{ A Untrusted }{u}); strings.ContainsAny(got, "\x1b\x07\u202e") {
		t.Errorf("inside a struct: %q is raw", got)
	}
	var b bytes.Buffer
	template.Must(template.New("").Parse("{{.}}")).Execute(&b, u)
	if got, want := b.String(), "a\\x1b]52;c;x\\x07\\u202e\n&lt;b&gt;"; got != want {
		t.Errorf("html/template = %q, want %q", got, want)
	}
	b.Reset()
	slog.New(slog.NewTextHandler(&b, nil)).Info("x", "u", u)
	if got := b.String(); strings.ContainsAny(got, "\x1b\x07\u202e") || strings.Count(got, "\n") != 1 {
		t.Errorf("slog text = %q is raw", got)
	}
	if got := u.LogValue().String(); got != `a\x1b]52;c;x\x07\u202e\n<b>` {
		t.Errorf("LogValue = %q", got)
	}
	if got := u.Line(5); got != "a…" {
		t.Errorf("Line(5) = %q, want %q", got, "a…")
	}
}

func TestJSON(t *testing.T) {
	v := map[string]any{
		"a\u202e": Untrusted("<é>\x7f\U000e0041\n\xff"),
		"b":       []string{"\u0301x", "\u200b\u009b\ue000"},
		"c":       "e\u0301",
	}
	got, err := JSON(v)
	if err != nil {
		t.Fatal(err)
	}
	want := `{
  "a\u202e": "<é>\u007f\udb40\udc41\n\ufffd",
  "b": [
    "\u0301x",
    "\u200b\u009b\ue000"
  ],
  "c": "e` + "\u0301" + `"
}`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("JSON mismatch (-want +got):\n%s", diff)
	}
	if _, err := JSON(func() {}); err == nil {
		t.Error("JSON of a func: no error")
	}
}

// forbidden is written anew here, so that a slip in visible shows.
func forbidden(r rune) bool {
	switch {
	case r == utf8.RuneError:
		return false // only as itself; validity is checked apart
	case r < ' ', r >= 0x7f && r < 0xa0, r == 0xad, r == 0x61c, r == 0x34f,
		r >= 0x180b && r <= 0x180f, r >= 0x200b && r <= 0x200f, r >= 0x2028 && r <= 0x202e, r >= 0x2060 && r <= 0x206f,
		r >= 0xfe00 && r <= 0xfe0f, r == 0xfeff, r >= 0xfff0 && r <= 0xfffb, r >= 0xe0000 && r <= 0xe0fff,
		r == 0x115f, r == 0x1160, r == 0x3164, r == 0xffa0, r == 0x2800, r == 0xfffc, r == 0x1d159:
		return true
	}
	return unicode.In(r, unicode.C, unicode.Zl, unicode.Zp) || !unicode.In(r, unicode.L, unicode.M, unicode.N, unicode.P, unicode.S) && r != ' '
}

// unescape undoes Block or Line, which proves them unambiguous.
func unescape(s string, block bool) string {
	var b strings.Builder
	for s != "" {
		if s[0] != '\\' {
			b.WriteByte(s[0])
			s = s[1:]
			continue
		}
		rest := strings.TrimLeft(s, `\`)
		n := len(s) - len(rest)
		sc := scanner{block: block}
		s = rest
		if !sc.readsEscaped(rest) {
			b.WriteString(strings.Repeat(`\`, n))
			continue
		}
		b.WriteString(strings.Repeat(`\`, n/2))
		if n%2 == 0 {
			continue
		}
		size := map[byte]int{'x': 2, 'u': 4, 'U': 8}[rest[0]]
		if size == 0 {
			b.WriteByte(map[byte]byte{'n': '\n', 't': '\t', 'r': '\r'}[rest[0]])
		} else if v, _ := strconv.ParseUint(rest[1:1+size], 16, 32); size == 2 {
			b.WriteByte(byte(v))
		} else {
			b.WriteRune(rune(v))
		}
		s = rest[1+size:]
	}
	return b.String()
}

func checkSafe(t *testing.T, what, s, keep string) {
	t.Helper()
	if !utf8.ValidString(s) {
		t.Errorf("%s %q is not UTF-8", what, s)
	}
	marks := 0
	for _, r := range s {
		if forbidden(r) && !strings.ContainsRune(keep, r) {
			t.Errorf("%s %q holds %U", what, s, r)
		}
		if unicode.In(r, unicode.Mn, unicode.Me) {
			marks++
		} else {
			marks = 0
		}
		if marks > maxMarks {
			t.Errorf("%s %q holds a pile of marks", what, s)
		}
	}
}

func FuzzEscape(f *testing.F) {
	for _, s := range []string{"", "plain", "\x1b[31m", `\x1b\\n`, "\\\x1b", "e\u0301\u0301\u0301\u0301\u0301", "\xff\u0085", "漢🇩🇪🇫👩\u200d👧", "\U000e0041\ufe0f", "xn--pple-43d.com", "किन्तु", "ᄀ\u1161\u11a8"} {
		f.Add(s, 5)
	}
	f.Fuzz(func(t *testing.T, s string, max int) {
		block, line := Block(s), Line(s, 0)
		checkSafe(t, "Block", block, "\n\t")
		checkSafe(t, "Line", line, "")
		if got := unescape(block, true); got != s {
			t.Errorf("unescape(Block(%q)) = %q", s, got)
		}
		if got := unescape(line, false); got != s {
			t.Errorf("unescape(Line(%q)) = %q", s, got)
		}
		// Without backslashes the escaped form is plain but for its own escapes, and plain text stays.
		if !strings.Contains(block, `\`) && Block(block) != block {
			t.Errorf("Block(%q) = %q, want it unchanged", block, Block(block))
		}
		if max = max % 100; max > 0 {
			cut := Line(s, max)
			checkSafe(t, "cut Line", cut, "")
			if w := max; displaywidth.String(cut) > w || runewidth.StringWidth(cut) > w || width(cut) > w {
				t.Errorf("Line(%q, %d) = %q takes %d, %d or %d cells", s, max, cut, displaywidth.String(cut), runewidth.StringWidth(cut), width(cut))
			}
			if body, ok := strings.CutSuffix(cut, "…"); cut != line && (!ok || !strings.HasPrefix(line, body)) {
				t.Errorf("Line(%q, %d) = %q is no beginning of %q", s, max, cut, line)
			}
		}
		checkSafe(t, "Host", Host(s), "")
		out, err := JSON(map[string]any{s: Untrusted(s)})
		if err != nil {
			t.Fatal(err)
		}
		checkSafe(t, "JSON", string(out), "\n")
		var back map[string]string
		valid := strings.ToValidUTF8(s, "\ufffd")
		if err := json.Unmarshal(out, &back); err != nil {
			t.Fatalf("JSON(%q) = %q does not decode: %v", s, out, err)
		}
		for k, v := range back {
			if utf8.ValidString(s) && (k != valid || v != valid) {
				t.Errorf("JSON decodes to %q: %q, want %q", k, v, valid)
			}
		}
	})
}

func BenchmarkBlock(b *testing.B) {
	s := strings.Repeat("RUN apt-get install -y x \x1b[31m é \\\n", 1<<15)
	b.SetBytes(int64(len(s)))
	for b.Loop() {
		Block(s)
	}
}

func TestOnce(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"plain\ttext\n", "plain\ttext\n"},
		{"a\x1b[2J", `a\x1b[2J`},
		{`a\x1b[2J`, `a\x1b[2J`},                     // escaped before
		{`a "/x\\x1b" \u202e`, `a "/x\\x1b" \u202e`}, // quoted by %q
		{"a\x1b[2J" + `\x1b`, `a\x1b[2J\\x1b`},
	} {
		if got := Once(tt.in); got != tt.want {
			t.Errorf("Once(%q) = %q, want %q", tt.in, got, tt.want)
		}
		if got := Once(tt.want); got != tt.want {
			t.Errorf("Once(%q) = %q, want it unchanged", tt.want, got)
		}
	}
}
