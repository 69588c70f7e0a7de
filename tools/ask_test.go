package tools

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bot-bottle/supervise/queue"
	"github.com/google/go-cmp/cmp"
	"github.com/modelcontextprotocol/go-sdk/mcp"
)

var askGitHub = args{
	"host": "api.github.com", "path_allowlist": []string{"/repos/"},
	"auth":          args{"scheme": "Bearer", "token_ref": "GH_TOKEN"},
	"justification": "clone was refused",
}

func with(a args, kv ...any) args {
	out := maps.Clone(a)
	for i := 0; i < len(kv); i += 2 {
		out[kv[i].(string)] = kv[i+1]
	}
	return out
}

// bubble runs f with a rig, in fake time.
func bubble(t *testing.T, opts Options, f func(t *testing.T, r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, newBox(), opts)
		defer r.close()
		f(t, r)
	})
}

// asked makes a call and waits until it blocks or has answered.
func (r *rig) asked(tool string, a any) <-chan reply {
	out := r.start(r.t.Context(), tool, a)
	synctest.Wait()
	return out
}

func TestWhatIsStored(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, r *rig) {
		now := time.Now().UTC()
		call := r.asked("egress-block", with(askGitHub, "unknown", args{"x": 1}))
		id := r.box.only(t)
		e, _ := r.box.Get(t.Context(), id)
		want := queue.Proposal{
			ID: id, Bottle: "demo", Tool: "egress-block", Justification: "clone was refused",
			ProposedFile:    "{\n  \"host\": \"api.github.com\",\n  \"path_allowlist\": [\n    \"/repos/\"\n  ],\n  \"auth\": {\n    \"scheme\": \"Bearer\",\n    \"token_ref\": \"GH_TOKEN\"\n  }\n}\n",
			CurrentFileHash: "2ba358c26b2ca0841cf89ddfc9a1cbf28510848ec6a254e2590c8706a4416975",
			ArrivedAt:       now,
		}
		if diff := cmp.Diff(want, e.Proposal); diff != "" {
			t.Errorf("proposal mismatch (-want +got):\n%s", diff)
		}
		wantLog := fmt.Sprintf(`msg="queued proposal %s (egress-block) for bottle demo; waiting for operator..."`, id)
		if got := r.log.String(); !strings.Contains(got, wantLog) || strings.Contains(got, "clone") || strings.Contains(got, "GH_TOKEN") {
			t.Errorf("log = %s, want %s and no payload", got, wantLog)
		}
		r.box.respond(t, id, queue.Response{Status: queue.Approved, Outcome: queue.Live})
		<-call

		for tool, a := range map[string]args{
			"pipelock-block":   {"failed_url": " https://a.example/x ", "justification": "x"},
			"capability-block": {"dockerfile": "FROM a\r\n", "justification": "x"},
		} {
			call := r.asked(tool, a)
			id := r.box.only(t)
			e, _ := r.box.Get(t.Context(), id)
			want := map[string]string{"pipelock-block": "https://a.example/x", "capability-block": "FROM a\r\n"}[tool]
			if e.Proposal.ProposedFile != want || e.Proposal.Tool != tool {
				t.Errorf("%s stored %q as %s, want %q", tool, e.Proposal.ProposedFile, e.Proposal.Tool, want)
			}
			r.box.respond(t, id, queue.Response{Status: queue.Rejected})
			<-call
		}
	})
}

