package model

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/bot-bottle/supervise/internal/payload"
	"github.com/bot-bottle/supervise/internal/routes"
	"github.com/bot-bottle/supervise/queue"
	"github.com/bot-bottle/supervise/tools"
)

const (
	maxPending = 4
	hastyHold  = time.Second
	maxRetries = 3
	hour       = time.Hour
)

// question is what an agent may ask.
type question struct {
	tool string
	args map[string]any
	edit string // what an operator may make of it
}

var questions = []question{
	{payload.Egress, map[string]any{"host": "a.example.com"}, `{"host":"a.example.com","path_allowlist":["/only/"]}`},
	{payload.Egress, map[string]any{"host": "a.example.com", "path_allowlist": []string{"/x/"}}, `{"host":"a.example.com","path_allowlist":["/x/y/"]}`},
	{payload.Egress, map[string]any{"host": "b.example.com", "path_allowlist": []string{"/p/", "/q/"}}, `{"host":"b.example.com","path_allowlist":["/p/"]}`},
	{payload.Egress, map[string]any{"host": "api.github.com", "path_allowlist": []string{"/user"}}, `{"host":"api.github.com","path_allowlist":["/users"]}`},
	{payload.Pipelock, map[string]any{"failed_url": "https://a.example.com/z"}, "https://c.example.com/"},
	{payload.Pipelock, map[string]any{"failed_url": "https://c.example.com/"}, "https://d.example.com/"},
}

// model is what must hold, by the rules alone.
type model struct {
	byQuestion [6][]*asked // oldest first; the last may be one whose storing failed
	byID       map[queue.ID]*asked
	held       []*call
	armed      *armed // guarded by world.mu; a fault that has not come yet
}

type armed struct {
	step string
	done bool
}

func newModel() *model { return &model{byID: map[queue.ID]*asked{}} }

// asked is one proposal.
type asked struct {
	id       queue.ID // "" of one that is not stored
	question int
	words    string
	created  time.Time // by the call that first asked
	stored   time.Time // by the one whose proposal was stored, if that was another
	// retry: the same had been rejected before. The sidecar may or may not remember that after two hours.
	surely, perhaps bool
	unsaved         bool      // storing it failed, whether or not it was done
	delivered       time.Time // zero: not yet

	decision  *decision // guarded by world.mu
	undone    bool      // guarded by world.mu; an operator's program has said so in the mailbox
	attempted bool      // an operator's program has begun to approve it
	disturbed bool      // and meanwhile a person took the host's route away, or the files were edited
}

type decision struct {
	foreign bool   // by another program
	by      string // the operator who decided, once somebody has said so; whoever finishes it after a crash may be another
	resp    queue.Response
	payload payload.Payload // what was approved
}

// decidedBy notes who is said to have decided; it must always be the same one.
func (d *decision) decidedBy(name string) bool {
	if d.by == "" && !d.foreign {
		d.by = name
	}
	return d.by == name
}

func (w *world) decision(a *asked) *decision {
	w.mu.Lock()
	defer w.mu.Unlock()
	return a.decision
}

// undone tells whether an operator's program has said that a was taken back.
func (w *world) undone(a *asked) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return a.undone
}

// decided is called when a response has been created.
func (w *world) decided(by string, r queue.Response, p queue.Proposal) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	a := w.model.byID[r.ProposalID]
	if a == nil {
		return fmt.Errorf("%s is answered and was never asked", r.ProposalID)
	}
	if a.decision != nil {
		return fmt.Errorf("%s is decided twice: %+v, then %+v", a.id, a.decision, r)
	}
	d := &decision{foreign: by == "", resp: r}
	a.decision = d
	if r.Status == queue.Rejected || d.foreign {
		return nil
	}
	var err error
	if d.payload, err = payloadOf(p, r); err != nil {
		return err
	}
	if r.Outcome == queue.Live && !a.disturbed {
		if err := w.covers(d.payload); err != nil {
			return fmt.Errorf("%s is answered as live and is not: %w", a.id, err)
		}
	}
	return nil
}

