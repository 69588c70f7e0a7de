package tui

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"

	"github.com/bot-bottle/supervise/internal/apply"
	"github.com/bot-bottle/supervise/internal/operator"
	"github.com/bot-bottle/supervise/queue"
)

func TestDangers(t *testing.T) {
	p := tokenAsk(1, "one")
	p.Findings = append(p.Findings, operator.Finding{Code: "punycode", Level: operator.Danger, Text: "The host's name has letters beyond ASCII."})
	for _, tt := range []struct {
		name  string
		typed []string
		want  []string
	}{
		{"both", []string{"credential", "enter", "punycode", "enter"}, []string{"approve one " + digest(1) + " accept credential,punycode"}},
		{"one only", []string{"credential", "enter", "esc"}, nil},
		{"another's", []string{"punycode", "enter"}, nil},
		{"yes is no code", []string{"y", "enter"}, nil},
		{"nothing", []string{"enter", "enter"}, nil},
		{"a second try", []string{"x", "enter", "backspace", "credential", "enter", "punycode", "enter"}, []string{"approve one " + digest(1) + " accept credential,punycode"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			start(t, 120, 60, newDesk(p), func(r *rig) {
				r.press("a")
				r.wantScreen("DANGER credential", "type credential to accept it")
				for _, s := range tt.typed {
					if _, ok := special[s]; ok {
						r.press(s)
					} else {
						r.write(s)
					}
				}
				r.wantCalls(tt.want...)
			})
		})
	}
}

// TestWrongCodeIsSaid: a prompt that goes on asking says why.
func TestWrongCodeIsSaid(t *testing.T) {
	start(t, 120, 60, newDesk(tokenAsk(1, "one")), func(r *rig) {
		r.press("a")
		r.write("y\u202e")
		r.press("enter")
		r.wantScreen(`y\u202e is not credential, so nothing is approved.`, "type credential to accept it")
		r.press("backspace", "backspace", "enter")
		r.wantScreen("Nothing was typed, so nothing is approved. DANGER credential")
		r.wantCalls()
		r.write("credential")
		r.press("enter")
		r.wantCalls("approve one " + digest(1) + " accept credential")
	})
}

func TestAskedBeforeApproving(t *testing.T) {
	unmanaged := routeAsk(1, "one", "a.example.com", "/a/")
	unmanaged.Targets, unmanaged.Unmanaged = nil, []apply.Kind{apply.KindEgress}
	blocked := routeAsk(1, "one", "a.example.com", "/a/")
	blocked.Blocked = "routes.yaml has two documents\nthe lines to add by hand:\n  - host: a.example.com"
	bad := routeAsk(1, "one", "a.example.com", "/a/")
	bad.State, bad.Digest, bad.Targets, bad.Blocked = operator.Bad, "", nil, "the proposal is malformed, so it can only be rejected"
	deciding := routeAsk(1, "one", "a.example.com", "/a/")
	deciding.State = operator.Deciding
	for _, tt := range []struct {
		name   string
		p      *operator.Preview
		keys   []string
		screen string
		want   []string
	}{
		{"unmanaged, no", unmanaged, []string{"a", "n"}, "", nil},
		{"unmanaged, yes", unmanaged, []string{"a", "y"}, "", []string{"approve one " + digest(1) + " unmanaged"}},
		{"blocked", blocked, []string{"a"}, "It cannot be approved", nil},
		{"blocked can be rejected", blocked, []string{"r", "4"}, "", []string{`reject one "` + quickNotes[3].text + `"`}},
		{"malformed", bad, []string{"a"}, "It cannot be approved", nil},
		{"malformed is not edited", bad, []string{"e"}, "can only be rejected", nil},
		{"malformed can be rejected", bad, []string{"r", "1"}, "", []string{`reject one "` + quickNotes[0].text + `"`}},
		{"being decided", deciding, []string{"a", "r", "d", "e"}, "It is being decided at this moment.", nil},
		{"long, unseen", dockerAsk(1, "one", 100), []string{"a", "n"}, "", nil},
		{"long, unseen, all the same", dockerAsk(1, "one", 100), []string{"a", "y"}, "", []string{"approve one " + digest(1)}},
		{"long, jumped to the end", dockerAsk(1, "one", 100), []string{"enter", "end", "a"}, "not seen yet", nil},
		{"long, seen", dockerAsk(1, "one", 100), []string{"pgdown", "pgdown", "pgdown", "pgdown", "a"}, "", []string{"approve one " + digest(1)}},
		{"long, seen while asked", dockerAsk(1, "one", 60), []string{"a", "pgdown", "pgdown", "y"}, "", []string{"approve one " + digest(1)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			start(t, 120, 40, newDesk(tt.p), func(r *rig) {
				r.press(tt.keys...)
				r.wantCalls(tt.want...)
				r.wantScreen(tt.screen)
			})
		})
	}
}

