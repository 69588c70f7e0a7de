package tuitest

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestScreen(t *testing.T) {
	for _, tt := range []struct {
		name, in string
		want     []string
	}{
		{"text", "ab\r\ncd", []string{"ab", "cd", "", ""}},
		{"wraps late", "abcdef\r\nx", []string{"abcdef", "x", "", ""}},
		{"wraps", "abcdefg", []string{"abcdef", "g", "", ""}},
		{"wide", "a世b", []string{"a世b", "", "", ""}},
		{"combining", "e\u0301x", []string{"e\u0301x", "", "", ""}},
		{"moves", "\x1b[2;3Hx\x1b[Ay\x1b[4dz\x1b[1Gw", []string{"   y", "  x", "", "w   z"}},
		{"erases", "abcdef\x1b[3D\x1b[K\r\nabc\x1b[2D\x1b[1K", []string{"ab", "  c", "", ""}},
		{"erases below", "a\r\nb\r\nc\x1b[2;1H\x1b[J", []string{"a", "", "", ""}},
		{"erases characters", "abcdef\x1b[1;2H\x1b[2X", []string{"a  def", "", "", ""}},
		{"inserts and deletes characters", "abcdef\x1b[1;2H\x1b[2@\r\nabcdef\x1b[2;2H\x1b[2P", []string{"a  bcd", "adef", "", ""}},
		{"inserts and deletes lines", "a\r\nb\r\nc\r\nd\x1b[2;1H\x1b[L\x1b[4;1H\x1b[M", []string{"a", "", "b", ""}},
		{"scrolls a region", "a\r\nb\r\nc\r\nd\x1b[2;3r\x1b[S\x1b[r", []string{"a", "c", "", "d"}},
		{"scrolls at the end", "a\r\nb\r\nc\r\nd\r\ne", []string{"b", "c", "d", "e"}},
		{"repeats", "-\x1b[3b", []string{"----", "", "", ""}},
		{"reverse line feed", "a\x1b[1;1H\x1bMb", []string{"b", "a", "", ""}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newScreen(6, 4)
			s.parser.Parse([]byte(tt.in))
			if diff := cmp.Diff(strings.Join(tt.want, "\n")+"\n", s.String()); diff != "" {
				t.Errorf("screen after %q (-want +got):\n%s", tt.in, diff)
			}
		})
	}
}

func TestScreenHears(t *testing.T) {
	s := newScreen(6, 4)
	s.parser.Parse([]byte("\a\x1b]9;hello; you\a\x1b]2;title\x1b\\\x1b[1m"))
	if s.bells != 1 || s.title != "title" || s.colours {
		t.Errorf("bells %d, title %q, colours %v; want 1, title, none", s.bells, s.title, s.colours)
	}
	if diff := cmp.Diff([]string{"hello; you"}, s.notes); diff != "" {
		t.Errorf("notes (-want +got):\n%s", diff)
	}
	s.parser.Parse([]byte("\x1b[31m"))
	if !s.colours {
		t.Error("colours = false after red")
	}
}

// TestFrames: while a program draws a frame, the one before is what is seen.
func TestFrames(t *testing.T) {
	s := newScreen(6, 1)
	var replied string
	s.reply = func(text string) { replied += text }
	s.parser.Parse([]byte("old\x1b[?2026$p\x1b[?2026h\rne"))
	if got := s.String(); got != "old\n" || replied != "\x1b[?2026;2$y" {
		t.Errorf("half a frame shows %q after the reply %q, want the one before", got, replied)
	}
	s.parser.Parse([]byte("w\x1b[?2026l"))
	if got := s.String(); got != "new\n" {
		t.Errorf("after the frame %q is shown, want new", got)
	}
}