func TestAnswers(t *testing.T) {
	route := "{\n  \"host\": \"api.github.com\"\n}\n"
	tests := []struct {
		name string
		tool string
		args args
		resp queue.Response
		want string // %s is the id
	}{
		{"approved, live", "egress-block", askGitHub, queue.Response{Status: queue.Approved, Outcome: queue.Live},
			"status: approved\n\nThe operator approved egress-block for api.github.com /repos/ (proposal %s). It is live now: retry what was refused."},
		{"approved with notes, unchanged", "egress-block", askGitHub, queue.Response{Status: queue.Approved, Notes: "ok & <fine>\nline 2", Outcome: queue.Unchanged},
			"status: approved\nnotes: ok & <fine>\nline 2\n\nThe operator approved egress-block for api.github.com /repos/ (proposal %s). It was allowed already, so nothing was changed: retry once, and if it is still refused the cause is another one. Read the error again, and check list-egress-routes."},
		{"approved, unverified", "pipelock-block", args{"failed_url": "https://a.example/x", "justification": "x"}, queue.Response{Status: queue.Approved, Outcome: queue.Unverified},
			"status: approved\n\nThe operator approved pipelock-block for https://a.example/x (proposal %s). It was applied but not seen live: retry what was refused, and if it is still refused after a minute check list-egress-routes and ask again saying what fails."},
		{"foreign operator", "egress-block", askGitHub, queue.Response{Status: queue.Approved},
			"status: approved\n\nThe operator approved egress-block for api.github.com /repos/ (proposal %s). Nothing was said about what was done: check that it works, and if it does not, ask again saying what fails."},
		{"acknowledged", "capability-block", args{"dockerfile": "FROM a", "justification": "x"}, queue.Response{Status: queue.Approved, Outcome: queue.Acknowledged},
			"status: approved\n\nThe operator approved capability-block for the Dockerfile (proposal %s). It is recorded, and nothing was rebuilt: this sandbox stays as it is for now. Go on without it, and do not ask for it again."},
		{"Dockerfile live", "capability-block", args{"dockerfile": "FROM a", "justification": "x"}, queue.Response{Status: queue.Approved, Outcome: queue.Live},
			"status: approved\n\nThe operator approved capability-block for the Dockerfile (proposal %s). The image is built from it, and this sandbox is about to be replaced: finish what you are writing, and expect this session to end."},
		{"Dockerfile built", "capability-block", args{"dockerfile": "FROM a", "justification": "x"}, queue.Response{Status: queue.Approved, Outcome: queue.Built},
			"status: approved\n\nThe operator approved capability-block for the Dockerfile (proposal %s). The image is built from it, and it takes effect when this sandbox is next started: until then what you need is not here. Go on without it, and do not ask for it again."},
		{"modified with a file", "egress-block", askGitHub, queue.Response{Status: queue.Modified, Notes: "n", FinalFile: route, Outcome: queue.Live},
			"status: modified\nnotes: n\nthe operator modified your proposal before approving; the final config is now what's been applied\n\nThe operator approved egress-block for api.github.com /repos/ with changes (proposal %s). It is live now: retry what was refused.\n\nWhat was applied:\n{\n  \"host\": \"api.github.com\"\n}"},
		{"modified without a file", "egress-block", askGitHub, queue.Response{Status: queue.Modified, Outcome: queue.Live},
			"status: modified\n\nThe operator approved egress-block for api.github.com /repos/ with changes (proposal %s). It is live now: retry what was refused."},
		{"rejected", "egress-block", askGitHub, queue.Response{Status: queue.Rejected, Notes: "use the mirror"},
			"status: rejected\nnotes: use the mirror\n\nThe operator rejected egress-block for api.github.com /repos/ (proposal %s). Nothing was changed. Find another way, or propose something narrower that meets the notes; do not repeat this unchanged."},
		{"rejected without notes", "egress-block", askGitHub, queue.Response{Status: queue.Rejected},
			"status: rejected\n\nThe operator rejected egress-block for api.github.com /repos/ (proposal %s). Nothing was changed. Find another way, or propose something narrower; do not repeat this unchanged."},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, Options{}, func(t *testing.T, r *rig) {
				call := r.asked(tt.tool, tt.args)
				id := r.box.only(t)
				time.Sleep(3 * time.Hour)
				r.box.respond(t, id, tt.resp)
				got := <-call
				if got.err != nil {
					t.Fatal(got.err)
				}
				if diff := cmp.Diff(fmt.Sprintf(tt.want, id), got.text); diff != "" {
					t.Errorf("text mismatch (-want +got):\n%s", diff)
				}
				if want := tt.resp.Status == queue.Rejected; got.isError != want {
					t.Errorf("isError = %v, want %v", got.isError, want)
				}
				m := got.meta
				if m.Status != string(tt.resp.Status) || m.ProposalID != id || m.Tool != tt.tool || m.Notes != tt.resp.Notes ||
					m.FinalFile != tt.resp.FinalFile || m.Outcome != tt.resp.Outcome || m.DecidedAt.IsZero() || m.Repeated {
					t.Errorf("_meta = %+v", m)
				}
				if !r.box.delivered(id) {
					t.Error("the answer went out and is not archived")
				}
			})
		})
	}
}

