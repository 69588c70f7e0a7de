package tui

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/ansi"

	"github.com/bot-bottle/supervise/internal/operator"
)

// lookEvery is how often the inbox is looked at without being told to: presence ages, and an undo changes no mailbox.
const lookEvery = 2 * time.Second

// lookCheap is how long a look may take and be followed by another one at once.
const lookCheap = 20 * time.Millisecond

// screen is what fills the body.
type screen int

const (
	inboxScreen screen = iota
	historyScreen
	helpScreen
	problemScreen
)

// model is everything the screen shows. Only the program's loop touches it.
type model struct {
	opts  Options
	tasks *tasks
	w, h  int

	screen   screen
	reading  bool // the keys move the card, not the list; on a narrow screen only one of them is shown
	inbox    inbox
	card     *card // of inbox.sel; nil: none
	cards    map[operator.Ref]*card
	problems []operator.Problem
	bottles  int
	overlay  overlay // of helpScreen, problemScreen
	past     past

	lookedAt bool   // an inbox was seen
	missing  string // why the inbox cannot be read; escaped
	deaf     string // why changes are not told; escaped

	prompt  *prompt
	status  span
	applied []undoable // what u undoes: what was applied from here, the newest last
	busy    int        // verbs that run
	leave   bool       // quit when they have ended

	looking, lookAgain bool      // a snapshot is being taken; another one is wanted
	showing, showAgain bool      // a preview is being made; another one is wanted
	lookTimer          int       // the newest timer; older ones are void
	lookNext           time.Time // not before

	sight   sight
	sightAt time.Time
}

// sight is what a key decides on.
type sight struct {
	ref    operator.Ref
	digest string
	state  operator.State
	shown  bool
}

type undoable struct {
	ref  operator.Ref
	what string
}

type (
	snapshotMsg struct {
		s    *operator.Snapshot
		err  error
		took time.Duration
	}
	showMsg struct {
		ref  operator.Ref
		edit *string
		p    *operator.Preview
		err  error
	}
	proposedMsg struct { // what was proposed, to stand below an edit that is not valid
		ref operator.Ref
		p   *operator.Preview
	}
	changesMsg struct {
		ch  <-chan struct{}
		err error
	}
	changeMsg struct {
		ch <-chan struct{}
		ok bool
	}
	lookMsg    struct{ timer int }
	listenMsg  struct{}
	secondMsg  struct{}
	settledMsg struct{}
)

func newModel(ctx context.Context, o Options) *model {
	return &model{
		opts: o.withDefaults(), tasks: &tasks{ctx: ctx}, w: 80, h: 24,
		inbox: inbox{marks: map[operator.Ref]string{}},
		cards: map[operator.Ref]*card{},
	}
}

// Init implements tea.Model.
func (m *model) Init() tea.Cmd { return tea.Batch(m.listen(), m.look(), m.second()) }

func (m *model) second() tea.Cmd { return m.tasks.after(time.Second, secondMsg{}) }

// Update implements tea.Model.
func (m *model) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	cmd := m.update(msg)
	return m, tea.Batch(cmd, m.turn(), m.watchSight())
}

func (m *model) update(msg tea.Msg) tea.Cmd {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.w, m.h = msg.Width, msg.Height
	case tea.KeyPressMsg:
		return m.key(msg)
	case tea.PasteMsg:
		return m.paste(msg)
	case secondMsg:
		return m.second()
	case listenMsg:
		return m.listen()
	case changesMsg:
		return m.listening(msg)
	case changeMsg:
		if !msg.ok {
			return m.tasks.after(time.Second, listenMsg{})
		}
		return tea.Batch(m.look(), m.await(msg.ch))
	case lookMsg:
		if msg.timer == m.lookTimer {
			return m.look()
		}
	case snapshotMsg:
		return m.snapshot(msg)
	case showMsg:
		return m.shown(msg)
	case proposedMsg:
		if c := m.card; c != nil && c.ref == msg.ref && c.p == nil && msg.p != nil {
			c.p, c.of, c.lines = msg.p, nil, nil
		}
	case editedMsg:
		return m.edited(msg)
	case decidedMsg:
		return m.decided(msg)
	case bulkMsg:
		return m.bulkDone(msg)
	case undoneMsg:
		return m.undoDone(msg)
	case dismissedMsg:
		return m.dismissed(msg)
	case historyMsg:
		m.past.take(msg)
	case entryMsg:
		m.past.takeEntry(msg)
	}
	return nil
}

