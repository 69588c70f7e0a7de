package web

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/bot-bottle/supervise/internal/apply"
	"github.com/bot-bottle/supervise/internal/operator"
	"github.com/bot-bottle/supervise/internal/payload"
	"github.com/bot-bottle/supervise/internal/safetext"
	"github.com/bot-bottle/supervise/queue"
)

// quickNotes are the notes that one press rejects with.
var quickNotes = []string{"too broad", "wrong host", "use an existing route", "not now"}

type proposalPage struct {
	page
	P        *operator.Preview
	Now      time.Duration
	Alerts   []alert
	Targets  []targetDiff
	Edit     *diff // proposed → edited, or → applied
	Proposed string
	Form     form
	Quick    []string
	Done     *outcome // what this browser did to it just now
	Undoable bool
	Undone   bool
	Where    where
	Prev     string // URLs; "" for none
	Next     string
	Of, At   int    // which of how many that are open there; 0: none of them
	Base     string // the digest without an edit, by which the script tells that something changed
}

type targetDiff struct {
	operator.TargetView
	D diff
}

// form is what the operator has put in; it stays when the page comes back.
type form struct {
	Notes     string
	Accept    []string
	Unmanaged bool
	File      *string  // the edited payload
	Missing   []string // dangers whose code is wrong or not there
}

// Has tells whether the code of a danger was typed.
func (f form) Has(code string) bool { return slices.Contains(f.Accept, code) }

// Lacks tells whether it was asked for and not given.
func (f form) Lacks(code string) bool { return slices.Contains(f.Missing, code) }

// First is the danger to be looked at first when the form comes back.
func (f form) First() string {
	if len(f.Missing) == 0 {
		return ""
	}
	return f.Missing[0]
}

func (s *Server) ref(w http.ResponseWriter, r *http.Request) (operator.Ref, bool) {
	id, err := queue.ParseID(r.PathValue("id"))
	if err != nil || queue.CheckSlug(r.PathValue("bottle")) != nil {
		s.fail(w, r, http.StatusNotFound, "There is no such proposal", "The inbox shows what is open, the history what was decided.")
		return operator.Ref{}, false
	}
	return operator.Ref{Bottle: r.PathValue("bottle"), ID: id}, true
}

func (s *Server) getProposal(w http.ResponseWriter, r *http.Request) {
	ref, ok := s.ref(w, r)
	if !ok {
		return
	}
	p, err := s.desk.Show(r.Context(), ref, nil)
	if err != nil {
		s.broken(w, r, err)
		return
	}
	s.show(w, r, http.StatusOK, p, form{})
}

func (s *Server) backToProposal(w http.ResponseWriter, r *http.Request) {
	if ref, ok := s.ref(w, r); ok {
		http.Redirect(w, r, proposalPath(ref)+whereOf(r).String(), http.StatusSeeOther)
	}
}

// show renders a proposal's page with what the operator has put in.
func (s *Server) show(w http.ResponseWriter, r *http.Request, status int, p *operator.Preview, f form, alerts ...alert) {
	s.seen.keep(p)
	pp := proposalPage{page: s.page(r, p.Summary.Line(80), "inbox"), P: p, Now: p.Age, Alerts: alerts, Form: f, Quick: quickNotes, Where: whereOf(r), Base: p.Digest}
	if p.Edited != "" {
		pp.Form.File = new(p.Edited.Raw())
		if base, err := s.desk.Show(r.Context(), p.Ref, nil); err == nil {
			pp.Base = base.Digest
		}
		pp.Edit = new(diffOf(p.Proposed.Raw(), p.Edited.Raw()))
	} else {
		pp.Form.File = nil // an edit that comes to the same is none
	}
	for _, t := range p.Targets {
		pp.Targets = append(pp.Targets, targetDiff{t, parseDiff(t.Diff)})
	}
	if d := p.Decision; d != nil {
		if d.FinalFile != "" {
			pp.Edit = new(diffOf(d.Proposed.Raw(), d.FinalFile.Raw()))
		}
		pp.Undone = d.State == operator.Undone
		pp.Undoable = d.Undoable()
		pp.Done = sessionOf(r).outcome(p.Ref)
	}
	pp.Proposed = p.Proposed.String()
	s.neighbours(r.Context(), &pp)
	s.render(w, r, status, "proposal", pp)
}

// neighbours finds what is open before and after this one, where it was come upon. What is not open there, any more or
// at all, stands where it would.
func (s *Server) neighbours(ctx context.Context, pp *proposalPage) {
	v, err := s.board.get(ctx)
	if err != nil {
		return
	}
	open := pp.Where.pick(v)
	to := func(i int) string {
		if i < 0 || i >= len(open) {
			return ""
		}
		return proposalPath(open[i].Ref) + pp.Where.String()
	}
	if at := slices.IndexFunc(open, func(it *operator.Item) bool { return it.Ref == pp.P.Ref }); at >= 0 {
		pp.At, pp.Of = at+1, len(open)
		pp.Prev, pp.Next = to(at-1), to(at+1)
		return
	}
	after := slices.IndexFunc(open, func(it *operator.Item) bool { return pp.Where.compare(&pp.P.Item, it) < 0 })
	pp.Next = to(max(after, 0))
}

