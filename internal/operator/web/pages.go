package web

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/bot-bottle/supervise/internal/apply"
	"github.com/bot-bottle/supervise/internal/config"
	"github.com/bot-bottle/supervise/internal/operator"
	"github.com/bot-bottle/supervise/internal/safetext"
	"github.com/bot-bottle/supervise/queue"
)

// perPage is how many proposals one page of the inbox has.
const perPage = 25

// maxFolded is how many abandoned proposals are listed.
const maxFolded = 50

type inboxPage struct {
	page
	where
	Bottles       []string
	Rows          []inboxRow
	Matching      int // over all pages
	Dangers       int // of all that are open
	Number, Pages int
	Prev, Next    string // URLs; "" for none
	Abandoned     []inboxRow
	Folded        int
	Problems      []operator.Problem
	Alert         *alert
	Notice        string
}

// inboxRow is flat: a template takes much longer to find the fields of an embedded struct.
type inboxRow struct {
	Ref       operator.Ref
	URL       string
	Bottle    string
	ID        queue.ID
	Tool      string
	Summary   safetext.Untrusted
	State     operator.State
	Blocked   string // why it cannot be approved; escaped
	ByHand    string // the kinds of target that are not managed
	Connected operator.Connected
	Danger    bool
	Retry     *operator.Earlier
	ArrivedAt time.Time
	Now       time.Duration // its age
	Head      string        // a group begins here; escaped
	Urgent    []string      // codes of dangers
	Notes     []string      // codes of the rest
}

func (s *Server) getInbox(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	p := inboxPage{page: page{Title: "Inbox", Section: "inbox", In: true, Open: -1}, where: whereOf(r)}
	v, err := s.board.get(r.Context())
	if err != nil {
		s.log.Error("looking at the mailboxes", "err", fmt.Sprintf("%.500v", err))
		p.Alert = &alert{Level: "danger", Title: "The mailboxes cannot be read", Text: safetext.Block(err.Error())}
		s.render(w, r, http.StatusServiceUnavailable, "inbox", p)
		return
	}
	p.Open, p.Rev, p.Bottles, p.Problems = 0, v.rev, v.Bottles, v.Problems
	match := p.match()
	for i := range v.Items {
		it := &v.Items[i]
		if !it.Abandoned {
			p.Open++
			if it.Danger {
				p.Dangers++
			}
		}
		if it.Abandoned && match(it) {
			if p.Folded++; p.Folded <= maxFolded {
				p.Abandoned = append(p.Abandoned, rowOf(v, *it, p.where))
			}
		}
	}
	head, items := groupBy(p.Group), p.pick(v)
	p.Matching = len(items)
	p.Pages = max(1, (len(items)+perPage-1)/perPage)
	number, err := strconv.Atoi(q.Get("page"))
	if err != nil {
		number = 1
	}
	p.Number = min(max(number, 1), p.Pages)
	last := "\x00"
	for _, it := range items[(p.Number-1)*perPage : min(p.Number*perPage, len(items))] {
		row := rowOf(v, *it, p.where)
		if head != nil && head(it) != last {
			last = head(it)
			row.Head = cmp.Or(last, "no host")
		}
		p.Rows = append(p.Rows, row)
	}
	to := func(n int) string {
		if n < 1 || n > p.Pages {
			return ""
		}
		u := p.values()
		u.Set("page", strconv.Itoa(n))
		return "/?" + u.Encode()
	}
	p.Prev, p.Next = to(p.Number-1), to(p.Number+1)
	if n := q.Get("dismissed"); n != "" {
		p.Notice = "Dismissed: " + safetext.Line(n, 10) + "."
	}
	s.render(w, r, http.StatusOK, "inbox", p)
}

// where is the part of the inbox that somebody looks at. The pages of its proposals keep it in their links.
type where struct{ Query, Bottle, Group string }

func whereOf(r *http.Request) where {
	q := r.URL.Query()
	w := where{q.Get("q"), q.Get("bottle"), q.Get("group")}
	if groupBy(w.Group) == nil {
		w.Group = ""
	}
	return w
}

func (w where) values() url.Values {
	u := url.Values{}
	for k, val := range map[string]string{"q": w.Query, "bottle": w.Bottle, "group": w.Group} {
		if val != "" {
			u.Set(k, val)
		}
	}
	return u
}

// String is what it adds to a URL.
func (w where) String() string {
	if w == (where{}) {
		return ""
	}
	return "?" + w.values().Encode()
}

