package tui

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	tea "charm.land/bubbletea/v2"

	"github.com/bot-bottle/supervise/internal/apply"
	"github.com/bot-bottle/supervise/internal/operator"
	"github.com/bot-bottle/supervise/internal/payload"
	"github.com/bot-bottle/supervise/internal/safetext"
)

type (
	decidedMsg struct {
		ref  operator.Ref
		what string // of the proposal, for the status line
		res  *operator.Result
		err  error
	}
	bulkMsg struct {
		done   []decidedMsg
		failed []decidedMsg
	}
	undoneMsg struct {
		undoable
		res *operator.Result
		err error
	}
	dismissedMsg struct {
		ref  operator.Ref
		what string
		err  error
	}
)

// decidable returns the card that a key may decide on, or says why there is none.
func (m *model) decidable(key string) *card {
	c := m.card
	switch {
	case c == nil:
		m.say(dim, "There is nothing to decide.")
	case m.narrow() && !m.reading:
		m.say(warn, "Look at it first: enter shows it.")
	case c.busy != "" || c.p != nil && c.p.State == operator.Deciding:
		m.say(warn, "It is being decided at this moment.")
	case c.p != nil && c.p.Decision != nil:
		m.say(warn, "It is decided: %s by %s.", oneLine(string(c.p.Decision.Status)), decider(c.p.Decision.By, c.p.Decision.Via))
	case c.badEdit != "":
		m.say(warn, invalidEdit)
	case c.err != "" && c.p == nil:
		m.say(warn, "It cannot be looked at, so it cannot be decided.")
	case !m.armed():
		m.say(warn, "It came on the screen only now: look, then press %s again.", key)
	case !c.open():
		m.say(warn, "There is nothing to decide about it.")
	default:
		return c
	}
	return nil
}

// what is a proposal in the words of the status line.
func (m *model) what(ref operator.Ref) string {
	if it := m.inbox.item(ref); it != nil {
		return fmt.Sprintf("%s: %s", it.Bottle, agentLine(it.Summary, 60))
	}
	return ref.Bottle
}

// edited is a proposal with an edit in the words of the status line: what would be applied.
func edited(p *operator.Preview) string {
	about := p.Summary
	if q, err := payload.Parse(p.Tool, p.Edited.Raw()); err == nil {
		about = safetext.Untrusted(q.Summary())
	}
	return fmt.Sprintf("%s: %s (as edited)", p.Bottle, agentLine(about, 60))
}

// approval is an approve key on its way: what was on the screen, and what must still be said to it.
type approval struct {
	c         *card
	what      string
	dec       operator.Decision
	changed   bool
	unseen    int
	unmanaged bool
	dangers   []operator.Finding
}

func (m *model) approve() tea.Cmd {
	if len(m.inbox.marks) > 0 {
		return m.bulk()
	}
	c := m.decidable("a")
	if c == nil {
		return nil
	}
	if c.p.Blocked != "" || c.p.Digest == "" {
		m.say(warn, "It cannot be approved, and the card says why; r rejects it.")
		return nil
	}
	a := &approval{c: c, what: m.what(c.ref), changed: c.changed != nil, unseen: c.unseen(), unmanaged: len(c.p.Unmanaged) > 0}
	a.dec = operator.Decision{Digest: c.p.Digest, File: c.edit}
	if c.p.Edited != "" {
		a.what = edited(c.p)
	}
	for _, f := range c.p.Findings {
		if f.Level == operator.Danger {
			a.dangers = append(a.dangers, f)
		}
	}
	return m.ask(a)
}