func TestReject(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(r *rig)
		want []string
	}{
		{"by number", func(r *rig) { r.press("r", "3") }, []string{`reject one "` + quickNotes[2].text + `"`}},
		{"typed", func(r *rig) { r.press("r"); r.write("no, use 1 mirror"); r.press("enter") }, []string{`reject one "no, use 1 mirror"`}},
		{"typed, a digit first", func(r *rig) { r.press("r"); r.write(" 3 hosts"); r.press("enter") }, []string{`reject one "3 hosts"`}},
		{"pasted", func(r *rig) { r.press("r"); r.send(tea.PasteMsg{Content: "1 line\n"}); r.press("enter") }, []string{`reject one "1 line"`}},
		{"left", func(r *rig) { r.press("r"); r.write("no"); r.press("esc", "enter") }, nil},
		{"no quick note", func(r *rig) { r.press("r", "9", "esc") }, nil},
		{"changes meanwhile", func(r *rig) {
			r.press("r")
			r.write("no")
			p := routeAsk(3, "one", "a.example.com", "/a/")
			p.Digest = digest(33)
			r.desk.put(p)
			r.change()
			r.press("enter")
		}, []string{`reject one "no"`}},
		{"decided meanwhile", func(r *rig) {
			r.press("r")
			r.write("no")
			r.desk.decide(r.m.inbox.sel, queue.Approved, "ops@desk", "cli")
			r.change()
			r.press("enter")
		}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			start(t, 120, 40, three(), func(r *rig) {
				tt.do(r)
				r.wantCalls(tt.want...)
				if tt.want != nil {
					r.wantScreen("REJECTED by you", "rejected: one:")
				}
			})
		})
	}
}

func TestDismiss(t *testing.T) {
	start(t, 120, 40, three(), func(r *rig) {
		r.press("d")
		r.wantScreen("An agent is WAITING for this.")
		r.press("n")
		r.wantCalls()
		r.press("d", "y")
		r.wantCalls("dismiss one")
		r.wantScreen("DISMISSED by you")
	})
}

func TestPasteIsNoKeys(t *testing.T) {
	start(t, 120, 40, three(), func(r *rig) {
		r.send(tea.PasteMsg{Content: "a\nr1\ndy"})
		r.pass(time.Second)
		r.wantCalls()
	})
}

func TestBulk(t *testing.T) {
	t.Run("binds to what was marked", func(t *testing.T) {
		desk := three()
		desk.approve = func(_ context.Context, ref operator.Ref, d operator.Decision) (*operator.Result, error) {
			if ref.Bottle == "two" {
				return nil, &operator.StaleError{Ref: ref, Preview: routeAsk(2, "two", "b.example.com", "/b/")}
			}
			return nil, nil
		}
		start(t, 120, 40, desk, func(r *rig) {
			r.press("space", "space", "space")
			r.wantScreen("3 marked")
			p := routeAsk(2, "two", "b.example.com", "/everything/")
			p.Digest = digest(222)
			desk.put(p)
			r.change()
			r.press("a")
			r.wantScreen("Approve 3 marked proposals?", "x one: allow a.example.com /a/")
			r.wantCalls()
			r.press("y")
			r.wantCalls("approve one "+digest(3), "approve two "+digest(2), "approve three "+digest(1))
			r.wantScreen("approved 2, and 1 NOT: two:", "NOT DONE")
			if len(r.m.inbox.marks) != 0 || r.m.busy != 0 {
				t.Errorf("marks %v, busy %d; want none", r.m.inbox.marks, r.m.busy)
			}
		})
	})
	t.Run("not with a danger", func(t *testing.T) {
		start(t, 120, 40, newDesk(tokenAsk(1, "one")), func(r *rig) {
			r.press("space")
			r.wantScreen("It has a danger")
			r.wantNot("marked")
		})
	})
	t.Run("not unseen", func(t *testing.T) {
		start(t, 120, 40, newDesk(dockerAsk(1, "one", 100)), func(r *rig) {
			r.press("space")
			r.wantScreen("Look at all of it first")
			r.hit("space")
			r.wantNot("marked")
		})
	})
	t.Run("esc forgets", func(t *testing.T) {
		start(t, 120, 40, three(), func(r *rig) {
			r.press("space", "esc", "home", "a")
			r.wantCalls("approve one " + digest(3))
		})
	})
	t.Run("decided meanwhile", func(t *testing.T) {
		start(t, 120, 40, three(), func(r *rig) {
			r.press("space")
			r.desk.decide(r.desk.previews[0].Ref, queue.Rejected, "ops@desk", "cli")
			r.change()
			r.wantScreen("1 marked proposal no longer open")
			r.press("a")
			r.wantCalls("approve two " + digest(2)) // what is shown, as without marks
		})
	})
}

