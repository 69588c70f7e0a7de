package web

import (
	"fmt"
	"strings"
	"sync"

	"github.com/bot-bottle/supervise/internal/operator"
	"github.com/bot-bottle/supervise/internal/safetext"
)

// What seen keeps at most.
const (
	maxSeen      = 512
	maxSeenBytes = 16 << 20
)

// seen remembers what the digests in open forms stand for, so that a stale one can be told what is different. It is a
// convenience: what it has forgotten is said not to be known.
type seen struct {
	mu    sync.Mutex
	texts map[string]string // guarded by mu; by digest
	order []string          // guarded by mu; oldest first
	bytes int               // guarded by mu
}

func (s *seen) keep(p *operator.Preview) {
	if p.Digest == "" {
		return
	}
	text := described(p)
	if len(text) > maxSeenBytes {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.texts[p.Digest]; ok {
		return
	}
	if s.texts == nil {
		s.texts = map[string]string{}
	}
	s.texts[p.Digest] = text
	s.order = append(s.order, p.Digest)
	s.bytes += len(text)
	for len(s.order) > maxSeen || s.bytes > maxSeenBytes {
		s.bytes -= len(s.texts[s.order[0]])
		delete(s.texts, s.order[0])
		s.order = s.order[1:]
	}
}

// difference is how p differs from what digest stands for; nil if that is not known.
func (s *seen) difference(digest string, p *operator.Preview) *diff {
	s.mu.Lock()
	before, ok := s.texts[digest]
	s.mu.Unlock()
	if !ok {
		return nil
	}
	d := diffOf(before, described(p))
	return &d
}

// described is a preview as text, of all that its digest is over.
func described(p *operator.Preview) string {
	var b strings.Builder
	file := p.Proposed
	if p.Edited != "" {
		file = p.Edited
	}
	for _, f := range p.Findings {
		level := "note"
		if f.Level == operator.Danger {
			level = "DANGER"
		}
		fmt.Fprintf(&b, "%s %s: %s\n", level, f.Code, safetext.Line(f.Text, 0))
	}
	for _, k := range p.Unmanaged {
		fmt.Fprintf(&b, "%s is not managed\n", k)
	}
	for _, t := range p.Targets {
		if t.Unknown {
			fmt.Fprintf(&b, "%s %s: cannot be worked out\n", t.Kind, t.Path)
			continue
		}
		if !t.Changed {
			fmt.Fprintf(&b, "%s %s: nothing changes\n", t.Kind, t.Path)
		}
		section(&b, fmt.Sprintf("%s %s has now:", t.Kind, t.Path), t.Before)
		if t.Changed {
			section(&b, fmt.Sprintf("%s %s would have:", t.Kind, t.Path), t.After)
		}
	}
	section(&b, "to be applied:", file)
	section(&b, "the agent says:", p.Justification)
	return b.String()
}

func section(b *strings.Builder, head string, text safetext.Untrusted) {
	b.WriteString(head + "\n")
	if text == "" {
		b.WriteString("    nothing\n")
		return
	}
	for line := range strings.SplitSeq(strings.TrimSuffix(text.Raw(), "\n"), "\n") {
		b.WriteString("    " + line + "\n")
	}
}