// hits tells whether the armed fault is one of step; the mailbox uses it up.
func (w *world) hits(step string) *armed {
	w.mu.Lock()
	defer w.mu.Unlock()
	if a := w.model.armed; a != nil && a.step == step {
		return a
	}
	return nil
}

// fresh returns the one proposal in the mailbox that the model does not know, or "".
func (w *world) fresh() (queue.ID, error) {
	var found queue.ID
	for e, err := range w.mem.Entries(context.Background(), bottle) {
		if err != nil {
			return "", err
		}
		if w.model.byID[e.Proposal.ID] != nil {
			continue
		}
		if found != "" {
			return "", errors.New("one call has made two proposals")
		}
		found = e.Proposal.ID
	}
	return found, nil
}

func (w *world) countOpen() int {
	n := 0
	for _, a := range w.model.byID {
		if w.decision(a) == nil {
			n++
		}
	}
	return n
}

// ask asks question q and checks what comes of it.
func (w *world) ask(q int, words, client string, lost bool) {
	m := w.model
	var last *asked
	if all := m.byQuestion[q]; len(all) > 0 {
		last = all[len(all)-1]
	}
	w.offBoundary(q)
	var since time.Duration
	var d *decision
	if last != nil {
		d = w.decision(last)
		if !last.delivered.IsZero() {
			since = time.Since(last.delivered)
		}
	}
	isNew, want, again := false, "", false
	switch {
	case last == nil:
		isNew = true
	case last.unsaved:
		again = true
	case d == nil:
		want = "held"
	case last.delivered.IsZero():
		want = "answer"
	case since <= tools.DefaultRedeliver && last.words == words && !w.undone(last):
		want = "answer"
	case d.resp.Status == queue.Rejected:
		surely, perhaps := 0, 0
		for _, a := range m.byQuestion[q] {
			if time.Since(a.created) < hour {
				surely += count(a.surely)
			}
			if time.Since(a.stored) < hour { // which is what a restarted sidecar goes by
				perhaps += count(a.perhaps)
			}
		}
		isNew = surely < maxRetries
		if surely >= maxRetries {
			want = "refused"
		} else if perhaps >= maxRetries {
			want = "new or refused"
		}
	default:
		isNew = true
	}
	full := w.countOpen() >= maxPending
	fault := w.hits("put")

	args := map[string]any{"justification": words}
	maps.Copy(args, questions[q].args)
	c := w.call(questions[q].tool, client, lost, args)
	id, err := w.fresh()
	if err != nil {
		w.t.Fatal(err)
	}
	failed := c.done() && c.reply.err == nil && c.reply.isError && c.reply.meta.Status == ""
	switch {
	case c.done() && c.reply.err != nil:
		w.t.Fatalf("question %d: %v", q, c.reply.err)
	case want == "new or refused" && failed && strings.Contains(c.reply.text, "rejected, and asked again"):
		return
	case want == "refused":
		if !failed || !strings.Contains(c.reply.text, "rejected, and asked again") || id != "" {
			w.t.Fatalf("question %d, rejected too often: %+v, want it refused", q, c.reply)
		}
		return
	case (isNew && full) && !again:
		if !failed || !strings.Contains(c.reply.text, "wait for the operator already") || id != "" {
			w.t.Fatalf("question %d, too many open: %+v, want it refused", q, c.reply)
		}
		return
	case again || isNew:
		a := last
		if !again {
			rejected := d != nil && d.resp.Status == queue.Rejected
			a = &asked{question: q, words: words, created: time.Now(), perhaps: rejected, surely: rejected && since < hour+55*time.Minute}
			m.byQuestion[q] = append(m.byQuestion[q], a)
		}
		if a.id == "" && id != "" {
			a.id, a.stored = id, time.Now()
			w.mu.Lock()
			m.byID[id] = a
			w.mu.Unlock()
		} else if id != "" {
			w.t.Fatalf("question %d made proposal %s beside %s", q, id, a.id)
		}
		repeat := again && a.id != "" && id == "" // it was stored: putting it once more is no step
		if fault != nil && !repeat {
			if !failed || !strings.Contains(c.reply.text, "storing the proposal failed") || fault.done != (a.id != "") {
				w.t.Fatalf("question %d, storing fails (done %v): %+v, id %s", q, fault.done, c.reply, a.id)
			}
			a.unsaved = true
			return
		}
		if a.id == "" {
			w.t.Fatalf("question %d made no proposal: %+v", q, c.reply)
		}
		a.unsaved = false
		c.id = a.id
	default: // it stands for last, which is open or answered
		if id != "" {
			w.t.Fatalf("question %d made another proposal %s, want %s of %s again", q, id, want, last.id)
		}
		c.id = last.id
		if want == "answer" && !c.done() {
			w.t.Fatalf("question %d is held, and %s is decided", q, last.id)
		}
	}
	m.held = append(m.held, c)
	w.collect()
}