// ask wants what is still missing, one thing after the other, and then approves.
func (m *model) ask(a *approval) tea.Cmd {
	switch {
	case a.changed:
		return m.confirm(warn, "It has changed since you looked. Approve what it is now?", exactly(m.sight), func() tea.Cmd {
			a.changed = false
			return m.ask(a)
		})
	case a.unseen > 0:
		return m.confirm(warn, count(a.unseen, "changed line")+" not seen yet (pgdn scrolls). Approve all the same?", exactly(m.sight), func() tea.Cmd {
			a.unseen = 0
			return m.ask(a)
		})
	case a.unmanaged:
		return m.confirm(warn, fmt.Sprintf("Not managed here: %s. Have you made the change by hand?", apply.JoinKinds(a.c.p.Unmanaged)), exactly(m.sight), func() tea.Cmd {
			a.unmanaged, a.dec.Unmanaged = false, true
			return m.ask(a)
		})
	case len(a.dangers) > 0:
		f := a.dangers[0]
		m.prompt = &prompt{
			ask:   span{danger, fmt.Sprintf("DANGER %s: %s", oneLine(f.Code), oneLine(f.Text))},
			keys:  fmt.Sprintf("type %s to accept it, esc to leave: ", oneLine(f.Code)),
			input: newInput(), about: exactly(m.sight),
			check: func(got string) string {
				switch got = strings.TrimSpace(got); got {
				case f.Code:
					return ""
				case "":
					return fmt.Sprintf("Nothing was typed, so nothing is approved. DANGER %s: %s", oneLine(f.Code), oneLine(f.Text))
				}
				return fmt.Sprintf("%s is not %s, so nothing is approved.", agentLine(safetext.Untrusted(got), 40), oneLine(f.Code))
			},
			enter: func(string) tea.Cmd {
				a.dec.Accept = append(a.dec.Accept, f.Code)
				a.dangers = a.dangers[1:]
				return m.ask(a)
			},
		}
		return nil
	}
	return m.start(a)
}

func (m *model) start(a *approval) tea.Cmd {
	c := a.c
	log := m.begin(c, "approving")
	a.dec.Progress = log
	m.say(plain, "approving %s …", a.what)
	return m.tasks.run(func(ctx context.Context) tea.Msg {
		res, err := m.opts.Desk.Approve(ctx, c.ref, a.dec)
		return decidedMsg{c.ref, a.what, res, err}
	})
}

// begin shows that a verb runs.
func (m *model) begin(c *card, busy string) *progress {
	m.busy++
	c.busy, c.log, c.failed, c.scroll, c.lines = busy, &progress{}, "", 0, nil
	return c.log
}

// end takes the card of a verb that has ended; nil if it is no longer there.
func (m *model) end(ref operator.Ref) *card {
	m.busy--
	c := m.cards[ref]
	if c != nil {
		c.busy, c.log, c.lines = "", nil, nil
	}
	return c
}

// afterwards looks again, or quits if that was waited for.
func (m *model) afterwards() tea.Cmd {
	if m.leave && m.busy == 0 {
		return tea.Quit
	}
	return tea.Batch(m.look(), m.show())
}

func (m *model) decided(msg decidedMsg) tea.Cmd {
	c := m.end(msg.ref)
	m.tell(msg, c)
	if msg.err == nil {
		m.remember(msg)
	}
	return m.afterwards()
}

// remember keeps what u undoes.
func (m *model) remember(msg decidedMsg) {
	delete(m.inbox.marks, msg.ref)
	if msg.res.Undoable {
		m.applied = append(m.applied, undoable{msg.ref, msg.what})
		m.applied = m.applied[max(0, len(m.applied)-100):]
	}
}

// tell says what came of a decision, on the card and in the status line.
func (m *model) tell(msg decidedMsg, c *card) {
	if msg.err == nil {
		text := oneLine(string(msg.res.Status))
		if msg.res.Outcome != "" {
			text += ", " + oneLine(string(msg.res.Outcome))
		}
		m.say(good, "%s: %s", text, msg.what)
		if c != nil {
			c.did = strings.ToUpper(oneLine(string(msg.res.Status))) + " by you"
			if o := outcome(msg.res.Outcome); o != "" {
				c.did += ", " + o
			}
			for _, n := range msg.res.Notes {
				c.did += "\n" + printable(n)
			}
			c.edit, c.failed, c.changed = nil, "", nil
		}
		return
	}
	m.say(danger, "not done: %s: %s", msg.what, oneLine(msg.err.Error()))
	stale, isStale := errors.AsType[*operator.StaleError](msg.err)
	if isStale {
		m.say(danger, "not approved, it has changed: %s", msg.what)
	}
	if d, ok := errors.AsType[*operator.DecidedError](msg.err); ok {
		m.say(warn, "decided already, %s by %s: %s", oneLine(string(d.Status)), decider(d.By, d.Via), msg.what)
		return
	}
	if c == nil {
		return
	}
	if isStale {
		if c.p != nil && stale.Preview != nil {
			c.show(stale.Preview, c.of)
		}
		return
	}
	c.failed = printable(msg.err.Error())
	if f, ok := errors.AsType[*apply.Failure](msg.err); ok {
		if len(f.Left) > 0 {
			c.failed += "\nThese files could not be put back, look at them:\n" + printable(strings.Join(f.Left, "\n"))
		} else {
			c.failed += "\nEverything is as it was, and the proposal is open again."
		}
	}
}