// listen asks to be told of changes.
func (m *model) listen() tea.Cmd {
	return m.tasks.run(func(ctx context.Context) tea.Msg {
		ch, err := m.opts.Desk.Changes(ctx)
		return changesMsg{ch, err}
	})
}

func (m *model) listening(msg changesMsg) tea.Cmd {
	if msg.err != nil {
		m.deaf = oneLine(msg.err.Error())
		return m.tasks.after(time.Second, listenMsg{})
	}
	m.deaf = ""
	return tea.Batch(m.await(msg.ch), m.look())
}

func (m *model) await(ch <-chan struct{}) tea.Cmd {
	return m.tasks.run(func(ctx context.Context) tea.Msg {
		select {
		case _, ok := <-ch:
			return changeMsg{ch, ok}
		case <-ctx.Done():
			return nil
		}
	})
}

// look takes a snapshot; while one is being taken, another one after it.
func (m *model) look() tea.Cmd {
	if m.looking {
		m.lookAgain = true
		return nil
	}
	if wait := time.Until(m.lookNext); wait > 0 {
		m.lookTimer++
		return m.tasks.after(wait, lookMsg{m.lookTimer})
	}
	m.looking, m.lookAgain = true, false
	return m.tasks.run(func(ctx context.Context) tea.Msg {
		start := time.Now()
		s, err := m.opts.Desk.Snapshot(ctx)
		return snapshotMsg{s, err, time.Since(start)}
	})
}

func (m *model) snapshot(msg snapshotMsg) tea.Cmd {
	m.looking = false
	if m.tasks.ctx.Err() != nil {
		return nil
	}
	m.lookTimer++
	if msg.took > lookCheap { // changes without end must not keep a processor busy
		m.lookNext = time.Now().Add(msg.took)
	}
	cmds := []tea.Cmd{m.tasks.after(max(lookEvery, 10*msg.took), lookMsg{m.lookTimer})}
	if m.lookAgain {
		cmds = append(cmds, m.look())
	}
	if msg.err != nil {
		m.missing = printable(msg.err.Error())
		return tea.Batch(cmds...)
	}
	cmds = append(cmds, m.news(msg.s.Items))
	m.missing, m.lookedAt = "", true
	m.problems, m.bottles = msg.s.Problems, len(msg.s.Bottles)
	marks := len(m.inbox.marks)
	m.inbox.set(msg.s.Items, time.Now())
	if n := marks - len(m.inbox.marks); n > 0 && m.busy == 0 {
		m.say(warn, "%s no longer open: decided elsewhere.", count(n, "marked proposal"))
	}
	for ref, c := range m.cards {
		_, open := m.inbox.index[ref]
		if ref != m.inbox.sel && c.busy == "" && (!open || c.edit == nil && c.failed == "") {
			delete(m.cards, ref)
		}
	}
	cmds = append(cmds, m.turn(), m.show()) // the card of before may have changed
	if m.screen == historyScreen {
		cmds = append(cmds, m.readHistory())
	}
	return tea.Batch(cmds...)
}

// news tells the terminal of proposals that are not in the inbox yet.
func (m *model) news(items []operator.Item) tea.Cmd {
	if !m.lookedAt || m.opts.Quiet {
		return nil
	}
	var first *operator.Item
	n := 0
	for i := range items {
		if _, known := m.inbox.index[items[i].Ref]; !known {
			if n++; first == nil {
				first = &items[i]
			}
		}
	}
	if n == 0 {
		return nil
	}
	text := fmt.Sprintf("supervise: %s asks to %s", first.Bottle, agentLine(first.Summary, 80))
	if first.Danger {
		text += " (DANGER)"
	}
	if n > 1 {
		text += fmt.Sprintf(", and %d more", n-1)
	}
	return tea.Raw("\a" + ansi.Notify(text))
}

