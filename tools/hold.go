package tools

import (
	"fmt"
	"strings"
	"time"
)

// holds is how long known clients wait for a tool, less a margin; measured (see the docs on clients).
var holds = holdTable{
	"claude-code":      24 * time.Hour, // gives up after 27.8 h
	"codex-mcp-client": 240 * time.Second,
	"gemini-cli":       540 * time.Second, // "gemini-cli-mcp-client", or with the server's name behind it
}

// holdUnknown suits a client we know nothing of, and every client whose call has no progress token.
const holdUnknown = 50 * time.Second

// holdTable maps client names, in lower case, to holds. A name stands for every client whose name
// begins with it up to a '-', '/' or space; the longest wins. "*" stands for all.
type holdTable map[string]time.Duration

func (h holdTable) lookup(client string) (time.Duration, bool) {
	client = strings.ToLower(client)
	best := ""
	for name := range h {
		rest, ok := strings.CutPrefix(client, name)
		if ok && (rest == "" || strings.ContainsRune("-/ ", rune(rest[0]))) && len(name) > len(best) {
			best = name
		}
	}
	if best == "" {
		best = "*"
	}
	d, ok := h[best]
	return d, ok
}

// ParseHold reads a setting such as "240s", "codex-mcp-client=240s,*=50s" or "0" (until decided) for
// Options.Hold. An empty spec gives nil: the built-in table.
func ParseHold(spec string) (func(client string) (time.Duration, bool), error) {
	if strings.TrimSpace(spec) == "" {
		return nil, nil
	}
	table := make(holdTable)
	for item := range strings.SplitSeq(spec, ",") {
		name, value, ok := strings.Cut(item, "=")
		if !ok {
			name, value = "*", item
		}
		name, value = strings.ToLower(strings.TrimSpace(name)), strings.TrimSpace(value)
		if name == "" {
			return nil, fmt.Errorf("%.80q has no client name before '=': write codex-mcp-client=240s, or *=50s for all others", item)
		}
		d, err := time.ParseDuration(value)
		if err != nil || d < 0 {
			return nil, fmt.Errorf("%.80q must be a duration such as 240s, 24h, or 0 for until decided", value)
		}
		if _, ok := table[name]; ok {
			return nil, fmt.Errorf("client %.80q is there twice", name)
		}
		table[name] = d
	}
	return table.lookup, nil
}

// hold is how long a call may wait; 0 = until decided.
func (t *Tools) hold(client string, progress bool) time.Duration {
	if t.opts.Hold != nil {
		if d, ok := t.opts.Hold(client); ok {
			return d
		}
	}
	if d, ok := holds.lookup(client); ok && progress {
		return d
	}
	return holdUnknown
}