// quickNotes are the notes that a number stands for.
var quickNotes = []struct{ short, text string }{
	{"too broad", "too broad: ask for less, such as only the paths you need"},
	{"wrong host", "wrong host: this is not the host for what you are doing"},
	{"use an existing route", "use an existing route: list-egress-routes shows what is allowed already"},
	{"not now", "not now: go on without it, or ask again later"},
}

func (m *model) reject() tea.Cmd {
	c := m.decidable("r")
	if c == nil {
		return nil
	}
	var quick []string
	for i, q := range quickNotes {
		quick = append(quick, fmt.Sprintf("%d %s", i+1, q.short))
	}
	what := m.what(c.ref)
	m.prompt = &prompt{
		ask:   span{bold, strings.Join(quick, "  ") + "  or type:"},
		keys:  "reject with a note: ",
		input: newInput(),
		about: undecided(c.ref), // not its digest: rejecting changes nothing
		quick: func(key string) *string {
			if len(key) == 1 && key[0] >= '1' && int(key[0]-'1') < len(quickNotes) {
				return &quickNotes[key[0]-'1'].text
			}
			return nil
		},
		enter: func(note string) tea.Cmd {
			m.begin(c, "rejecting")
			m.say(plain, "rejecting %s …", what)
			note = strings.TrimSpace(note)
			return m.tasks.run(func(ctx context.Context) tea.Msg {
				res, err := m.opts.Desk.Reject(ctx, c.ref, note)
				return decidedMsg{c.ref, what, res, err}
			})
		},
	}
	return nil
}

func (m *model) dismiss() tea.Cmd {
	c := m.decidable("d")
	if c == nil {
		return nil
	}
	ask := "Dismiss it? The agent is told that nobody decided."
	if c.p.Connected == operator.Waiting {
		ask = "An agent is WAITING for this. Dismiss it all the same?"
	}
	what := m.what(c.ref)
	return m.confirm(warn, ask, undecided(c.ref), func() tea.Cmd {
		m.begin(c, "dismissing")
		m.say(plain, "dismissing %s …", what)
		return m.tasks.run(func(ctx context.Context) tea.Msg {
			_, err := m.opts.Desk.Dismiss(ctx, c.ref)
			return dismissedMsg{c.ref, what, err}
		})
	})
}

func (m *model) dismissed(msg dismissedMsg) tea.Cmd {
	c := m.end(msg.ref)
	if msg.err != nil {
		m.tell(decidedMsg{ref: msg.ref, what: msg.what, err: msg.err}, c)
		return m.afterwards()
	}
	m.say(good, "dismissed: %s", msg.what)
	if c != nil {
		c.did = "DISMISSED by you"
	}
	delete(m.inbox.marks, msg.ref)
	return m.afterwards()
}

// mark marks what is on the screen for approving with others, and goes on to the next.
func (m *model) mark() tea.Cmd {
	c := m.card
	if c == nil {
		return nil
	}
	if _, marked := m.inbox.marks[c.ref]; marked {
		delete(m.inbox.marks, c.ref)
		return nil
	}
	switch {
	case !m.sight.shown || m.onScreen() != m.sight:
		m.say(warn, "It is not on the screen yet, so it cannot be marked.")
	case !c.open() || c.busy != "":
		m.say(warn, "There is nothing to decide about it.")
	case c.edit != nil:
		m.say(warn, "What you edited is approved by itself: a.")
	case c.p.Blocked != "" || c.p.Digest == "" || len(c.p.Unmanaged) > 0:
		m.say(warn, "It cannot be approved as it is, so it cannot be marked.")
	case c.p.Danger || len(c.p.Dangers()) > 0:
		m.say(danger, "It has a danger, which is to be approved by itself: a.")
	case c.changed != nil:
		m.say(warn, "It has changed since you looked: approve it by itself, or look at another and come back.")
	case c.unseen() > 0:
		m.say(warn, "Look at all of it first: %s not seen yet (pgdn scrolls).", count(c.unseen(), "changed line"))
	default:
		m.inbox.marks[c.ref] = c.p.Digest
		m.say(plain, "%d marked: a approves them, esc forgets the marks.", len(m.inbox.marks))
		if !m.reading {
			m.inbox.move(1)
		}
	}
	return nil
}