// turn makes the card that of the selected proposal.
func (m *model) turn() tea.Cmd {
	sel := m.inbox.sel
	if m.card != nil && m.card.ref == sel {
		return nil
	}
	if c := m.card; c != nil {
		c.p, c.of, c.changed, c.seen, c.lines, c.scroll = nil, nil, nil, nil, nil, 0
		if c.edit == nil && c.failed == "" && c.busy == "" {
			delete(m.cards, c.ref)
		}
	}
	m.card = nil
	if sel == (operator.Ref{}) {
		m.reading = false
		return nil
	}
	c := m.cards[sel]
	if c == nil {
		c = &card{ref: sel}
		m.cards[sel] = c
	}
	m.card = c
	return m.show()
}

// show previews the selected proposal, or the edit of it.
func (m *model) show() tea.Cmd {
	if m.card == nil {
		return nil
	}
	if m.showing {
		m.showAgain = true
		return nil
	}
	m.showing, m.showAgain = true, false
	ref, edit := m.card.ref, m.card.edit
	return m.tasks.run(func(ctx context.Context) tea.Msg {
		p, err := m.opts.Desk.Show(ctx, ref, edit)
		return showMsg{ref, edit, p, err}
	})
}

func (m *model) shown(msg showMsg) tea.Cmd {
	m.showing = false
	var cmd tea.Cmd
	if c := m.card; c != nil && (m.showAgain || c.ref != msg.ref || c.edit != msg.edit) {
		cmd = m.show()
	}
	c := m.cards[msg.ref]
	if c == nil || c != m.card || c.edit != msg.edit || m.tasks.ctx.Err() != nil {
		return cmd
	}
	bad, isBad := errors.AsType[*operator.EditError](msg.err)
	if msg.edit != nil && c.told != msg.edit && (isBad || msg.err == nil) {
		c.told = msg.edit
		if isBad {
			m.say(warn, invalidEdit)
		} else {
			m.say(plain, "a approves what your edit would change, e edits on, esc drops it.")
		}
	}
	switch {
	case msg.err == nil:
		c.badEdit = ""
		c.show(msg.p, msg.edit)
	case isBad:
		c.badEdit, c.lines = printable(bad.Err.Error()), nil
		if c.p == nil {
			cmd = tea.Batch(cmd, m.tasks.run(func(ctx context.Context) tea.Msg {
				p, err := m.opts.Desk.Show(ctx, msg.ref, nil)
				if err != nil {
					return nil // the next look tells
				}
				return proposedMsg{msg.ref, p}
			}))
		}
	case errors.Is(msg.err, operator.ErrNotFound):
		c.p, c.changed, c.lines = nil, nil, nil
		c.err = "It is gone from its mailbox: answered and cleared away, or its bottle was forgotten."
	default:
		c.p, c.changed, c.lines = nil, nil, nil
		c.err = printable(msg.err.Error())
	}
	return cmd
}

// watchSight notes when what a key decides on has changed, and draws again once it may be decided on.
func (m *model) watchSight() tea.Cmd {
	m.arrange()
	s := m.onScreen()
	if s == m.sight {
		return nil
	}
	m.sight, m.sightAt = s, time.Now()
	if p := m.prompt; p != nil && p.about != nil && !p.about(s) {
		m.prompt = nil
		m.say(warn, "It has changed while you were at it: look again.")
	}
	if !s.shown {
		return nil
	}
	return m.tasks.after(m.opts.Settle, settledMsg{})
}

// onScreen is the proposal on the screen as it can be decided on.
func (m *model) onScreen() sight {
	c := m.card
	if c == nil || m.missing != "" || m.screen != inboxScreen || m.tiny() || m.narrow() && !m.reading {
		return sight{}
	}
	s := sight{ref: c.ref}
	if c.current() {
		s.shown, s.digest, s.state = true, c.p.Digest, c.p.State
		if c.busy != "" {
			s.state = operator.Deciding
		}
	}
	return s
}

// armed tells whether a key may decide on what is on the screen.
func (m *model) armed() bool {
	return m.sight.shown && m.onScreen() == m.sight && time.Since(m.sightAt) >= m.opts.Settle
}

func (m *model) say(st style, format string, args ...any) {
	m.status = span{st, fmt.Sprintf(format, args...)}
}

// marked lists what is marked, in the order of the inbox.
func (m *model) marked() []operator.Ref {
	refs := slices.Collect(maps.Keys(m.inbox.marks))
	slices.SortFunc(refs, func(a, b operator.Ref) int { return m.inbox.index[a] - m.inbox.index[b] })
	return refs
}