func TestSameQuestionIsAskedOnce(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, r *rig) {
		same := []args{
			{"host": "API.github.com.", "path_allowlist": []string{"/b", "/a", "/b"}, "justification": "one"},
			{"host": " api.github.com", "path_allowlist": []string{"/a", "/b"}, "justification": "two"},
		}
		var calls []<-chan reply
		for i := range 100 { // all at once: racing calls make one proposal
			calls = append(calls, r.start(t.Context(), "egress-block", same[i%2]))
		}
		synctest.Wait()
		id := r.box.only(t)
		other := r.asked("egress-block", args{"host": "api.github.com", "justification": "one"})
		if n := len(r.box.ids()); n != 2 {
			t.Errorf("%d proposals, want another one for another question", n)
		}
		for _, id := range r.box.ids() {
			r.box.respond(t, id, queue.Response{Status: queue.Approved})
		}
		for _, c := range append(calls, other) {
			if got := <-c; !strings.HasPrefix(got.text, "status: approved") {
				t.Errorf("answer = %q, %v", got.text, got.err)
			}
		}
		if !r.box.delivered(id) {
			t.Error("not archived")
		}
	})
}

func TestRestartRemembers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBox()
		r := newRig(t, b, Options{})
		ctx, cancel := context.WithCancel(t.Context())
		call := r.start(ctx, "egress-block", askGitHub)
		synctest.Wait()
		id := b.only(t)
		cancel()
		<-call
		r.close()

		time.Sleep(time.Minute)
		r = newRig(t, b, Options{}) // while it is open
		call = r.asked("egress-block", with(askGitHub, "justification", "new words"))
		if last := r.messages()[0]; !strings.Contains(last, "1 min so far") {
			t.Errorf("progress after a restart = %q, want the proposal's age", last)
		}
		b.respond(t, id, queue.Response{Status: queue.Rejected, Notes: "no"})
		if got := <-call; got.meta.ProposalID != id {
			t.Errorf("joined %+v, want %s", got, id)
		}
		r.close()

		time.Sleep(9 * time.Minute)
		r = newRig(t, b, Options{}) // within the redelivery window
		got := r.do("egress-block", askGitHub)
		if !got.meta.Repeated || got.meta.ProposalID != id || !got.isError {
			t.Errorf("same words after a restart = %+v, want the recorded answer", got)
		}
		r.close()
		if b.puts() != 1 {
			t.Errorf("%d proposals, want 1", b.puts())
		}
	})
}

// TestRestartAfterClockWasSetBack: what is open was asked after the same that was answered, whatever their ids say.
func TestRestartAfterClockWasSetBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBox()
		r := newRig(t, b, Options{})
		low, high := queue.NewID(), queue.NewID()
		call := r.asked("egress-block", askGitHub)
		e, err := b.Get(t.Context(), b.only(t))
		if err != nil {
			t.Fatal(err)
		}
		b.respond(t, e.Proposal.ID, queue.Response{Status: queue.Approved})
		<-call
		r.close()
		b = newBox()
		first, second := e.Proposal, e.Proposal
		first.ID, second.ID = high, low
		if err := b.Put(t.Context(), first); err != nil {
			t.Fatal(err)
		}
		b.respond(t, high, queue.Response{Status: queue.Rejected})
		if err := b.Archive(t.Context(), high); err != nil {
			t.Fatal(err)
		}
		if err := b.Put(t.Context(), second); err != nil {
			t.Fatal(err)
		}

		r = newRig(t, b, Options{})
		defer r.close()
		call = r.asked("egress-block", askGitHub)
		b.respond(t, low, queue.Response{Status: queue.Approved, Outcome: queue.Live})
		if got := <-call; got.meta.ProposalID != low || got.meta.Repeated {
			t.Errorf("the question got %+v, want the answer of the open one, %s", got.meta, low)
		}
	})
}