func count(b bool) int {
	if b {
		return 1
	}
	return 0
}

// offBoundary waits a little where a limit in time is so near that either outcome would be right.
func (w *world) offBoundary(q int) {
	near := func(t time.Time, limit time.Duration) bool {
		return !t.IsZero() && (time.Since(t)-limit).Abs() < 2*time.Second
	}
	for again := true; again; {
		again = false
		for _, a := range w.model.byQuestion[q] {
			if near(a.delivered, tools.DefaultRedeliver) || near(a.created, hour) || near(a.stored, hour) {
				again = true
				time.Sleep(5 * time.Second) // in the bubble of the run
				w.settle()
				w.collect()
			}
		}
	}
}

// await is await-decision.
func (w *world) await(id queue.ID, client string, lost bool) {
	c := w.call(tools.Await, client, lost, map[string]any{"proposal_id": string(id)})
	c.id = id
	w.model.held = append(w.model.held, c)
	w.collect()
}

// collect looks at every call that was held: it goes on waiting, or it has the one answer that is right.
func (w *world) collect() {
	m := w.model
	m.held = slices.DeleteFunc(m.held, func(c *call) bool {
		a := m.byID[c.id]
		d := w.decision(a)
		waited := time.Since(c.began)
		if !c.done() {
			if d != nil {
				w.t.Fatalf("a call still waits for %s, which is %s", a.id, d.resp.Status)
			}
			if c.client == "hasty" && waited > hastyHold+time.Second {
				w.t.Fatalf("a call waits for %s since %v", a.id, waited)
			}
			return false
		}
		r := c.reply
		switch {
		case r.err != nil:
			w.t.Fatalf("the call for %s: %v", a.id, r.err)
		case r.meta.Status == tools.Pending:
			if c.client != "hasty" || waited < hastyHold || !strings.HasPrefix(r.text, "status: pending\nproposal_id: "+string(a.id)+"\n") || r.isError {
				w.t.Fatalf("after %v a call for %s is told %q", waited, a.id, r.text)
			}
			return true
		case d == nil:
			w.t.Fatalf("a call for %s is told %q, and nobody has decided", a.id, r.text)
		}
		want := fmt.Sprintf("status: %s\n", d.resp.Status)
		if d.resp.Notes != "" {
			want += "notes: " + d.resp.Notes + "\n"
		}
		rejected, outcome := d.resp.Status == queue.Rejected, d.resp.Outcome
		if w.undone(a) {
			want, rejected, outcome = "status: rejected\n\nThe operator approved ", true, ""
		}
		if !strings.HasPrefix(r.text, want) || r.isError != rejected || r.meta.ProposalID != a.id || r.meta.Outcome != outcome {
			w.t.Fatalf("a call for %s is told %q (error %v, %+v), want %q", a.id, r.text, r.isError, r.meta, want)
		}
		if a.delivered.IsZero() != (c.archive != nil) && c.archive == nil {
			w.t.Fatalf("the first answer for %s is not to be archived", a.id)
		}
		if c.lost || c.archive == nil {
			return true
		}
		fault := w.hits("archive")
		c.archive()
		if a.delivered.IsZero() && (fault == nil || fault.done) {
			a.delivered = time.Now()
		}
		return true
	})
}

