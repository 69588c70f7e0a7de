package web

import (
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/bot-bottle/supervise/internal/operator"
	"github.com/bot-bottle/supervise/queue"
)

// maxSeveral is how many proposals are looked at, and approved, at once.
const maxSeveral = 50

type reviewPage struct {
	page
	Rows    []reviewRow
	Apart   []reviewRow // that have to be decided one by one
	Results []reviewResult
	Alert   *alert
}

type reviewRow struct {
	P       *operator.Preview
	Targets []targetDiff
	Why     string // it has to be decided by itself
}

type reviewResult struct {
	Ref   operator.Ref
	OK    bool
	Title string
	Text  string
}

// parseRef reads BOTTLE/ID.
func parseRef(s string) (operator.Ref, bool) {
	bottle, id, _ := strings.Cut(s, "/")
	pid, err := queue.ParseID(id)
	if err != nil || queue.CheckSlug(bottle) != nil {
		return operator.Ref{}, false
	}
	return operator.Ref{Bottle: bottle, ID: pid}, true
}

// getReview shows several proposals with all that each would change, and one form for those without danger.
func (s *Server) getReview(w http.ResponseWriter, r *http.Request) {
	p := reviewPage{page: s.page(r, "Review several", "inbox")}
	refs := r.URL.Query()["ref"]
	if len(refs) > maxSeveral {
		p.Alert = &alert{Level: "warn", Title: fmt.Sprintf("Only the first %d are shown", maxSeveral)}
		refs = refs[:maxSeveral]
	}
	if len(refs) == 0 {
		http.Redirect(w, r, "/", http.StatusSeeOther)
		return
	}
	for _, name := range refs {
		ref, ok := parseRef(name)
		if !ok {
			s.fail(w, r, http.StatusNotFound, "There is no such proposal", "")
			return
		}
		pre, err := s.desk.Show(r.Context(), ref, nil)
		if err != nil {
			s.broken(w, r, err)
			return
		}
		row := reviewRow{P: pre, Why: apart(pre)}
		if row.Why != "" {
			p.Apart = append(p.Apart, row)
			continue
		}
		s.seen.keep(pre)
		for _, t := range pre.Targets {
			row.Targets = append(row.Targets, targetDiff{t, parseDiff(t.Diff)})
		}
		p.Rows = append(p.Rows, row)
	}
	s.render(w, r, http.StatusOK, "review", p)
}

// apart says why a proposal is not approved together with others.
func apart(p *operator.Preview) string {
	switch {
	case p.Decision != nil:
		return "decided already"
	case p.State != operator.Open:
		return string(p.State)
	case p.Blocked != "":
		return "cannot be applied"
	case p.Danger:
		return "has a danger: " + strings.Join(p.Dangers(), ", ")
	case len(p.Unmanaged) > 0:
		return "is not managed"
	}
	return ""
}

// postReview approves what was shown, each by its own digest; one that fails does not keep back the others.
func (s *Server) postReview(w http.ResponseWriter, r *http.Request) {
	if !s.parse(w, r) {
		return
	}
	items := r.PostForm["item"]
	if len(items) > maxSeveral {
		s.fail(w, r, http.StatusBadRequest, "Too many at once", fmt.Sprintf("At most %d are approved at once.", maxSeveral))
		return
	}
	ctx, cancel := s.deciding(r)
	defer cancel()
	p := reviewPage{}
	for _, it := range items {
		name, digest, _ := strings.Cut(it, " ")
		ref, ok := parseRef(name)
		if !ok {
			s.fail(w, r, http.StatusBadRequest, "The form cannot be read", "")
			return
		}
		res, err := s.desk.Approve(ctx, ref, operator.Decision{Digest: digest})
		if err != nil {
			_, a := explain(err)
			s.log.Info("not decided", "bottle", ref.Bottle, "id", ref.ID)
			p.Results = append(p.Results, reviewResult{Ref: ref, Title: a.Title, Text: a.Text})
			continue
		}
		s.log.Info("approved", "bottle", ref.Bottle, "id", ref.ID, "status", res.Status, "outcome", res.Outcome)
		sessionOf(r).did(ref, res.Notes)
		p.Results = append(p.Results, reviewResult{Ref: ref, OK: true, Title: "Approved", Text: outcomeText(res.Outcome)})
	}
	s.board.changed()
	p.page = s.page(r, "Approved several", "inbox")
	s.render(w, r, http.StatusOK, "review", p)
}

// postDismiss rejects what nobody waits for any more.
func (s *Server) postDismiss(w http.ResponseWriter, r *http.Request) {
	if !s.parse(w, r) {
		return
	}
	var refs []operator.Ref
	for _, name := range r.PostForm["ref"] {
		ref, ok := parseRef(name)
		if !ok {
			s.fail(w, r, http.StatusBadRequest, "The form cannot be read", "")
			return
		}
		refs = append(refs, ref)
	}
	if len(refs) == 0 {
		http.Redirect(w, r, "/", http.StatusSeeOther)
		return
	}
	ctx, cancel := s.deciding(r)
	defer cancel()
	done, err := s.desk.Dismiss(ctx, refs...)
	s.board.changed()
	if err != nil {
		s.broken(w, r, err)
		return
	}
	s.log.Info("dismissed", "count", len(done))
	http.Redirect(w, r, "/?"+url.Values{"dismissed": {strconv.Itoa(len(done))}}.Encode(), http.StatusSeeOther)
}