func TestRedeliveryWindow(t *testing.T) {
	bubble(t, Options{Redeliver: 10 * time.Minute}, func(t *testing.T, r *rig) {
		answer := func(a args) queue.ID {
			t.Helper()
			call := r.asked("egress-block", a)
			id := r.box.only(t)
			r.box.respond(t, id, queue.Response{Status: queue.Approved, Outcome: queue.Live})
			<-call
			return id
		}
		id := answer(askGitHub)
		time.Sleep(10 * time.Minute)
		got := r.do("egress-block", with(askGitHub, "justification", " clone  was\nrefused ")) // the same words
		want := fmt.Sprintf("status: approved\n\nThe operator approved egress-block for api.github.com /repos/ (proposal %s). It is live now: retry what was refused.\n\ndecided 10 min ago; if still refused, check list-egress-routes and ask again saying what fails", id)
		if diff := cmp.Diff(want, got.text); diff != "" {
			t.Errorf("redelivery mismatch (-want +got):\n%s", diff)
		}
		second := answer(with(askGitHub, "justification", "still 403: other path"))
		if second == id {
			t.Error("new words within the window joined the old proposal")
		}
		time.Sleep(10*time.Minute + time.Second)
		if third := answer(with(askGitHub, "justification", "still 403: other path")); third == second {
			t.Error("the same words after the window joined the old proposal")
		}
	})
}

// TestUndone: what the operator has taken back is told to nobody as approved, whether he has heard of it or not, and can be asked for again.
func TestUndone(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, r *rig) {
		undo := func(id queue.ID) {
			t.Helper()
			if err := r.box.mem.Undone(t.Context(), bottle, id); err != nil {
				t.Fatal(err)
			}
			time.Sleep(5 * time.Minute)
		}
		told := func(what string, got reply, id queue.ID, repeated bool) {
			t.Helper()
			want := fmt.Sprintf("status: rejected\n\nThe operator approved egress-block for api.github.com /repos/ (proposal %s), and took that back 5 min ago: it is not in force. Find another way, or ask again saying why you still need it.", id)
			if got.text != want || !got.isError || got.meta.Status != "rejected" || got.meta.UndoneAt.IsZero() || got.meta.Outcome != "" || got.meta.Repeated != repeated {
				t.Errorf("%s = %+v, want %q", what, got, want)
			}
		}
		call := r.asked("egress-block", askGitHub)
		first := r.box.only(t)
		r.box.respond(t, first, queue.Response{Status: queue.Modified, FinalFile: "{}", Outcome: queue.Live})
		<-call
		undo(first)
		told("await-decision", r.await(first), first, true)

		waits := make(chan Wait, 1)
		r.call = &Call{Park: func(w Wait) { waits <- w }}
		<-r.asked("egress-block", askGitHub)
		second := r.box.only(t)
		if second == first {
			t.Fatal("the same question got the answer that was taken back")
		}
		left, hangUp := context.WithCancel(t.Context())
		hangUp()
		back := <-waits
		if res := back(left, nil); res != nil {
			t.Fatalf("a wait that was left = %+v", res)
		}
		r.call = nil
		r.box.respond(t, second, queue.Response{Status: queue.Approved, Outcome: queue.Live})
		undo(second)
		res := back(WithCall(t.Context(), &Call{OnDelivered: func(func() func(bool)) {}}), nil)
		if res == nil || !strings.HasPrefix(res.Content[0].(*mcp.TextContent).Text, "status: rejected\n\nThe operator approved") {
			t.Errorf("the call that came back = %+v, want that it was taken back", res)
		}
		told("the same question", r.do("egress-block", askGitHub), second, false)
		call = r.asked("egress-block", askGitHub)
		r.box.respond(t, r.box.only(t), queue.Response{Status: queue.Approved, Outcome: queue.Live})
		if got := <-call; got.meta.Status != "approved" {
			t.Errorf("asked once more = %+v, want approved", got)
		}
	})
}