func TestUndo(t *testing.T) {
	start(t, 120, 40, three(), func(r *rig) {
		r.press("u")
		r.wantScreen("Nothing has been applied from here")
		r.press("a", "j", "u")
		r.wantScreen("Undo: one: allow a.example.com /a/?")
		r.press("n", "u", "y")
		r.wantCalls("approve one "+digest(3), "undo one")
		r.wantScreen("undone: one:")
		r.press("u")
		r.wantScreen("Nothing has been applied from here")
	})
	t.Run("named where another is on the screen", func(t *testing.T) {
		start(t, 120, 40, three(), func(r *rig) {
			r.press("a")
			r.wantScreen("u undo  / filter")
			r.press("j", "r", "1")
			r.wantScreen("rejected: two", "u undo one: allow a.example.com /a/  / filter", "q quit")
		})
		start(t, 80, 24, three(), func(r *rig) { // no room for its name beside what can be decided
			r.press("pgdown", "a", "j")
			r.wantScreen("a approve", "q quit")
			r.wantNot("u undo")
		})
	})
	t.Run("with something to say", func(t *testing.T) {
		desk := three()
		desk.notes = []string{"its agent may still hear\x1b of it"}
		start(t, 120, 40, desk, func(r *rig) {
			r.press("a", "u", "y")
			r.wantScreen(`undone: one: allow a.example.com /a/; its agent may still hear\x1b of it`)
		})
	})
	t.Run("that does not hold", func(t *testing.T) {
		desk := three()
		start(t, 120, 40, desk, func(r *rig) {
			r.press("a")
			for _, tt := range []struct {
				restored []string
				want     string
			}{
				{nil, "not undone: one: allow a.example.com /a/: verify /srv/r.yaml: not live"},
				{[]string{"/srv/r.yaml"}, "put back but not seen in force, undo it again: one: allow a.example.com /a/: verify"},
			} {
				desk.undo = &apply.Failure{Undo: true, Step: "verify", Path: "/srv/r.yaml", Err: errors.New("not live"), Restored: tt.restored}
				r.press("u", "y")
				r.wantScreen(tt.want)
			}
		})
	})
	t.Run("from the history", func(t *testing.T) {
		start(t, 120, 40, withPast(), func(r *rig) {
			r.press("h", "u")
			r.wantScreen("choose such a line")
			r.press("j", "j", "u", "y")
			r.wantCalls("undo web")
			r.press("esc")
			r.wantScreen("[inbox]")
		})
	})
}

func TestApplyErrorStays(t *testing.T) {
	desk := three()
	desk.approve = func(_ context.Context, ref operator.Ref, d operator.Decision) (*operator.Result, error) {
		fmt.Fprintf(d.Progress, "reloading\x1b[2J the proxy\n")
		return nil, fmt.Errorf("applying %s: %w", ref, &apply.Failure{Step: "verify", Path: "/srv/r.yaml", Err: errors.New("not live\x1b]0;x\a after 5s"), Left: []string{"/srv/p.yaml: wrote aa, found bb"}})
	}
	start(t, 120, 40, desk, func(r *rig) {
		r.press("a")
		r.wantScreen("not done: one:", "NOT DONE", `not live\x1b]0;x\x07 after 5s`, "could not be put back", "/srv/p.yaml: wrote aa, found bb")
		r.press("j")
		r.wantNot("could not be put back")
		r.press("k")
		r.wantScreen("NOT DONE", "could not be put back")
		checkScreen(t, r.screen(), 120, 40)
		desk.approve = nil
		r.desk.called()
		r.press("a")
		r.wantCalls("approve one " + digest(3))
		r.wantNot("NOT DONE")
	})
}