type editPage struct {
	page
	P       *operator.Preview
	Where   where
	File    string
	Warning string
	Alert   *alert
}

func (s *Server) getEdit(w http.ResponseWriter, r *http.Request) {
	ref, ok := s.ref(w, r)
	if !ok {
		return
	}
	p, err := s.desk.Show(r.Context(), ref, nil)
	if err != nil {
		s.broken(w, r, err)
		return
	}
	if p.Decision != nil {
		http.Redirect(w, r, proposalPath(ref)+whereOf(r).String(), http.StatusSeeOther)
		return
	}
	file, warning := editable(p.Tool, p.Proposed)
	s.edit(w, r, http.StatusOK, p, file, warning, nil)
}

func (s *Server) edit(w http.ResponseWriter, r *http.Request, status int, p *operator.Preview, file, warning string, a *alert) {
	s.render(w, r, status, "edit", editPage{page: s.page(r, "Edit: "+p.Summary.Line(80), "inbox"), P: p, Where: whereOf(r), File: file, Warning: warning, Alert: a})
}

// editable is a payload as text that can be shown and typed. Where the agent's text cannot be shown as it is, the
// operator edits what is shown.
func editable(tool string, proposed safetext.Untrusted) (file, warning string) {
	if tool == payload.Egress {
		if p, err := payload.Parse(tool, proposed.Raw()); err == nil {
			if b, err := safetext.JSON(p.Route); err == nil {
				return string(b) + "\n", "" // JSON has escapes of its own, so nothing is lost
			}
		}
	}
	file = proposed.String()
	if file != proposed.Raw() {
		warning = `It has characters that cannot be shown. They are written as \x1b or \u202e below, and what you leave of that is applied as you see it.`
	}
	return file, warning
}

// formFile is an edited payload as it was typed: browsers send line ends as CR LF.
func formFile(r *http.Request) *string {
	if !r.PostForm.Has("file") {
		return nil
	}
	return new(strings.ReplaceAll(r.PostForm.Get("file"), "\r\n", "\n"))
}

// postEdit previews an edit. It changes nothing; it is a POST because of its size.
func (s *Server) postEdit(w http.ResponseWriter, r *http.Request) {
	ref, ok := s.ref(w, r)
	if !ok || !s.parse(w, r) {
		return
	}
	file := formFile(r)
	if file == nil {
		s.backToProposal(w, r)
		return
	}
	f := formOf(r)
	if r.PostForm.Has("again") { // back from the preview, with the text as it is
		s.editAgain(w, r, ref, *file, nil)
		return
	}
	p, err := s.desk.Show(r.Context(), ref, file)
	if e, ok := errors.AsType[*operator.EditError](err); ok {
		s.editAgain(w, r, ref, *file, &alert{Level: "danger", Title: "This is not a valid edit", Text: safetext.Block(e.Err.Error())})
		return
	}
	if err != nil {
		s.broken(w, r, err)
		return
	}
	var alerts []alert
	if p.Edited == "" && p.Decision == nil {
		alerts = []alert{{Level: "note", Title: "Your edit asks for the same as the proposal", Text: "Approving approves it as it was proposed."}}
	}
	s.show(w, r, http.StatusOK, p, f, alerts...)
}

func (s *Server) editAgain(w http.ResponseWriter, r *http.Request, ref operator.Ref, file string, a *alert) {
	p, err := s.desk.Show(r.Context(), ref, nil)
	if err != nil {
		s.broken(w, r, err)
		return
	}
	status := http.StatusOK
	if a != nil {
		status = http.StatusUnprocessableEntity
	}
	s.edit(w, r, status, p, file, "", a)
}

func formOf(r *http.Request) form {
	f := form{Notes: strings.ReplaceAll(r.PostForm.Get("notes"), "\r\n", "\n"), Unmanaged: r.PostForm.Get("unmanaged") != "", File: formFile(r)}
	for _, code := range r.PostForm["accept"] {
		if code = strings.TrimSpace(code); code != "" {
			f.Accept = append(f.Accept, code)
		}
	}
	return f
}

// maxNotes is the longest note, in bytes; the form stops sooner.
const maxNotes = 16 << 10

var errNotes = fmt.Errorf("a note has at most %d bytes", maxNotes)

// deciding is the context of a verb: a browser that hangs up does not end it, the server's end does.
func (s *Server) deciding(r *http.Request) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.Context()))
	stop := context.AfterFunc(s.lifetime, cancel)
	return ctx, func() { stop(); cancel() }
}