// Some tells whether it leaves something out.
func (w where) Some() bool { return w.Query != "" || w.Bottle != "" }

func (w where) match() func(*operator.Item) bool {
	match := operator.Filter(w.Query)
	return func(it *operator.Item) bool { return (w.Bottle == "" || it.Bottle == w.Bottle) && match(it) }
}

// compare is the order in which it is shown.
func (w where) compare(a, b *operator.Item) int {
	return compareBy(groupBy(w.Group), a, b)
}

func compareBy(head func(*operator.Item) string, a, b *operator.Item) int {
	if head != nil && (a.State == operator.Stuck) == (b.State == operator.Stuck) { // what is stuck is first anyhow
		if c := strings.Compare(head(a), head(b)); c != 0 {
			return c
		}
	}
	return a.Compare(b)
}

// sortBy asks for the head of each item once: that of a long host in another script takes a while.
func sortBy(items []*operator.Item, head func(*operator.Item) string) {
	heads := make(map[*operator.Item]string, len(items))
	for _, it := range items {
		heads[it] = head(it)
	}
	slices.SortStableFunc(items, func(a, b *operator.Item) int {
		return compareBy(func(it *operator.Item) string { return heads[it] }, a, b)
	})
}

// pick is what is open there, but for the abandoned ones.
func (w where) pick(v view) []*operator.Item {
	items, match := make([]*operator.Item, 0, len(v.Items)), w.match()
	for i := range v.Items {
		if it := &v.Items[i]; !it.Abandoned && match(it) {
			items = append(items, it)
		}
	}
	if head := groupBy(w.Group); head != nil {
		sortBy(items, head)
	}
	return items
}

func groupBy(name string) func(*operator.Item) string {
	switch name {
	case "host":
		return func(it *operator.Item) string { return safetext.Host(it.Host.Raw()) }
	case "bottle":
		return func(it *operator.Item) string { return it.Bottle }
	case "tool":
		return func(it *operator.Item) string { return toolWord(it.Tool) }
	}
	return nil
}

func rowOf(v view, it operator.Item, w where) inboxRow {
	row := inboxRow{
		Ref: it.Ref, URL: proposalPath(it.Ref) + w.String(), Bottle: it.Bottle, ID: it.ID, Tool: it.Tool, Summary: it.Summary, State: it.State, Blocked: it.Blocked, ByHand: apply.JoinKinds(it.Unmanaged), Connected: it.Connected, Danger: it.Danger,
		Retry: it.Retry, ArrivedAt: it.ArrivedAt, Now: v.age(it),
	}
	for _, f := range it.Findings {
		if f.Level == operator.Danger {
			row.Urgent = append(row.Urgent, f.Code)
		} else {
			row.Notes = append(row.Notes, f.Code)
		}
	}
	return row
}

// historyStep is how many lines the history grows by.
const (
	historyStep = 100
	historyMost = 2000
)

type historyPage struct {
	page
	Filter  operator.HistoryFilter
	Since   string
	Bottles []string
	Entries []operator.LedgerEntry
	More    string // URL; "" when this is all
	Alert   *alert
}

func (s *Server) getHistory(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	p := historyPage{page: s.page(r, "History", "history"), Since: q.Get("since")}
	p.NoFresh = false
	p.Filter = operator.HistoryFilter{Query: q.Get("q"), Bottle: q.Get("bottle"), Status: queue.Status(q.Get("status")), Event: q.Get("event")}
	if p.Since != "" {
		t, err := time.ParseInLocation(time.DateOnly, p.Since, time.Local)
		if err != nil {
			p.Alert = &alert{Level: "warn", Title: "That is no date", Text: "Since wants a date such as 2026-05-17."}
		}
		p.Filter.Since = t
	}
	limit, err := strconv.Atoi(q.Get("n"))
	if err != nil {
		limit = historyStep
	}
	limit = min(max(limit, 1), historyMost)
	if v, err := s.board.get(r.Context()); err == nil {
		p.Bottles = v.Bottles
	}
	var problem error
	if p.Entries, problem = s.history(r.Context(), p.Filter, limit+1); problem != nil {
		p.Alert = &alert{Level: "danger", Title: "The ledger cannot be read to its end", Text: safetext.Block(problem.Error())}
	}
	if len(p.Entries) > limit {
		p.Entries = p.Entries[:limit]
		if limit < historyMost {
			q.Set("n", strconv.Itoa(min(limit+historyStep, historyMost)))
			p.More = "/history?" + q.Encode()
		}
	}
	s.render(w, r, http.StatusOK, "history", p)
}