func TestBusy(t *testing.T) {
	desk := three()
	start(t, 120, 40, desk, func(r *rig) {
		release := make(chan struct{})
		desk.approve = func(ctx context.Context, ref operator.Ref, d operator.Decision) (*operator.Result, error) {
			fmt.Fprintf(d.Progress, "step 1 of 2\n")
			select {
			case <-release:
				return nil, nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		r.press("a")
		r.wantScreen("approving…", "step 1 of 2")
		r.press("a", "r", "1")
		r.wantCalls("approve one " + digest(3))
		r.press("j")
		r.wantScreen("allow b.example.com") // nothing blocks
		r.press("q")
		if r.quit {
			t.Error("quit while a decision was being made")
		}
		r.wantScreen("Quits when it is done")
		r.press("a")
		r.wantCalls() // nothing new is begun
		close(release)
		r.settle()
		if !r.quit {
			t.Error("did not quit when the decision was made")
		}
	})
	t.Run("twice", func(t *testing.T) {
		desk := three()
		desk.approve = func(ctx context.Context, _ operator.Ref, _ operator.Decision) (*operator.Result, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		start(t, 120, 40, desk, func(r *rig) {
			r.press("a", "ctrl+c", "ctrl+c")
			if !r.quit {
				t.Error("the second ctrl+c did not quit")
			}
		})
	})
}

func TestEdit(t *testing.T) {
	const good, bad = `{"host": "a.example.com"}`, `{"host": "*"}`
	desk := three()
	desk.edited = func(_ operator.Ref, text string) (*operator.Preview, error) {
		if text == bad {
			return nil, &operator.EditError{Err: errors.New(`egress-block: host "*" must be a host name`)}
		}
		p := routeAsk(3, "one", "a.example.com", "/")
		p.Digest, p.Edited = digest(3333), untrusted(text)
		return p, nil
	}
	start(t, 120, 60, desk, func(r *rig) {
		sel := r.m.inbox.sel
		r.send(editedMsg{ref: sel, text: bad})
		r.pass(time.Second)
		r.wantScreen("YOUR EDIT IS NOT VALID", `host "*" must be a host name`, "asks to  allow a.example.com /a/",
			"Your edit is not valid: e edits it again, esc drops it.", "e edit again  esc drop the edit")
		r.wantNot("a approves", "a approve ")
		r.press("a", "r", "1")
		r.wantCalls()
		r.press("j", "k") // it is kept
		r.wantScreen("YOUR EDIT IS NOT VALID", "asks to  allow a.example.com /a/")
		r.send(editedMsg{ref: sel, text: good})
		r.hit("a")
		r.wantCalls() // its preview has not been looked at
		r.pass(time.Second)
		r.wantScreen("YOUR EDIT, and what would change with it", `+ {"host": "a.example.com"}`)
		r.wantNot("drop the edit")
		r.press("a")
		r.wantCalls(fmt.Sprintf("approve one %s file %q", digest(3333), good))
		r.wantScreen("approved, live: one: allow a.example.com (whole host) (as edited)")
	})
	t.Run("dropped", func(t *testing.T) {
		start(t, 120, 60, desk, func(r *rig) {
			r.send(editedMsg{ref: r.m.inbox.sel, text: good})
			r.wantScreen("a approves what your edit would change")
			r.press("esc")
			r.wantNot("YOUR EDIT")
			r.press("a")
			r.wantCalls("approve two " + digest(2))
		})
	})
	t.Run("unchanged", func(t *testing.T) {
		start(t, 120, 60, three(), func(r *rig) {
			r.send(editedMsg{ref: r.m.inbox.sel, text: r.desk.previews[0].Proposed.Raw()})
			r.wantScreen("The file is as it was proposed.")
			r.wantNot("YOUR EDIT")
		})
	})
	t.Run("failed", func(t *testing.T) {
		start(t, 120, 60, three(), func(r *rig) {
			r.send(editedMsg{ref: r.m.inbox.sel, err: errors.New("the editor \"nope\": exit status 127")})
			r.wantScreen("exit status 127")
		})
	})
	t.Run("hidden characters", func(t *testing.T) {
		start(t, 120, 60, newDesk(hostileAsk(1)), func(r *rig) {
			r.press("e")
			r.wantScreen("It holds characters that an editor may hide")
		})
	})
}
