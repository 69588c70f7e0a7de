package main

import (
	"fmt"
	"strings"

	"github.com/aymanbagabas/go-udiff"
	"github.com/spf13/cobra"

	"github.com/bot-bottle/supervise/internal/operator"
	"github.com/bot-bottle/supervise/internal/payload"
	"github.com/bot-bottle/supervise/internal/safetext"
	"github.com/bot-bottle/supervise/queue"
)

func newShow(a *app) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "show ID",
		Short: "What one proposal would change, or what became of it",
		Long: `What one proposal would change, and why its agent wants it; or, once it is decided,
by whom and what became of it. ID may be the unique start of one.

The digest stands for everything shown: give it to approve --digest, and the proposal is
approved only if it would still change exactly this.`,
		Example: `  supervise show 0197f3b2-6d1e
  supervise show 0197f3b2-6d1e --file edited.json     preview an edit, for modify --file
  supervise show 0197f3b2-6d1e --json | jq -r .digest`,
		Args:              args(1, 1),
		ValidArgsFunction: a.completeIDs,
		RunE: a.withReadDesk(func(cmd *cobra.Command, d *desk, args []string) error {
			edited, err := a.edited(file)
			if err != nil {
				return err
			}
			p, err := a.look(cmd.Context(), d, args[0], edited)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(p)
			}
			return a.printf("%s%s", a.preview(p, a.style), a.howTo(p, file))
		}),
	}
	a.deskFlags(cmd)
	cmd.Flags().StringVar(&file, "file", "", "preview applying this `file` instead of what was proposed (-: standard input)")
	return cmd
}

// sheet collects the parts of a preview.
type sheet struct {
	strings.Builder
	style style
}

func (s *sheet) field(name, value string) {
	if value == "" {
		return
	}
	s.WriteString(s.style.para(s.style.dim(fmt.Sprintf("%-10s", name)), value))
}

func (s *sheet) heading(text string) {
	s.WriteByte('\n')
	mark := ""
	for _, row := range s.style.rows(s.style.bold(text), 2, true) {
		s.WriteString(mark + row + "\n")
		mark = "↳ "
	}
}

// preview is everything an operator decides on, in the order in which one reads it.
func (a *app) preview(p *operator.Preview, st style) string {
	s := &sheet{style: st}
	s.field("asks to", st.bold(p.Summary.Line(500)))
	if h := safetext.Host(p.Host.Raw()); p.Host != "" && h != p.Host.Raw() {
		s.field("host", h)
	}
	s.field("proposal", string(p.ID))
	s.field("bottle", p.Bottle)
	s.field("tool", safetext.Line(p.Tool, 40))
	s.field("arrived", fmt.Sprintf("%s, %s ago", when(p.ArrivedAt), age(p.Age)))
	a.decision(s, p)
	if p.Decision == nil {
		s.field("agent", agent(p.Connected))
	}
	switch p.State {
	case operator.Failed:
		s.field("failed", st.warn("the last attempt did not hold, and it is open again: ")+escape(p.Error))
	case operator.Stuck:
		s.field("stuck", st.warn(escape(p.Error)))
	case operator.Deciding:
		s.field("state", "being decided at this moment")
	}
	if p.Retry != nil {
		s.field("before", "the same was "+earlier(p.Retry))
	}
	if p.Blocked != "" {
		s.heading("cannot be approved")
		s.WriteString(st.para("  ", escape(p.Blocked)))
	}
	findings(s, p.Findings)
	targets(s, p)
	files(s, p)
	if p.Justification != "" { // else its mailbox has it no more
		s.heading("the agent says (nobody has checked it)")
		s.WriteString(st.fence(p.Justification.String()))
	}
	if p.Digest != "" {
		s.WriteByte('\n')
		s.field("digest", p.Digest)
	}
	return s.String()
}

func agent(c operator.Connected) string {
	switch c {
	case operator.Waiting:
		return "waiting for the answer"
	case operator.Away:
		return "not waiting at the moment; it gets the answer when it asks again"
	}
	return "unknown: no sidecar was heard of for 90 s; it gets the answer when it asks again"
}

// decision tells by whom, when and with what effect.
func (a *app) decision(s *sheet, p *operator.Preview) {
	r := p.Decision
	if r == nil {
		return
	}
	by := escapeLine(r.By)
	if by == "" {
		by = "another program"
	} else if r.Via != "" {
		by += " (" + escapeLine(r.Via) + ")"
	}
	s.field("decided", fmt.Sprintf("%s by %s on %s", s.style.bold(escapeLine(string(r.Status))), by, when(r.At)))
	s.field("outcome", outcome(r.Outcome))
	s.field("notes", r.Notes.String())
	if len(r.Accepted) > 0 {
		s.field("accepted", escapeLine(strings.Join(r.Accepted, ", ")))
	}
	if !r.UndoneAt.IsZero() {
		s.field("undone", fmt.Sprintf("by %s on %s", escapeLine(r.UndoneBy), when(r.UndoneAt)))
	}
	if r.Error != "" {
		s.field("error", r.Error.String())
	}
	for _, t := range r.Targets {
		if t.BeforeSHA256 != t.AfterSHA256 {
			s.field("changed", escapeLine(t.Path))
		}
	}
}