func (s *Server) postApprove(w http.ResponseWriter, r *http.Request) {
	ref, ok := s.ref(w, r)
	if !ok || !s.parse(w, r) {
		return
	}
	f, digest := formOf(r), r.PostForm.Get("digest")
	if len(f.Notes) > maxNotes {
		s.refused(w, r, ref, f, digest, errNotes, "")
		return
	}
	ctx, cancel := s.deciding(r)
	defer cancel()
	var progress tail
	res, err := s.desk.Approve(ctx, ref, operator.Decision{Digest: digest, Accept: f.Accept, Notes: f.Notes, File: f.File, Unmanaged: f.Unmanaged, Progress: &progress})
	s.board.changed()
	if err != nil {
		s.refused(w, r, ref, f, digest, err, progress.String())
		return
	}
	s.log.Info("approved", "bottle", ref.Bottle, "id", ref.ID, "status", res.Status, "outcome", res.Outcome)
	sessionOf(r).did(ref, res.Notes)
	http.Redirect(w, r, proposalPath(ref)+whereOf(r).String(), http.StatusSeeOther)
}

func (s *Server) postReject(w http.ResponseWriter, r *http.Request) {
	ref, ok := s.ref(w, r)
	if !ok || !s.parse(w, r) {
		return
	}
	f := formOf(r)
	if q := r.PostForm.Get("quick"); q != "" {
		if f.Notes != "" {
			q += ": " + f.Notes
		}
		f.Notes = q
	}
	if len(f.Notes) > maxNotes {
		s.refused(w, r, ref, f, "", errNotes, "")
		return
	}
	ctx, cancel := s.deciding(r)
	defer cancel()
	res, err := s.desk.Reject(ctx, ref, f.Notes)
	s.board.changed()
	if err != nil {
		s.refused(w, r, ref, f, r.PostForm.Get("digest"), err, "")
		return
	}
	s.log.Info("rejected", "bottle", ref.Bottle, "id", ref.ID)
	sessionOf(r).did(ref, res.Notes)
	http.Redirect(w, r, proposalPath(ref)+whereOf(r).String(), http.StatusSeeOther)
}

// postUndo takes back the decision that was shown, not one that came since.
func (s *Server) postUndo(w http.ResponseWriter, r *http.Request) {
	ref, ok := s.ref(w, r)
	if !ok || !s.parse(w, r) {
		return
	}
	p, err := s.desk.Show(r.Context(), ref, nil)
	if err != nil {
		s.broken(w, r, err)
		return
	}
	if p.Decision == nil || p.Decision.Digest != r.PostForm.Get("digest") {
		s.show(w, r, http.StatusConflict, p, form{}, alert{Level: "warn", Title: "Nothing was undone", Text: "What stands here now is not the decision that you saw."})
		return
	}
	ctx, cancel := s.deciding(r)
	defer cancel()
	var progress tail
	res, err := s.desk.Undo(ctx, ref, &progress)
	s.board.changed()
	if err != nil {
		s.refused(w, r, ref, form{}, "", err, progress.String())
		return
	}
	s.log.Info("undone", "bottle", ref.Bottle, "id", ref.ID, "outcome", res.Outcome)
	sessionOf(r).did(ref, res.Notes)
	http.Redirect(w, r, proposalPath(ref)+whereOf(r).String(), http.StatusSeeOther)
}

// refused shows why a verb did nothing, on the page of its proposal as that is now.
func (s *Server) refused(w http.ResponseWriter, r *http.Request, ref operator.Ref, f form, digest string, err error, progress string) {
	status, a := explain(err)
	if f, ok := errors.AsType[*apply.Failure](err); ok { // its cause names hosts and paths of the payload
		s.log.Error("a change did not hold", "bottle", ref.Bottle, "id", ref.ID, "step", f.Step, "target", f.Kind, "left", len(f.Left))
	} else if status >= http.StatusInternalServerError {
		s.log.Error("deciding", "bottle", ref.Bottle, "id", ref.ID, "err", fmt.Sprintf("%.500v", err))
	} else {
		s.log.Info("not decided", "bottle", ref.Bottle, "id", ref.ID, "status", status)
	}
	if e, ok := errors.AsType[*operator.EditError](err); ok && f.File != nil {
		s.editAgain(w, r, ref, *f.File, &alert{Level: "danger", Title: "This is not a valid edit", Text: safetext.Block(e.Err.Error())})
		return
	}
	a.Pre = safetext.Block(progress)
	var p *operator.Preview
	if stale, ok := errors.AsType[*operator.StaleError](err); ok {
		p = stale.Preview
		if a.Diff = s.seen.difference(digest, p); a.Diff == nil {
			a.Text += " What you saw is not known here any more: read all of it again."
		}
		f.Accept, f.Unmanaged = nil, false // they were about something else
	} else {
		var serr error
		if p, serr = s.desk.Show(r.Context(), ref, f.File); serr != nil {
			s.broken(w, r, err)
			return
		}
	}
	if danger, ok := errors.AsType[*operator.DangerError](err); ok {
		for _, d := range danger.Findings {
			f.Missing = append(f.Missing, d.Code)
		}
	}
	s.show(w, r, status, p, f, a)
}

