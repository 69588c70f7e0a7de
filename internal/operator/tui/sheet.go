package tui

import (
	"fmt"
	"strings"

	"github.com/aymanbagabas/go-udiff"

	"github.com/bot-bottle/supervise/internal/operator"
	"github.com/bot-bottle/supervise/internal/payload"
	"github.com/bot-bottle/supervise/internal/safetext"
	"github.com/bot-bottle/supervise/queue"
)

// sheet collects lines of at most w cells.
type sheet struct {
	w       int
	lines   []line
	changes int // changed lines of diffs so far
}

func (s *sheet) add(spans ...span) { s.lines = append(s.lines, line{spans: spans}) }

func (s *sheet) blank() {
	if n := len(s.lines); n > 0 && len(s.lines[n-1].spans) > 0 {
		s.add()
	}
}

func (s *sheet) heading(text string) {
	s.blank()
	for _, l := range wrap(text, s.w, true) {
		s.add(span{bold, l})
	}
}

// label is how wide the names of fields are.
const label = 9

func (s *sheet) field(name string, st style, value string) {
	if value == "" {
		return
	}
	for text := range strings.SplitSeq(strings.TrimRight(value, "\n"), "\n") {
		for _, piece := range wrap(untab(text), s.w-label, true) {
			s.add(span{dim, pad(name, label)}, span{st, piece})
			name = ""
		}
	}
}

// para is a paragraph of ours, which may quote what is escaped.
func (s *sheet) para(st style, text string) {
	for text := range strings.SplitSeq(strings.TrimRight(text, "\n"), "\n") {
		for _, piece := range wrap(untab(text), s.w, true) {
			s.add(span{st, piece})
		}
	}
}

// fence sets an agent's text apart, so that none of its lines passes for one of ours. It stops after most lines;
// 0: never.
func (s *sheet) fence(indent string, text string, most int) (cut bool) {
	if text == "" {
		s.add(span{dim, indent + "│ (nothing)"})
		return false
	}
	n := 0
	for text := range strings.SplitSeq(strings.TrimRight(text, "\n"), "\n") {
		for _, piece := range wrap(untab(text), s.w-len(indent)-2, true) {
			if n++; most > 0 && n > most {
				return true
			}
			s.add(span{dim, indent + "│ "}, span{plain, piece})
		}
	}
	return false
}