// drop lets go of every call that is held, as a network that goes away does.
func (w *world) drop(these ...*call) {
	for _, c := range these {
		c.cancel()
	}
	w.settle()
	for _, c := range these {
		if !c.done() {
			w.t.Fatalf("a call for %s that was cancelled does not end", c.id)
		}
	}
	w.model.held = slices.DeleteFunc(w.model.held, func(c *call) bool { return slices.Contains(these, c) })
}

// restart kills the sidecar and starts another.
func (w *world) restart() {
	w.drop(slices.Clone(w.model.held)...)
	w.again()
}

// terminate stops the sidecar as SIGTERM does.
func (w *world) terminate() {
	w.side.shutdown(tools.ErrShutdown)
	w.settle()
	for _, c := range w.model.held {
		if !c.done() || c.reply.err != nil || !strings.HasPrefix(c.reply.text, "status: pending\nproposal_id: "+string(c.id)+"\n") {
			w.t.Fatalf("at SIGTERM a call for %s is told %+v", c.id, c.reply)
		}
	}
	w.model.held = nil
	w.again()
}

func (w *world) again() {
	if err := w.side.stop(); err != nil {
		w.t.Fatal(err)
	}
	m := w.model
	for q, all := range m.byQuestion {
		m.byQuestion[q] = slices.DeleteFunc(all, func(a *asked) bool { return a.id == "" })
		for i, a := range m.byQuestion[q] {
			a.unsaved = false
			if i > 0 {
				before := m.byQuestion[q][i-1]
				a.surely = a.surely && time.Since(before.delivered) < hour+55*time.Minute
			}
		}
	}
	w.startSide()
}

// checkStored: no proposal is lost, none is altered, and each is answered as was decided.
func (w *world) checkStored() {
	for id, a := range w.model.byID {
		e, err := w.mem.Get(context.Background(), bottle, id)
		if err != nil {
			w.t.Fatalf("proposal %s is lost: %v", id, err)
		}
		d := w.decision(a)
		if e.Proposal.Tool != questions[a.question].tool || e.Proposal.Justification != a.words || (e.Response != nil) != (d != nil) || d != nil && !d.resp.Equal(*e.Response) {
			w.t.Fatalf("proposal %s is %+v with response %+v, want words %q and %+v", id, e.Proposal, e.Response, a.words, d)
		}
		if e.Delivered.IsZero() != a.delivered.IsZero() {
			w.t.Fatalf("proposal %s: delivered at %v, want %v", id, e.Delivered, a.delivered)
		}
	}
}

// hostOf is the host a question is about.
func hostOf(q int) string {
	if h, ok := questions[q].args["host"].(string); ok {
		return h
	}
	return strings.Split(questions[q].args["failed_url"].(string), "/")[2]
}

// authority checks that the table has nothing that nobody approved, and everything that holds.
func (w *world) authority(table routes.Table, undone map[queue.ID]bool, humanHosts, muddled map[string]bool) error {
	for _, r := range table.Routes {
		host := routes.Key(r.Host)
		if humanHosts[host] || muddled[host] {
			continue
		}
		paths := r.PathAllowlist
		if len(paths) == 0 {
			paths = []string{"/"}
		}
		for _, path := range paths {
			if host == "api.github.com" && strings.HasPrefix(path, "/repos/") {
				continue
			}
			by := false
			for id, a := range w.model.byID {
				if d := w.decision(a); d != nil && !d.foreign && d.resp.Status != queue.Rejected && !undone[id] && d.payload.Tool == payload.Egress && d.payload.Host == host {
					by = by || tableCovers(routes.Table{Routes: []routes.Route{{Host: host, PathAllowlist: d.payload.Route.PathAllowlist}}},
						payload.Payload{Host: host, Route: &payload.Route{PathAllowlist: []string{path}}}) == nil
				}
			}
			if !by {
				return fmt.Errorf("%s%s is let through, and nobody approved it", host, path)
			}
		}
	}
	return nil
}