// history reads up to n lines, newest first; an unreadable one does not hide the others.
func (s *Server) history(ctx context.Context, f operator.HistoryFilter, n int) ([]operator.LedgerEntry, error) {
	f.Limit = n
	var out []operator.LedgerEntry
	var problem error
	for e, err := range s.desk.History(ctx, f) {
		if err != nil {
			problem = err
			continue
		}
		out = append(out, e)
	}
	return out, problem
}

type ledgerPage struct {
	page
	Report  *operator.AuditReport
	Head    string // that was asked about
	Entries []operator.LedgerEntry
	Alert   *alert
}

func (s *Server) getLedger(w http.ResponseWriter, r *http.Request) {
	p := ledgerPage{page: s.page(r, "Ledger", "ledger"), Head: strings.TrimSpace(r.URL.Query().Get("head"))}
	var err error
	if p.Report, err = s.desk.Audit(r.Context(), p.Head); err != nil {
		s.broken(w, r, err)
		return
	}
	if p.Entries, err = s.history(r.Context(), operator.HistoryFilter{}, historyStep); err != nil {
		p.Alert = &alert{Level: "danger", Title: "Not every line can be read", Text: safetext.Block(err.Error())}
	}
	s.render(w, r, http.StatusOK, "ledger", p)
}

type bottlesPage struct {
	page
	Bottles []bottleLine
	Alert   *alert
}

type bottleLine struct {
	Slug     string
	Open     int
	Dangers  int
	Waiting  int // agents
	Oldest   time.Duration
	Problems int
}

func (s *Server) getBottles(w http.ResponseWriter, r *http.Request) {
	v, err := s.board.get(r.Context())
	if err != nil {
		s.broken(w, r, err)
		return
	}
	p := bottlesPage{page: s.page(r, "Bottles", "bottles")}
	p.NoFresh = false
	p.Bottles = bottleLines(v)
	s.render(w, r, http.StatusOK, "bottles", p)
}

func bottleLines(v view) []bottleLine {
	at := map[string]int{}
	var out []bottleLine
	for _, b := range v.Bottles {
		at[b] = len(out)
		out = append(out, bottleLine{Slug: b})
	}
	for _, it := range v.Items {
		i, ok := at[it.Bottle]
		if !ok || it.Abandoned {
			continue
		}
		l := &out[i]
		l.Open++
		if it.Danger {
			l.Dangers++
		}
		if it.Connected == operator.Waiting {
			l.Waiting++
		}
		l.Oldest = max(l.Oldest, v.age(it))
	}
	for _, pr := range v.Problems {
		if i, ok := at[pr.Bottle]; ok {
			out[i].Problems += pr.Count()
		}
	}
	return out
}

type bottlePage struct {
	page
	Slug     string
	Rows     []inboxRow
	Folded   int
	Problems []operator.Problem
	Targets  config.Bottle
	Table    routeTable
	Recent   []operator.LedgerEntry
	Alert    *alert
}

func (s *Server) getBottle(w http.ResponseWriter, r *http.Request) {
	slug := r.PathValue("bottle")
	v, err := s.board.get(r.Context())
	if err != nil {
		s.broken(w, r, err)
		return
	}
	if !slices.Contains(v.Bottles, slug) {
		s.fail(w, r, http.StatusNotFound, "There is no such bottle", "A sidecar makes its mailbox when it starts.")
		return
	}
	p := bottlePage{page: s.page(r, "Bottle "+slug, "bottles"), Slug: slug}
	p.NoFresh = false
	for _, it := range v.Items {
		switch {
		case it.Bottle != slug:
		case it.Abandoned:
			p.Folded++
		default:
			p.Rows = append(p.Rows, rowOf(v, it, where{}))
		}
	}
	for _, pr := range v.Problems {
		if pr.Bottle == slug {
			p.Problems = append(p.Problems, pr)
		}
	}
	if s.opts.Targets != nil {
		p.Targets = s.opts.Targets(slug)
		p.Table = liveTable(r.Context(), p.Targets.Egress)
	}
	if p.Recent, err = s.history(r.Context(), operator.HistoryFilter{Bottle: slug}, 20); err != nil {
		p.Alert = &alert{Level: "danger", Title: "The ledger cannot be read to its end", Text: safetext.Block(err.Error())}
	}
	s.render(w, r, http.StatusOK, "bottle", p)
}