// TestUndoneBeforeItWasSeen: a sidecar that sees an answer late, as one that was suspended does, does not deliver what was taken back meanwhile.
func TestUndoneBeforeItWasSeen(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, r *rig) {
		late := make(chan struct{})
		r.box.late = late
		call := r.asked("egress-block", askGitHub)
		id := r.box.only(t)
		r.box.respond(t, id, queue.Response{Status: queue.Approved, Outcome: queue.Live})
		time.Sleep(time.Minute)
		if err := r.box.mem.Undone(t.Context(), bottle, id); err != nil {
			t.Fatal(err)
		}
		close(late)
		if got := <-call; got.meta.Status != "rejected" || got.meta.UndoneAt.IsZero() {
			t.Errorf("the call that waited = %+v, want that it was taken back", got)
		}
	})
}

func TestRejectedMayBeRetriedThreeTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBox()
		r := newRig(t, b, Options{})
		reject := func(words string) {
			t.Helper()
			call := r.asked("egress-block", with(askGitHub, "justification", words))
			b.respond(t, b.only(t), queue.Response{Status: queue.Rejected, Notes: "not for " + words})
			if got := <-call; !got.isError || got.meta.Status != "rejected" {
				t.Errorf("%s: %+v", words, got)
			}
			time.Sleep(time.Minute)
		}
		limited := func() {
			t.Helper()
			got := r.do("egress-block", with(askGitHub, "justification", "a fourth time"))
			want := "egress-block: this was rejected, and asked again 3 times within the hour, which is the limit; the operator's last notes: not for w3. Find another way, or propose something else"
			if !got.isError || got.text != want {
				t.Errorf("fourth retry\n got %s\nwant %s", got.text, want)
			}
		}
		for i := range 4 {
			reject(fmt.Sprintf("w%d", i))
		}
		limited()
		if got := r.do("egress-block", with(askGitHub, "justification", "w3")); !got.meta.Repeated {
			t.Errorf("the same words at the limit = %+v, want the recorded answer", got)
		}
		r.close()
		r = newRig(t, b, Options{}) // a restart does not reset it
		limited()
		if call := r.asked("egress-block", args{"host": "other.example", "justification": "x"}); len(b.ids()) != 1 {
			t.Error("another question was limited too")
		} else {
			b.respond(t, b.only(t), queue.Response{Status: queue.Approved})
			<-call
		}
		time.Sleep(time.Hour)
		reject("w4")
		r.close()
	})
}

func TestMaxPending(t *testing.T) {
	bubble(t, Options{MaxPending: 2}, func(t *testing.T, r *rig) {
		ask := func(host string) args { return args{"host": host, "justification": "x"} }
		first := r.asked("egress-block", ask("one.example"))
		time.Sleep(90 * time.Second)
		second := r.asked("egress-block", ask("two.example"))
		ids := r.box.ids()
		got := r.do("pipelock-block", args{"failed_url": "https://three.example", "justification": "x"})
		want := fmt.Sprintf("pipelock-block: 2 proposals of this sandbox wait for the operator already, which is the limit: call await-decision with one of these ids before you ask for more. Open, with their age: %s (egress-block, 1 min), %s (egress-block, 0 s)", ids[0], ids[1])
		if !got.isError || got.text != want {
			t.Errorf("third\n got %s\nwant %s", got.text, want)
		}
		again := r.asked("egress-block", ask("ONE.example")) // joining is not asking
		r.box.respond(t, ids[0], queue.Response{Status: queue.Approved})
		<-first
		<-again
		third := r.asked("egress-block", ask("three.example"))
		for _, id := range r.box.ids() {
			r.box.respond(t, id, queue.Response{Status: queue.Approved})
		}
		<-second
		<-third
		if r.box.puts() != 3 {
			t.Errorf("%d proposals, want 3", r.box.puts())
		}
	})
}