// outcome says what holds after a decision.
func outcome(o queue.Outcome) string {
	switch o {
	case "":
		return ""
	case queue.Live:
		return "live: the change is made and was seen in force"
	case queue.Built:
		return "built: the image is built; it takes effect when the bottle is started from it"
	case queue.Unchanged:
		return "unchanged: it was allowed already"
	case queue.Unverified:
		return "unverified: the change was not seen in force; check that it works"
	case queue.Acknowledged:
		return "acknowledged: recorded; nothing was rebuilt"
	}
	return safetext.Line(string(o), 40)
}

func findings(s *sheet, findings []operator.Finding) {
	if len(findings) == 0 {
		return
	}
	s.heading("findings")
	for _, f := range findings {
		s.finding(f)
		if f.Evidence != "" {
			s.WriteString(s.style.fenceAt("        ", f.Evidence.String()))
		}
	}
}

func (s *sheet) finding(f operator.Finding) {
	level := s.style.dim("note  ")
	if f.Level == operator.Danger {
		level = s.style.danger("DANGER")
	}
	s.WriteString(s.style.para("  "+level+"  ", s.style.bold(escapeLine(f.Code))+": "+escapeLine(f.Text)))
}

// recap says once more, right above the question, what would be granted. An agent's text may be long, and the preview's
// first lines out of sight.
func (a *app) recap(p *operator.Preview) string {
	s := &sheet{style: a.style}
	file := p.Proposed
	if p.Edited != "" {
		file = p.Edited
	}
	about := p.Summary
	if q, err := payload.Parse(p.Tool, file.Raw()); err == nil {
		about = safetext.Untrusted(q.Summary())
	}
	s.field("yes means", s.style.bold(about.Line(500)))
	for _, f := range p.Findings {
		if f.Level == operator.Danger {
			s.finding(f)
		}
	}
	return s.String()
}

func targets(s *sheet, p *operator.Preview) {
	for _, t := range p.Targets {
		s.heading(fmt.Sprintf("%s: %s", t.Kind, escapeLine(t.Path)))
		switch {
		case t.Unknown:
			s.WriteString("  cannot be worked out\n")
		case !t.Changed:
			s.WriteString("  nothing changes\n")
		default:
			s.WriteString(s.style.diff(t.Diff.String()))
		}
	}
	for _, k := range p.Unmanaged {
		s.heading(fmt.Sprintf("%s: not managed", k))
		s.WriteString(s.style.para("  ", "the configuration names no file for it: whoever approves has made the change by hand"))
	}
}

// files shows the payload itself where no diff of a target shows all of it.
func files(s *sheet, p *operator.Preview) {
	if p.Edited != "" {
		s.heading("your edit of what was proposed")
		s.WriteString(s.style.diff(udiff.Unified("proposed", "edited", p.Proposed.String(), p.Edited.String())))
	}
	if p.Decision != nil && p.Decision.FinalFile != "" {
		s.heading("applied instead of what was proposed")
		s.WriteString(s.style.diff(udiff.Unified("proposed", "applied", p.Proposed.String(), p.Decision.FinalFile.String())))
		return
	}
	if p.Edited == "" && (p.Tool != payload.Capability || len(p.Targets) == 0) {
		s.heading("proposed")
		s.WriteString(s.style.fence(p.Proposed.String()))
	}
}

// howTo is the exact commands that decide.
func (a *app) howTo(p *operator.Preview, file string) string {
	var b strings.Builder
	line := func(rest string) { fmt.Fprintf(&b, "  supervise %s%s\n", rest, a.again()) }
	switch {
	case p.State == operator.Deciding:
		return ""
	case p.Decision != nil:
		if p.Decision.Undoable() {
			b.WriteString("\n" + a.style.bold("to take it back") + "\n")
			line("undo " + string(p.ID))
		}
		return b.String()
	}
	b.WriteString("\n" + a.style.bold("to decide") + "\n")
	if p.Blocked == "" {
		var flags strings.Builder
		flags.WriteString(" --digest " + p.Digest)
		if d := p.Dangers(); len(d) > 0 {
			flags.WriteString(" --accept " + strings.Join(d, ","))
		}
		if len(p.Unmanaged) > 0 {
			flags.WriteString(" --unmanaged")
		}
		if file != "" {
			line("modify " + string(p.ID) + " --file " + quote(file) + flags.String())
		} else {
			line("approve " + string(p.ID) + flags.String())
			line("modify " + string(p.ID))
		}
	}
	line("reject " + string(p.ID) + " --notes 'what to do instead'")
	return b.String()
}