// bulk asks about everything that is marked, each with the digest that was on the screen when it was marked.
func (m *model) bulk() tea.Cmd {
	if m.busy > 0 {
		m.say(warn, "Wait until what is being decided is done.")
		return nil
	}
	type one struct {
		ref          operator.Ref
		digest, what string
		log          *progress
	}
	var all []one
	list := []line{{spans: []span{{bold, "Approve all of these?"}}}, {}}
	for _, ref := range m.marked() {
		all = append(all, one{ref: ref, digest: m.inbox.marks[ref], what: m.what(ref)})
		list = append(list, line{spans: []span{{plain, "x " + m.what(ref)}}})
	}
	m.prompt = &prompt{
		ask: span{bold, fmt.Sprintf("Approve %s?", count(len(all), "marked proposal"))}, keys: "y yes   n no",
		list: list,
		yes: func() tea.Cmd {
			m.say(plain, "approving %s …", count(len(all), "proposal"))
			for i, a := range all {
				c := m.cards[a.ref]
				if c == nil {
					c = &card{ref: a.ref}
					m.cards[a.ref] = c
				}
				all[i].log = m.begin(c, "approving")
			}
			return m.tasks.run(func(ctx context.Context) tea.Msg {
				var msg bulkMsg
				for _, a := range all {
					d := decidedMsg{ref: a.ref, what: a.what}
					d.res, d.err = m.opts.Desk.Approve(ctx, a.ref, operator.Decision{Digest: a.digest, Progress: a.log})
					if d.err == nil {
						msg.done = append(msg.done, d)
					} else {
						msg.failed = append(msg.failed, d)
					}
				}
				return msg
			})
		},
	}
	return nil
}

func (m *model) bulkDone(msg bulkMsg) tea.Cmd {
	for _, d := range msg.done {
		m.tell(d, m.end(d.ref))
		m.remember(d)
	}
	for _, d := range msg.failed {
		delete(m.inbox.marks, d.ref)
		c := m.end(d.ref)
		m.tell(d, c)
		if _, stale := errors.AsType[*operator.StaleError](d.err); stale && c != nil && c.p == nil {
			c.failed = "It had changed since it was marked: look at it again."
		}
	}
	if len(msg.failed) == 0 {
		m.say(good, "approved %s", count(len(msg.done), "proposal"))
	} else {
		m.say(danger, "approved %d, and %d NOT: %s", len(msg.done), len(msg.failed), msg.failed[0].what)
	}
	return m.afterwards()
}

// undo undoes what was applied last.
func (m *model) undo() tea.Cmd {
	if len(m.applied) == 0 {
		m.say(dim, "Nothing has been applied from here; h has the history, where u undoes any change.")
		return nil
	}
	return m.askUndo(m.applied[len(m.applied)-1])
}

func (m *model) askUndo(u undoable) tea.Cmd {
	return m.confirm(warn, "Undo: "+u.what+"?", nil, func() tea.Cmd {
		m.busy++
		m.say(plain, "undoing %s …", u.what)
		return m.tasks.run(func(ctx context.Context) tea.Msg {
			res, err := m.opts.Desk.Undo(ctx, u.ref, nil)
			return undoneMsg{u, res, err}
		})
	})
}

func (m *model) undoDone(msg undoneMsg) tea.Cmd {
	m.busy--
	if f, ok := errors.AsType[*apply.Failure](msg.err); ok && len(f.Restored) > 0 {
		m.say(danger, "put back but not seen in force, undo it again: %s: %s", msg.what, oneLine(msg.err.Error()))
	} else if msg.err != nil {
		m.say(danger, "not undone: %s: %s", msg.what, oneLine(msg.err.Error()))
	} else {
		text := []string{"undone: " + msg.what}
		for _, n := range msg.res.Notes {
			text = append(text, oneLine(n))
		}
		m.say(good, "%s", strings.Join(text, "; "))
		if c := m.cards[msg.ref]; c != nil {
			c.did, c.lines = "", nil
		}
	}
	if msg.err == nil || errors.Is(msg.err, operator.ErrNotUndoable) {
		m.applied = slices.DeleteFunc(m.applied, func(u undoable) bool { return u.ref == msg.ref })
	}
	if m.screen == historyScreen {
		return tea.Batch(m.readHistory(), m.afterwards())
	}
	return m.afterwards()
}