func TestMaxPendingHoldsWhenCallsRace(t *testing.T) {
	bubble(t, Options{MaxPending: 5}, func(t *testing.T, r *rig) {
		var calls []<-chan reply
		for i := range 20 {
			calls = append(calls, r.start(t.Context(), "egress-block", args{"host": fmt.Sprintf("h%d.example", i), "justification": "x"}))
		}
		synctest.Wait()
		ids := r.box.ids()
		if len(ids) != 5 {
			t.Errorf("%d open proposals, want 5", len(ids))
		}
		for _, id := range ids {
			r.box.respond(t, id, queue.Response{Status: queue.Approved})
		}
		refused := 0
		for _, c := range calls {
			if got := <-c; got.isError {
				refused++
			}
		}
		if refused != 15 {
			t.Errorf("%d calls refused, want 15", refused)
		}
	})
}

// What is being stored counts, is asked once, and holds up nothing else.
func TestStoringSideBySide(t *testing.T) {
	bubble(t, Options{MaxPending: 5}, func(t *testing.T, r *rig) {
		gate := make(chan struct{})
		r.box.gate = gate
		replies := make(chan reply, 40)
		for i := range 20 {
			go func() {
				replies <- r.do("egress-block", args{"host": fmt.Sprintf("h%d.example", i/2), "justification": "x"})
			}()
		}
		synctest.Wait()
		if len(replies) != 10 {
			t.Errorf("%d calls were refused while nothing was stored yet, want those of 5 hosts", len(replies))
		}
		for range len(replies) {
			if got := <-replies; !got.isError || !strings.Contains(got.text, "5 proposals of this sandbox wait") || !strings.Contains(got.text, "(just now)") {
				t.Errorf("answer = %+v", got)
			}
		}
		gate <- struct{}{} // one is stored, in whatever order
		synctest.Wait()
		if n := len(r.box.ids()); n != 1 {
			t.Errorf("%d proposals are stored, want 1", n)
		}
		close(gate)
		synctest.Wait()
		ids := r.box.ids()
		if len(ids) != 5 {
			t.Errorf("%d open proposals, want 5", len(ids))
		}
		for _, id := range ids {
			r.box.respond(t, id, queue.Response{Status: queue.Approved})
		}
		for range 10 {
			if got := <-replies; got.meta.Status != "approved" {
				t.Errorf("answer = %+v", got)
			}
		}
	})
}

func TestPutFails(t *testing.T) {
	for _, stored := range []bool{false, true} {
		t.Run(fmt.Sprint("stored ", stored), func(t *testing.T) {
			bubble(t, Options{}, func(t *testing.T, r *rig) {
				r.box.fail("put", stored, errors.New("no space left"))
				got := r.do("egress-block", askGitHub)
				r.box.fail("", false, nil)
				want := "egress-block: storing the proposal failed: no space left. This is no decision; call again in a moment, and tell the user if it goes on"
				if !got.isError || got.text != want {
					t.Errorf("answer\n got %s\nwant %s", got.text, want)
				}
				if stored { // the operator saw it meanwhile
					r.box.respond(t, r.box.only(t), queue.Response{Status: queue.Approved})
				}
				call := r.asked("egress-block", with(askGitHub, "justification", "again"))
				if !stored {
					r.box.respond(t, r.box.only(t), queue.Response{Status: queue.Approved})
				}
				if got := <-call; got.meta.Status != "approved" {
					t.Errorf("second call = %+v", got)
				}
				time.Sleep(time.Hour)
				call = r.asked("egress-block", askGitHub) // a new question: the old one is done with
				r.box.respond(t, r.box.only(t), queue.Response{Status: queue.Approved})
				<-call
				if r.box.puts() != 2 {
					t.Errorf("%d proposals, want 2", r.box.puts())
				}
			})
		})
	}
}

