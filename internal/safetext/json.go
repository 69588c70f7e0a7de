package safetext

import (
	"bytes"
	"encoding/json"
	"fmt"
	"unicode/utf16"
)

// MarshalJSON returns a JSON string that decodes to the raw text (bytes that are not UTF-8 to U+FFFD)
// and is itself safe to print.
func (u Untrusted) MarshalJSON() ([]byte, error) {
	return encode(string(u), "")
}

// JSON is json.MarshalIndent with two spaces and no HTML escaping, in which every unsafe rune of any string is
// written as \uXXXX.
func JSON(v any) ([]byte, error) { return encode(v, "  ") }

func encode(v any, indent string) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", indent)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return escapeJSON(bytes.TrimSuffix(b.Bytes(), []byte("\n"))), nil
}

// escapeJSON escapes the unsafe runes of valid JSON. Outside strings JSON is ASCII, and in them
// encoding/json has escaped C0 already.
func escapeJSON(data []byte) []byte {
	out := make([]byte, 0, len(data))
	sc := scanner{s: string(data), block: true}
	for sc.s != "" {
		r, n, esc := sc.look(sc.s)
		switch {
		case esc == "":
			out = append(out, sc.s[:n]...)
		case r >= 0x10000:
			hi, lo := utf16.EncodeRune(r)
			out = fmt.Appendf(out, `\u%04x\u%04x`, hi, lo)
		default:
			out = fmt.Appendf(out, `\u%04x`, r)
		}
		sc.advance(r, esc)
		sc.based = sc.based && r != '"' // nothing joins with the quotes around a string
		sc.s = sc.s[n:]
	}
	return out
}