// diff is a unified diff, escaped, without the lines that name the files. The first cell is the diff's own; a line that is
// continued has "↳" there, which no line of the file can fake.
func (s *sheet) diff(text string, counts bool) {
	for i, text := range strings.Split(strings.TrimRight(text, "\n"), "\n") {
		if text == "" || i == 0 && strings.HasPrefix(text, "---") || i == 1 && strings.HasPrefix(text, "+++") {
			continue
		}
		mark, st := text[:1], plain
		whole := text
		text = text[1:]
		switch mark {
		case " ":
		case "+":
			st = added
		case "-":
			st = gone
		case "@":
			s.add(span{dim, cut(untab(whole), s.w)})
			continue
		case `\`:
			st = dim
		default: // no line of a diff: shown all the same
			mark, text = "?", whole
		}
		changed := 0
		if counts && (mark == "+" || mark == "-") {
			s.changes++
			changed = s.changes
		}
		for _, piece := range wrap(untab(text), s.w-2, false) {
			s.add(span{st, mark + " " + piece})
			mark = "↳"
		}
		s.lines[len(s.lines)-1].change = changed
	}
}

// saysLines is how much of what the agent says stands before what would change: a long plea must not push it away.
const saysLines = 2

// most bounds what is one line in itself.
const most = 240

// preview is everything an operator decides on, in the order in which one reads it.
func (s *sheet) preview(p *operator.Preview) {
	s.field("asks to", bold, agentLine(p.Summary, most))
	if h := safetext.Host(p.Host.Raw()); p.Host != "" && h != p.Host.Raw() {
		s.field("host", warn, cut(steady(h), most))
	}
	s.field("bottle", plain, p.Bottle+", by "+oneLine(p.Tool))
	if p.Decision == nil {
		s.field("agent", plain, agent(p.Connected))
	}
	s.decision(p.Decision)
	if p.Retry != nil {
		s.field("before", warn, "the same was "+earlier(p.Retry))
	}
	var long bool
	says := agentText(p.Justification)
	switch {
	case p.Decision != nil:
	case p.Edited != "":
		s.heading("your edit of what was proposed")
		s.diff(udiff.Unified("proposed", "edited", agentText(p.Proposed), agentText(p.Edited)), false)
		long = true
	default:
		s.heading("the agent says (nobody has checked it)")
		if long = s.fence("", says, saysLines); long {
			s.add(span{dim, cut("│ … all of it is at the end", s.w)})
		}
	}
	s.findings(p)
	if p.Blocked != "" {
		s.heading("cannot be approved")
		s.para(warn, printable(p.Blocked))
	}
	s.targets(p)
	s.files(p)
	if long || p.Decision != nil && says != "" { // its mailbox may have it no more
		s.heading("the agent says (nobody has checked it)")
		s.fence("", says, 0)
	}
}

// trailer is for looking things up.
func (s *sheet) trailer(p *operator.Preview) {
	s.blank()
	for _, l := range wrap("id "+string(p.ID), s.w, false) {
		s.add(span{dim, l})
	}
	s.field("arrived", dim, when(p.ArrivedAt))
	s.field("digest", dim, p.Digest)
}

func agent(c operator.Connected) string {
	switch c {
	case operator.Waiting:
		return "waiting for the answer"
	case operator.Away:
		return "not waiting now, has to ask again"
	}
	return "unknown, its sidecar is silent"
}

func earlier(e *operator.Earlier) string {
	text := fmt.Sprintf("%s on %s", oneLine(string(e.Status)), when(e.At))
	if e.By != "" {
		text += " by " + oneLine(e.By)
	}
	if e.Notes != "" {
		text += ": " + agentLine(e.Notes, 300)
	}
	return text
}

// decider names who decided.
func decider(by, via string) string {
	switch {
	case by == "":
		return "another program"
	case via == "":
		return oneLine(by)
	}
	return oneLine(by) + " (" + oneLine(via) + ")"
}

func (s *sheet) decision(r *operator.Record) {
	if r == nil {
		return
	}
	s.field("decided", bold, fmt.Sprintf("%s by %s on %s", oneLine(string(r.Status)), decider(r.By, r.Via), when(r.At)))
	s.field("outcome", plain, outcome(r.Outcome))
	s.field("notes", plain, agentText(r.Notes))
	if len(r.Accepted) > 0 {
		s.field("accepted", plain, oneLine(strings.Join(r.Accepted, ", ")))
	}
	if !r.UndoneAt.IsZero() {
		s.field("undone", bold, fmt.Sprintf("by %s on %s", oneLine(r.UndoneBy), when(r.UndoneAt)))
	}
	s.field("error", warn, agentText(r.Error))
}

func outcome(o queue.Outcome) string {
	switch o {
	case queue.Live:
		return "live: the change is made and was seen in force"
	case queue.Built:
		return "built: it takes effect when the bottle is started from it"
	case queue.Unchanged:
		return "unchanged: it was allowed already"
	case queue.Unverified:
		return "unverified: not seen in force; check that it works"
	case queue.Acknowledged:
		return "acknowledged: recorded; nothing was rebuilt"
	}
	return oneLine(string(o))
}

func (s *sheet) findings(p *operator.Preview) {
	if len(p.Findings) == 0 {
		return
	}
	s.heading("findings")
	for _, f := range p.Findings {
		level, st := "note   ", dim
		if f.Level == operator.Danger {
			level, st = "DANGER ", danger
		}
		text := oneLine(f.Code) + ": " + oneLine(f.Text)
		for i, piece := range wrap(text, s.w-len(level), true) {
			if i > 0 {
				level = strings.Repeat(" ", len(level))
			}
			body := plain
			if st == danger {
				body = bold
			}
			s.add(span{st, level}, span{body, piece})
		}
		told := f.Level == operator.Note && strings.Contains(p.Summary.Raw(), f.Evidence.Raw())
		if f.Evidence != "" && !told {
			s.fence("       ", agentText(f.Evidence), 0)
		}
	}
}

func (s *sheet) targets(p *operator.Preview) {
	for _, t := range p.Targets {
		s.heading(fmt.Sprintf("%s: %s", t.Kind, oneLine(t.Path)))
		switch {
		case t.Unknown:
			s.add(span{warn, "cannot be worked out"})
		case !t.Changed:
			s.add(span{dim, "nothing changes"})
		default:
			s.diff(agentText(t.Diff), true)
		}
	}
	for _, k := range p.Unmanaged {
		s.heading(fmt.Sprintf("%s: not managed", k))
		s.para(warn, "The configuration names no file for it: whoever approves has made the change by hand.")
	}
	if p.Decision == nil {
		return
	}
	for _, t := range p.Decision.Targets {
		s.heading(fmt.Sprintf("%s: %s", t.Kind, oneLine(t.Path)))
		if t.BeforeSHA256 == t.AfterSHA256 {
			s.add(span{dim, "nothing was changed"})
			continue
		}
		s.diff(udiff.Unified("before", "after", agentText(t.EntryBefore), agentText(t.EntryAfter)), false)
	}
}

// files shows the payload itself where no diff of a target shows all of it.
func (s *sheet) files(p *operator.Preview) {
	switch {
	case p.Edited != "": // stands above
	case p.Decision != nil && p.Decision.FinalFile != "":
		s.heading("applied instead of what was proposed")
		s.diff(udiff.Unified("proposed", "applied", agentText(p.Proposed), agentText(p.Decision.FinalFile)), false)
	case p.Tool != payload.Capability || len(p.Targets) == 0:
		s.heading("proposed")
		s.fence("", agentText(p.Proposed), 0)
	}
}

// text is a preview as plain lines, to compare two of them. Presence goes on by itself; it is no change.
func text(p *operator.Preview, w int) string {
	q := *p
	q.Connected = operator.Unknown
	s := &sheet{w: w}
	s.preview(&q)
	var b strings.Builder
	for _, l := range s.lines {
		b.WriteString(strings.TrimRight(l.String(), " ") + "\n")
	}
	return b.String()
}
