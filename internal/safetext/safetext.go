// Package safetext is the one escaper for everything an agent wrote. Whatever reaches a
// terminal, a page, a log or JSON output from a proposal passes through it, and nothing else
// prints agent text.
//
// After it, text holds no control bytes (C0, C1, DEL), no ANSI or OSC sequence, no bidirectional or
// other invisible format character, no private-use or unassigned rune and no invalid UTF-8: each is shown
// as a visible escape (␛ style is not used; the form is \x1b, \u202e, \U000e0001). A backslash that
// would be taken for such an escape is doubled, so that the form is unambiguous.
package safetext

// Untrusted is text that an agent (or a hostile sidecar) wrote. Its String method escapes, so that fmt, slog and
// html/template cannot print it raw; Raw is for storing and comparing only.
type Untrusted string

// API (implemented in this package):
//
//	func (u Untrusted) Raw() string
//	func (u Untrusted) String() string                 // Block(u)
//	func (u Untrusted) Line(max int) string            // Line(u, max)
//	func (u Untrusted) MarshalJSON() ([]byte, error)   // valid JSON, decodes to the raw text, and is itself printable ASCII-safe (unsafe runes as \uXXXX)
//	func (u Untrusted) LogValue() slog.Value
//	func Block(s string) string          // keeps \n (CRLF shown as \r then newline) and \t; everything else unsafe escaped
//	func Line(s string, max int) string  // one line: newlines and tabs escaped too; cut to max display cells with "…"; max <= 0: not cut
//	func Host(s string) string           // a host name; a non-ASCII or punycode host is shown in both forms: "xn--pple-43d.com (аpple.com, mixed script)"
//	func JSON(v any) ([]byte, error)     // json.MarshalIndent with two spaces, no HTML escaping, every unsafe rune in any string as \uXXXX