// explain is the one table from errors to statuses and what a person is told.
func explain(err error) (int, alert) {
	text := safetext.Block(err.Error())
	if e, ok := errors.AsType[*operator.StaleError](err); ok && e != nil {
		return http.StatusConflict, alert{Level: "warn", Title: "This has changed since you saw it, so nothing was done", Text: "Below is what would change now. Decide on that."}
	}
	if e, ok := errors.AsType[*operator.DecidedError](err); ok {
		by := safetext.Line(e.By, 120)
		if by == "" {
			by = "another program"
		} else if e.Via != "" {
			by += " (" + safetext.Line(e.Via, 20) + ")"
		}
		return http.StatusConflict, alert{Level: "warn", Title: fmt.Sprintf("Already %s by %s", safetext.Line(string(e.Status), 40), by), Text: "That was on " + when(e.At) + ". You changed nothing."}
	}
	if e, ok := errors.AsType[*operator.DangerError](err); ok {
		var codes []string
		for _, f := range e.Findings {
			codes = append(codes, f.Code)
		}
		return http.StatusUnprocessableEntity, alert{Level: "danger", Title: "Not approved: a danger was not accepted", Text: "Read it, and if you mean it, type its code below: " + strings.Join(codes, ", ") + "."}
	}
	if e, ok := errors.AsType[*operator.UnmanagedError](err); ok {
		var kinds []string
		for _, k := range e.Kinds {
			kinds = append(kinds, string(k))
		}
		return http.StatusUnprocessableEntity, alert{Level: "warn", Title: "Not approved: " + strings.Join(kinds, ", ") + " is not managed",
			Text: "Make the change by hand and say so below, or name its file in supervise.yaml."}
	}
	if e, ok := errors.AsType[*operator.EditError](err); ok {
		return http.StatusUnprocessableEntity, alert{Level: "danger", Title: "This is not a valid edit", Text: safetext.Block(e.Err.Error())}
	}
	if e, ok := errors.AsType[*apply.Failure](err); ok && e.Undo {
		a := alert{Level: "danger", Title: "Nothing was taken back", Text: text + "\nMend the cause, then undo it again."}
		if len(e.Restored) > 0 {
			a.Title = "Taken back, but not seen in force"
			a.Text = text + "\nThese files are as they were before the approval. Mend the cause, then undo it again:\n" + safetext.Block(strings.Join(e.Restored, "\n"))
		} else if len(e.Left) > 0 {
			a.Text = text + "\nTake it out by hand:\n" + safetext.Block(strings.Join(e.Left, "\n"))
		}
		return http.StatusBadGateway, a
	} else if ok {
		a := alert{Level: "danger", Title: "The change did not hold, and was put back", Text: safetext.Block(e.Error()) + "\nThe proposal is open again; the agent goes on waiting."}
		if len(e.Left) > 0 {
			a.Title = "The change did not hold, and not all of it could be put back"
			a.Text = safetext.Block(e.Error()) + "\nLook at these files:\n" + safetext.Block(strings.Join(e.Left, "\n"))
		}
		return http.StatusBadGateway, a
	}
	switch {
	case errors.Is(err, errNotes):
		return http.StatusUnprocessableEntity, alert{Level: "warn", Title: "The note is too long", Text: text}
	case errors.Is(err, operator.ErrBlocked):
		return http.StatusConflict, alert{Level: "warn", Title: "This cannot be applied", Text: text}
	case errors.Is(err, operator.ErrNotUndoable):
		return http.StatusConflict, alert{Level: "warn", Title: "This cannot be undone", Text: text}
	case errors.Is(err, operator.ErrNotFound), errors.Is(err, queue.ErrNotFound):
		return http.StatusNotFound, alert{Level: "warn", Title: "There is no such proposal", Text: "The inbox shows what is open, the history what was decided."}
	case errors.Is(err, queue.ErrDecided), errors.Is(err, queue.ErrLate):
		return http.StatusConflict, alert{Level: "warn", Title: "Already decided", Text: text}
	case errors.Is(err, context.Canceled):
		return http.StatusServiceUnavailable, alert{Level: "warn", Title: "The desk is ending", Text: "Whatever was begun is finished or put back by the next command."}
	}
	return http.StatusInternalServerError, alert{Level: "danger", Title: "That did not work", Text: text}
}