func TestOldRecordsAreForgotten(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, r *rig) {
		for i := range 10 {
			call := r.asked("egress-block", args{"host": fmt.Sprintf("h%d.example", i), "justification": "x"})
			r.box.respond(t, r.box.only(t), queue.Response{Status: queue.Approved})
			<-call
			time.Sleep(time.Hour)
		}
		if n := max(len(r.tools.records.byKey), len(r.tools.records.byID)); n > 4 {
			t.Errorf("%d questions remembered after ten hours, want those of the last two", n)
		}
	})
}

func TestManyRecordsAreForgotten(t *testing.T) {
	r := records{}
	for i := range maxRemembered + 10 {
		rec := &record{id: queue.NewID(), key: fmt.Sprint(i)}
		r.add(rec)
		r.deliver(rec)
		r.sweep(remembered)
	}
	if len(r.byKey) != maxRemembered || len(r.byID) != maxRemembered || r.byKey["9"] != nil || r.byKey["10"] == nil {
		t.Errorf("%d questions of %d proposals remembered, want the last %d", len(r.byKey), len(r.byID), maxRemembered)
	}
}

// A full disk is no reason to keep all that could not be stored.
func TestUnsavedAreForgotten(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, r *rig) {
		ask := func(i int) reply {
			return r.do("egress-block", args{"host": fmt.Sprintf("h%d.example", i), "justification": "x"})
		}
		r.box.fail("put", false, errors.New("no space left"))
		for i := range 5 * maxUnsaved {
			if got := ask(i); !got.isError {
				t.Fatalf("answer = %+v, want an error", got)
			}
			ask(5*maxUnsaved - 1 - i%2) // is the same as before
		}
		if n := max(len(r.tools.records.byKey), len(r.tools.records.byID)); n != maxUnsaved {
			t.Errorf("%d proposals remembered that are not stored, want the last %d", n, maxUnsaved)
		}
		var left []queue.ID
		for id := range r.tools.records.byID {
			left = append(left, id)
		}
		r.box.fail("", false, nil)
		call := r.asked("egress-block", args{"host": fmt.Sprintf("h%d.example", 5*maxUnsaved-1), "justification": "x"})
		if id := r.box.only(t); !slices.Contains(left, id) {
			t.Errorf("the same question made proposal %s, want the one that could not be stored: one of %v", id, left)
		}
		r.box.respond(t, r.box.only(t), queue.Response{Status: queue.Approved})
		<-call
	})
}

func TestNewChecksItsOptions(t *testing.T) {
	for name, tt := range map[string]struct {
		opts Options
		want string
	}{
		"slug":    {Options{Bottle: "../x", Mailbox: newBox()}, `bottle slug "../x" must match [a-z0-9][a-z0-9-]{0,62}`},
		"mailbox": {Options{Bottle: "a"}, "tools: no mailbox"},
		"proxy":   {Options{Bottle: "a", Mailbox: newBox(), EgressProxy: "egress:9099"}, `egress proxy "egress:9099" must be a URL such as http://egress:9099`},
		"limit":   {Options{Bottle: "a", Mailbox: newBox(), MaxPending: -1}, "tools: redelivery 10m0s, pending -1 and waiting 2048 must not be negative"},
	} {
		if _, err := New(tt.opts); err == nil || err.Error() != tt.want {
			t.Errorf("%s: New = %v, want %s", name, err, tt.want)
		}
	}
}

func TestAgo(t *testing.T) {
	var got []string
	for _, d := range []time.Duration{0, 59 * time.Second, time.Minute, 119 * time.Minute, 2 * time.Hour, 47 * time.Hour, 48 * time.Hour, 100 * time.Hour} {
		got = append(got, ago(d))
	}
	want := []string{"0 s", "59 s", "1 min", "119 min", "2 h", "47 h", "2 days", "4 days"}
	if !slices.Equal(got, want) {
		t.Errorf("ago = %q, want %q", got, want)
	}
}
