package payload

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"
)

// maxRouteFile bounds what Parse decodes: every path at its limit, every byte escaped.
const maxRouteFile = 512 << 10

// Parse reads the stored form and checks it as strictly as what an agent sends. The writer may have been a hostile
// sidecar, another implementation or a person with an editor: spelling of the JSON is free, its content is not.
func Parse(tool, file string) (Payload, error) {
	switch tool {
	case Egress:
		r, err := parseRoute(file)
		if err != nil {
			return Payload{}, err
		}
		return NewEgress(r)
	case Pipelock:
		return NewPipelock(file)
	case Capability:
		return NewCapability(file)
	}
	return Payload{}, &FieldError{"proposal", "tool", cut(tool), "must be " + Egress + ", " + Pipelock + " or " + Capability}
}

func parseRoute(file string) (Route, error) {
	bad := func(field, mend string) (Route, error) {
		return Route{}, &FieldError{Egress, field, "", mend}
	}
	if len(file) > maxRouteFile {
		return bad("proposed file", fmt.Sprintf("must be at most %d bytes, not %d", maxRouteFile, len(file)))
	}
	if !utf8.ValidString(file) {
		return bad("proposed file", "must be valid UTF-8")
	}
	top, err := members([]byte(file), "host", "path_allowlist", "auth")
	if err != nil {
		return bad("proposed file", "must be the JSON of one route: "+err.Error())
	}
	var r Route
	if raw, ok := top["host"]; ok && json.Unmarshal(raw, &r.Host) != nil {
		return bad("host", "must be a string")
	}
	if raw, ok := top["path_allowlist"]; ok {
		var paths []*string // a pointer tells null from ""
		if json.Unmarshal(raw, &paths) != nil {
			return bad("path_allowlist", "must be a list of strings")
		}
		for i, p := range paths {
			if p == nil {
				return bad(fmt.Sprintf("path_allowlist[%d]", i), "must be a string")
			}
			r.PathAllowlist = append(r.PathAllowlist, *p)
		}
	}
	if raw, ok := top["auth"]; ok && string(raw) != "null" {
		auth, err := members(raw, "scheme", "token_ref")
		if err != nil {
			return bad("auth", "must be an object with scheme and token_ref: "+err.Error())
		}
		r.Auth = new(Auth)
		for _, f := range []struct {
			name string
			to   *string
		}{{"scheme", &r.Auth.Scheme}, {"token_ref", &r.Auth.TokenRef}} {
			if raw, ok := auth[f.name]; ok && json.Unmarshal(raw, f.to) != nil {
				return bad("auth."+f.name, "must be a string")
			}
		}
	}
	return r, nil
}

// members splits one JSON object into its members. It refuses what encoding/json lets pass: duplicate
// keys, keys in another case, unknown keys, anything after the object.
func members(data []byte, known ...string) (map[string]json.RawMessage, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("not a JSON object")
	}
	out := make(map[string]json.RawMessage)
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return nil, notJSON(data)
		}
		key, ok := t.(string)
		if !ok || !slices.Contains(known, key) {
			return nil, fmt.Errorf("unknown key %.80q", key)
		}
		if _, ok := out[key]; ok {
			return nil, fmt.Errorf("key %q appears twice", key)
		}
		var v json.RawMessage
		if err := dec.Decode(&v); err != nil {
			return nil, notJSON(data)
		}
		out[key] = v
	}
	if _, err := dec.Token(); err != nil {
		return nil, notJSON(data)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the object")
	}
	return out, nil
}

// notJSON says where a text that is not JSON goes wrong, as an editor counts: its writer may be a person.
func notJSON(data []byte) error {
	e, ok := errors.AsType[*json.SyntaxError](json.Unmarshal(data, new(json.RawMessage)))
	if !ok {
		return errors.New("not valid JSON")
	}
	at := min(int(e.Offset), len(data))
	if at > 0 && !strings.HasPrefix(e.Error(), "unexpected end") {
		at-- // the offset counts the byte that was not expected
	}
	line := data[bytes.LastIndexByte(data[:at], '\n')+1 : at]
	return fmt.Errorf("not valid JSON: line %d, column %d: %w", bytes.Count(data[:at], []byte("\n"))+1, utf8.RuneCount(line)+1, e)
}

// Encode returns the stored form. Parse(p.Tool, p.Encode()) is p.
func (p Payload) Encode() string {
	switch p.Tool {
	case Egress:
		return encodeRoute(*p.Route)
	case Pipelock:
		return p.URL
	default:
		return p.Dockerfile
	}
}

func encodeRoute(r Route) string {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(r); err != nil {
		panic(err) // a struct of strings always encodes
	}
	return b.String()
}

// Canonical is equal for two payloads that ask the same, and begins with the tool.
func (p Payload) Canonical() string {
	switch p.Tool {
	case Egress:
		r := *p.Route
		r.Host = p.Host
		r.PathAllowlist = slices.Compact(slices.Sorted(slices.Values(r.PathAllowlist)))
		return p.Tool + "\n" + encodeRoute(r)
	case Pipelock:
		return p.Tool + "\n" + p.canonicalURL()
	default:
		return p.Tool + "\n" + p.Dockerfile
	}
}

func (p Payload) canonicalURL() string {
	u, err := url.Parse(p.URL)
	if err != nil {
		return p.URL // not reached: NewPipelock parsed it
	}
	port := u.Port()
	if u.Scheme == "http" && port == "80" || u.Scheme == "https" && port == "443" {
		port = ""
	}
	switch {
	case port != "":
		u.Host = net.JoinHostPort(p.Host, port)
	case strings.Contains(p.Host, ":"):
		u.Host = "[" + p.Host + "]"
	default:
		u.Host = p.Host
	}
	if u.Path == "" {
		u.Path = "/"
	}
	u.Fragment, u.RawFragment = "", ""
	return u.String()
}

// Summary is one line that says what is asked. It names the host that would be applied, and how it was written if that
// is something else. It holds raw agent text.
func (p Payload) Summary() string {
	switch p.Tool {
	case Egress:
		var b strings.Builder
		b.WriteString("allow " + p.Host)
		if p.Host != p.Route.Host {
			b.WriteString(" (written " + p.Route.Host + ")")
		}
		const most = 4
		paths := p.Route.PathAllowlist
		if len(paths) == 0 {
			b.WriteString(" (whole host)")
		}
		for _, path := range paths[:min(len(paths), most)] {
			b.WriteString(" " + path)
		}
		if len(paths) > most {
			fmt.Fprintf(&b, " and %d more paths", len(paths)-most)
		}
		if a := p.Route.Auth; a != nil {
			b.WriteString(" with " + a.Scheme + " " + a.TokenRef)
		}
		return b.String()
	case Pipelock:
		if u, err := url.Parse(p.URL); err != nil || u.Hostname() != p.Host {
			return "let " + p.Host + " through pipelock (written " + p.URL + ")"
		}
		return "let " + p.URL + " through pipelock"
	default:
		lines := strings.Count(p.Dockerfile, "\n")
		if !strings.HasSuffix(p.Dockerfile, "\n") {
			lines++
		}
		return fmt.Sprintf("replace the Dockerfile (%d lines, %d bytes)", lines, len(p.Dockerfile))
	}
}
