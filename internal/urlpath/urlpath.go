// Package urlpath has the one form of a URL's path that the egress proxy matches and forwards. What is asked for is held
// against it too: a prefix in another form would be approved and never match.
package urlpath

import (
	"errors"
	"strings"
	"unicode/utf8"
)

// Path is a path in the one form that is both matched and forwarded: dot segments resolved, empty
// segments dropped, percent-encoded only where it must be or was for a reserved character.
type Path struct {
	Escaped string // what is forwarded
	Plain   string // the same, decoded: holds no '%', '\', ';' or ASCII control character
}

const (
	unreserved = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
	asIs       = unreserved + "/!$&'()*+,=:@" // RFC 3986 pchar and '/', without ';'
)

// Clean brings the path of a request, without its query, into its one form, or says why servers might read it in
// another way than we do. The error ends a sentence that begins "the path".
func Clean(raw string) (Path, error) {
	if raw == "" {
		raw = "/" // http://host
	}
	if raw[0] != '/' {
		return Path{}, errors.New("must start with '/'")
	}
	var esc, plain strings.Builder
	for i := 0; i < len(raw); i++ {
		c, encoded := raw[i], false
		if c == '%' {
			hi, lo := -1, -1
			if i+2 < len(raw) {
				hi, lo = unhex(raw[i+1]), unhex(raw[i+2])
			}
			if hi < 0 || lo < 0 {
				return Path{}, errors.New("has a '%' without two hexadecimal digits")
			}
			c, encoded = byte(hi<<4|lo), true
			i += 2
		}
		switch {
		case c < 0x20 || c == 0x7f:
			return Path{}, errors.New("has a control character")
		case c == '\\':
			return Path{}, errors.New("has a backslash, which some servers read as '/'")
		case c == ';':
			return Path{}, errors.New("has a ';', after which some servers ignore the rest of a segment")
		case c == '/' && encoded:
			return Path{}, errors.New("has an encoded '/' (%2F), which some servers decode before they look at the path")
		case c == '%':
			return Path{}, errors.New("has an encoded '%' (%25), which some servers decode twice")
		}
		plain.WriteByte(c)
		if strings.IndexByte(unreserved, c) >= 0 || !encoded && strings.IndexByte(asIs, c) >= 0 {
			esc.WriteByte(c)
		} else {
			const hex = "0123456789ABCDEF"
			esc.Write([]byte{'%', hex[c>>4], hex[c&15]})
		}
	}
	if !utf8.ValidString(plain.String()) {
		return Path{}, errors.New("is not UTF-8 once decoded")
	}
	// '/' is never encoded here, so that both forms have the same segments.
	e, err := resolveDots(esc.String())
	if err != nil {
		return Path{}, err
	}
	d, err := resolveDots(plain.String())
	if err != nil {
		return Path{}, err
	}
	return Path{Escaped: e, Plain: d}, nil
}

func resolveDots(p string) (string, error) {
	var out []string
	segments := strings.Split(p[1:], "/")
	for _, s := range segments {
		switch {
		case s == "" || s == ".":
		case s == "..":
			out = out[:max(0, len(out)-1)]
		case strings.Trim(strings.ReplaceAll(s, "%20", " "), ". ") == "":
			return "", errors.New("has a segment of dots or spaces only, which some servers shorten")
		default:
			out = append(out, s)
		}
	}
	// "/a/", "/a/." and "/a/b/.." name the directory.
	last := segments[len(segments)-1]
	if len(out) > 0 && (last == "" || last == "." || last == "..") {
		out = append(out, "")
	}
	return "/" + strings.Join(out, "/"), nil
}

func unhex(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}
