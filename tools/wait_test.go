package tools

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bot-bottle/supervise/internal/payload"
	"github.com/bot-bottle/supervise/queue"
	"github.com/google/go-cmp/cmp"
	"github.com/modelcontextprotocol/go-sdk/mcp"
)

func TestProgress(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, r *rig) {
		first := r.asked("pipelock-block", args{"failed_url": "https://first.example/", "justification": "x"})
		firstID := r.box.only(t)
		time.Sleep(10 * time.Second)
		second := r.asked("egress-block", askGitHub)
		time.Sleep(16 * time.Second)
		want := []string{
			"0 waiting for the human operator to decide pipelock-block for https://first.example/: 0 s so far",
			"0 waiting for the human operator to decide egress-block for api.github.com /repos/: 0 s so far; 1 proposal of this sandbox is ahead",
			"15 waiting for the human operator to decide pipelock-block for https://first.example/: 15 s so far",
			"15 waiting for the human operator to decide egress-block for api.github.com /repos/: 15 s so far; 1 proposal of this sandbox is ahead",
		}
		if diff := cmp.Diff(want, r.messages()); diff != "" {
			t.Errorf("progress mismatch (-want +got):\n%s", diff)
		}
		r.box.respond(t, firstID, queue.Response{Status: queue.Approved})
		<-first
		time.Sleep(time.Hour)
		got := r.messages()
		if n := len(got) - len(want); n < 3600/15 || n > 3600/15+1 {
			t.Errorf("%d notifications within an hour, want one every 15 s", n)
		}
		if last := got[len(got)-1]; strings.Contains(last, "ahead") || !strings.Contains(last, "60 min so far") {
			t.Errorf("last message = %q, want nobody ahead, after 60 min", last)
		}
		r.box.respond(t, r.box.only(t), queue.Response{Status: queue.Approved})
		<-second
	})
}

func TestProgressOfManyIsSentTogether(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, r *rig) {
		var calls []<-chan reply
		for i := range 9 {
			calls = append(calls, r.asked("egress-block", args{"host": fmt.Sprintf("h%d.example", i), "justification": "x"}))
			time.Sleep(100 * time.Millisecond)
		}
		time.Sleep(15*time.Second - 901*time.Millisecond)
		if n := len(r.messages()); n != 9 {
			t.Errorf("%d notifications just before 15 s, want the first of each", n)
		}
		time.Sleep(time.Millisecond)
		synctest.Wait()
		if n := len(r.messages()); n != 18 {
			t.Errorf("%d notifications after 15 s, want two of each", n)
		}
		for e := range r.box.Mailbox.Entries(t.Context()) {
			r.box.respond(t, e.Proposal.ID, queue.Response{Status: queue.Approved})
		}
		for _, c := range calls {
			<-c
		}
	})
}

// TestAsidePanics: what fails on a stack of its own fails the call, not the process.
func TestAsidePanics(t *testing.T) {
	defer func() {
		if got := recover(); got != "it broke" {
			t.Errorf("aside panicked with %v, want what f did", got)
		}
	}()
	aside(func() { panic("it broke") })
}

func TestHoldEndsAndAwaitGoesOn(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, r *rig) {
		start := time.Now()
		got := <-r.startWith(t.Context(), &mcp.CallToolParams{Name: "egress-block", Arguments: askGitHub}) // no progress token
		if d := time.Since(start); d != 50*time.Second {
			t.Errorf("held for %v, want 50s", d)
		}
		id := r.box.only(t)
		want := fmt.Sprintf(`status: pending
proposal_id: %[1]s

egress-block for api.github.com /repos/: the operator has not decided yet. Your proposal is stored and stays open; nothing is cancelled, and no answer will be lost.
To go on waiting call await-decision with proposal_id "%[1]s", or make the same egress-block call again; both join this proposal. You can do other work first. Do not take this for an approval or a rejection.`, id)
		if diff := cmp.Diff(want, got.text); diff != "" {
			t.Errorf("pending mismatch (-want +got):\n%s", diff)
		}
		if got.isError || got.meta.Status != "pending" || got.meta.ProposalID != id {
			t.Errorf("isError = %v, _meta = %+v", got.isError, got.meta)
		}
		if len(r.messages()) != 0 {
			t.Errorf("progress without a token: %q", r.messages())
		}

		again := r.asked("egress-block", with(askGitHub, "justification", "other words"))
		waiting := r.asked(Await, args{"proposal_id": string(id)})
		time.Sleep(23 * time.Hour)
		r.box.respond(t, id, queue.Response{Status: queue.Approved, Outcome: queue.Live})
		for _, call := range []<-chan reply{again, waiting} {
			if got := <-call; !strings.HasPrefix(got.text, "status: approved\n") {
				t.Errorf("answer = %q, %v", got.text, got.err)
			}
		}
		if r.box.puts() != 1 {
			t.Errorf("%d proposals, want 1", r.box.puts())
		}
		late := r.await(id)
		if want := "\n\ndecided 0 s ago; if still refused, check list-egress-routes and ask again saying what fails"; !strings.HasSuffix(late.text, want) || !late.meta.Repeated {
			t.Errorf("fetched again: %q, want the answer and %q", late.text, want)
		}
		time.Sleep(25 * time.Minute)
		if late := r.await(id); !strings.Contains(late.text, "decided 25 min ago") {
			t.Errorf("fetched again later: %q", late.text)
		}
	})
}

func TestHoldTable(t *testing.T) {
	spec := func(s string) func(string) (time.Duration, bool) {
		f, err := ParseHold(s)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	tests := []struct {
		spec, client string
		progress     bool
		want         time.Duration
	}{
		{"", "claude-code", true, 24 * time.Hour},
		{"", "Claude-Code/2.1", true, 24 * time.Hour},
		{"", "claude-code", false, 50 * time.Second},
		{"", "claude-codex", true, 50 * time.Second},
		{"", "codex-mcp-client", true, 240 * time.Second},
		{"", "gemini-cli-mcp-client-supervise", true, 540 * time.Second},
		{"", "", true, 50 * time.Second},
		{"240s", "claude-code", true, 240 * time.Second},
		{"0", "anything", false, 0},
		{"codex-mcp-client=200s,*=10s", "codex-mcp-client", false, 200 * time.Second},
		{"codex-mcp-client=200s, * = 10s", "claude-code", true, 10 * time.Second},
		{"codex-mcp-client=200s", "claude-code", true, 24 * time.Hour},
		{"Claude=1m,claude-code=2m", "claude-code", true, 2 * time.Minute},
		{"claude-code=0,5s", "claude-code", false, 0},
	}
	for _, tt := range tests {
		tools := &Tools{opts: Options{Hold: spec(tt.spec)}}
		if got := tools.hold(tt.client, tt.progress); got != tt.want {
			t.Errorf("%q: hold(%q, %v) = %v, want %v", tt.spec, tt.client, tt.progress, got, tt.want)
		}
	}
	for spec, want := range map[string]string{
		"240":        `"240" must be a duration such as 240s, 24h, or 0 for until decided`,
		"-1s":        `"-1s" must be a duration such as 240s, 24h, or 0 for until decided`,
		"a=b":        `"b" must be a duration such as 240s, 24h, or 0 for until decided`,
		"=5s":        `"=5s" has no client name before '=': write codex-mcp-client=240s, or *=50s for all others`,
		"a=1s,A=2s":  `client "a" is there twice`,
		"1s,2s":      `client "*" is there twice`,
		"a=1s,":      `"" must be a duration such as 240s, 24h, or 0 for until decided`,
		"a=1s;b=2s":  `"1s;b=2s" must be a duration such as 240s, 24h, or 0 for until decided`,
		"forever,*=": `"forever" must be a duration such as 240s, 24h, or 0 for until decided`,
	} {
		if _, err := ParseHold(spec); err == nil || err.Error() != want {
			t.Errorf("ParseHold(%q) = %v, want %s", spec, err, want)
		}
	}
}

func TestHoldZeroIsUntilDecided(t *testing.T) {
	hold, err := ParseHold("0")
	if err != nil {
		t.Fatal(err)
	}
	bubble(t, Options{Hold: hold}, func(t *testing.T, r *rig) {
		call := r.startWith(t.Context(), &mcp.CallToolParams{Name: "egress-block", Arguments: askGitHub})
		time.Sleep(30 * 24 * time.Hour)
		r.box.respond(t, r.box.only(t), queue.Response{Status: queue.Approved})
		if got := <-call; !strings.HasPrefix(got.text, "status: approved") {
			t.Errorf("answer = %q", got.text)
		}
	})
}

func TestMaxWaiting(t *testing.T) {
	bubble(t, Options{MaxWaiting: 3}, func(t *testing.T, r *rig) {
		var calls []<-chan reply
		for range 3 {
			calls = append(calls, r.asked("egress-block", askGitHub))
		}
		id := r.box.only(t)
		got := <-r.asked("egress-block", askGitHub)
		if !strings.HasPrefix(got.text, "status: pending\nproposal_id: "+string(id)+"\n") || !strings.Contains(got.text, "too many calls wait at once") {
			t.Errorf("fourth = %q", got.text)
		}
		r.box.respond(t, id, queue.Response{Status: queue.Approved})
		for _, c := range calls {
			<-c
		}
		synctest.Wait()
		if r.tools.waiting != 0 || len(r.tools.seats) != 0 {
			t.Errorf("waiting = %d, seats = %v after all left", r.tools.waiting, r.tools.seats)
		}
	})
	bubble(t, Options{}, func(t *testing.T, r *rig) {
		r.call = &Call{Session: "s1", Client: "claude-code"}
		var calls []<-chan reply
		for range 8 {
			calls = append(calls, r.asked("egress-block", askGitHub))
		}
		if got := <-r.asked("egress-block", askGitHub); got.meta.Status != "pending" {
			t.Errorf("ninth of one session = %+v", got)
		}
		calls = append(calls, r.asked("egress-block", with(askGitHub, "host", "other.example"))) // another proposal
		r.call = &Call{Session: "s2", Client: "claude-code"}
		calls = append(calls, r.asked("egress-block", askGitHub)) // another session
		for _, id := range r.box.ids() {
			r.box.respond(t, id, queue.Response{Status: queue.Approved})
		}
		for _, c := range calls {
			if got := <-c; got.meta.Status != "approved" {
				t.Errorf("answer = %+v", got)
			}
		}
	})
}

func TestDeliveryIsTheTransportsWord(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, r *rig) {
		var mu sync.Mutex
		var delivered []func() (then func(out bool))
		holding := 0
		r.call = &Call{
			OnDelivered: func(f func() (then func(out bool))) { mu.Lock(); defer mu.Unlock(); delivered = append(delivered, f) },
			Holding:     func() { mu.Lock(); defer mu.Unlock(); holding++ },
		}
		call := r.asked("egress-block", askGitHub)
		if holding == 0 {
			t.Error("a call that waits did not say so")
		}
		id := r.box.only(t)
		r.box.respond(t, id, queue.Response{Status: queue.Approved})
		<-call
		if r.box.delivered(id) {
			t.Fatal("archived before it went out")
		}
		time.Sleep(time.Hour) // its connection was gone: the next call has it at once, whatever the words
		holding = 0
		if got := r.do("egress-block", with(askGitHub, "justification", "new")); got.meta.ProposalID != id || got.meta.Repeated {
			t.Errorf("after a lost answer = %+v", got)
		}
		if got := r.await(id); got.meta.ProposalID != id || got.meta.Repeated {
			t.Errorf("await after a lost answer = %+v", got)
		}
		if holding != 0 {
			t.Error("an immediate answer counted as holding")
		}
		if len(delivered) != 3 {
			t.Fatalf("%d delivery hooks, want 3", len(delivered))
		}
		archive := delivered[1]()
		next := make(chan reply, 1) // what the client asks when it has read the answer
		go func() { next <- r.do("egress-block", askGitHub) }()
		nextAwait := make(chan reply, 1)
		go func() { nextAwait <- r.await(id) }()
		synctest.Wait()
		if len(next)+len(nextAwait) != 0 {
			t.Error("asked and answered while the answer before it was being archived")
		}
		archive(true)
		for _, c := range []chan reply{next, nextAwait} {
			if got := <-c; !got.meta.Repeated {
				t.Errorf("after delivery = %+v, want the recorded answer", got)
			}
		}
		if !r.box.delivered(id) {
			t.Error("not archived after it went out")
		}
		delivered[2]()(true) // again is no error
		if got := r.do("egress-block", askGitHub); !got.meta.Repeated {
			t.Errorf("after delivery = %+v, want the recorded answer", got)
		}
	})
}

// A client that does not read its answer holds up whoever asks the same for two seconds, and nobody else.
func TestStuckDelivery(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, r *rig) {
		var mu sync.Mutex
		var delivered []func() (then func(out bool))
		r.call = &Call{OnDelivered: func(f func() (then func(out bool))) {
			mu.Lock()
			defer mu.Unlock()
			delivered = append(delivered, f)
		}}
		call := r.asked("egress-block", askGitHub)
		id := r.box.only(t)
		r.box.respond(t, id, queue.Response{Status: queue.Rejected})
		<-call
		end := delivered[0]()
		for name, again := range map[string]func() reply{
			"the same":        func() reply { return r.do("egress-block", askGitHub) },
			"in other words":  func() reply { return r.do("egress-block", with(askGitHub, "justification", "new")) },
			"await-decision":  func() reply { return r.await(id) },
			"the same, again": func() reply { return r.do("egress-block", askGitHub) },
		} {
			start := time.Now()
			if got := again(); got.meta.ProposalID != id || got.meta.Status != "rejected" || got.meta.Repeated {
				t.Errorf("%s: %+v, want the answer that is on its way", name, got)
			}
			if d := time.Since(start); d != archiveWait {
				t.Errorf("%s: answered after %v, want %v", name, d, archiveWait)
			}
		}
		e, err := r.box.Get(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		p, err := payload.Parse(e.Proposal.Tool, e.Proposal.ProposedFile)
		if err != nil {
			t.Fatal(err)
		}
		if v, err := r.tools.claim(t.Context(), question{payload: p, key: keyOf(p)}); err != nil || v.giving != id {
			t.Errorf("making another one = %+v, %v, want to be told what is on its way", v, err)
		}
		r.asked("egress-block", with(askGitHub, "host", "other.example"))
		r.box.only(t) // it is open, at once
		end(true)
		if !r.box.delivered(id) {
			t.Error("not archived after it went out")
		}
	})
}

// Where there is no room for an answer that is read for this call alone, nothing of it counts as on its way.
func TestNoRoom(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, r *rig) {
		var delivered []func() (then func(out bool))
		roomy, sizes := false, 0
		r.call = &Call{
			OnDelivered: func(f func() (then func(out bool))) { delivered = append(delivered, f) },
			Room: func(size int) error {
				if sizes += size; !roomy {
					return ErrBusy
				}
				return nil
			},
		}
		call := r.asked("egress-block", askGitHub)
		id := r.box.only(t)
		r.box.respond(t, id, queue.Response{Status: queue.Modified, FinalFile: "{\"host\": \"api.github.com\"}", Notes: strings.Repeat("n", 3000)})
		if got := <-call; got.meta.Status != "modified" {
			t.Fatalf("whoever waited got %+v", got)
		}
		delivered = nil // it was lost
		for name, ask := range map[string]func() reply{
			"the same":       func() reply { return r.do("egress-block", askGitHub) },
			"await-decision": func() reply { return r.await(id) },
		} {
			roomy, sizes = false, 0
			if got := ask(); !got.isError || !strings.Contains(got.text, "call again in some seconds") || len(delivered) != 0 {
				t.Errorf("%s without room: %+v, %d on their way", name, got, len(delivered))
			}
			if sizes < 3000+27 {
				t.Errorf("%s asked for room for %d bytes", name, sizes)
			}
			roomy = true
			if got := ask(); got.meta.Status != "modified" || len(delivered) != 1 {
				t.Errorf("%s with room: %+v, %d on their way", name, got, len(delivered))
			}
			delivered = nil
		}
	})
}

// A transport that waits itself gets the wait, and the agent a pending answer if it makes nothing of it. The wait can be left and
// taken up again, tells of progress, and ends as that of a handler does.
func TestParked(t *testing.T) {
	var ev events
	bubble(t, Options{Observe: ev.add}, func(t *testing.T, r *rig) {
		waits := make(chan Wait, 1)
		r.call = &Call{Client: "claude-code", Park: func(w Wait) { waits <- w }}
		got := <-r.asked("egress-block", askGitHub)
		id := r.box.only(t)
		if got.isError || got.meta.Status != Pending || got.meta.ProposalID != id {
			t.Errorf("stand-in = %+v, want pending %s", got, id)
		}
		if n := len(r.messages()); n != 1 {
			t.Errorf("%d notifications by the session, want the first", n)
		}
		w := <-waits
		var told []string
		notify := func(_ context.Context, p *mcp.ProgressNotificationParams) error {
			told = append(told, fmt.Sprint(p.ProgressToken, " ", p.Progress))
			return nil
		}
		ev.take()
		ctx, hangUp := context.WithCancel(t.Context())
		time.AfterFunc(20*time.Second, hangUp)
		if res := w(ctx, notify); res != nil {
			t.Errorf("a wait that was left = %+v", res)
		}
		if diff := cmp.Diff([]string{"p 15"}, told); diff != "" {
			t.Errorf("progress mismatch (-want +got):\n%s", diff)
		}
		if n := r.tools.Waiting(); n != 0 {
			t.Errorf("%d calls wait, want none", n)
		}
		time.AfterFunc(5*time.Second, func() { r.box.respond(t, id, queue.Response{Status: queue.Rejected, Notes: "no"}) })
		res := w(t.Context(), notify)
		if res == nil || !res.IsError || !strings.Contains(res.Content[0].(*mcp.TextContent).Text, "notes: no") {
			t.Errorf("the answer = %+v", res)
		}
		want := []Event{{Kind: Left, Tool: "egress-block"}, {Kind: Rejoined, Tool: "egress-block"}}
		all := ev.take()
		if diff := cmp.Diff(want, all[:min(2, len(all))]); diff != "" {
			t.Errorf("events mismatch (-want +got):\n%s", diff)
		}

		<-r.asked("egress-block", with(askGitHub, "host", "other.example.com"))
		w = <-waits
		ctx, down := context.WithCancelCause(t.Context())
		down(ErrShutdown)
		if res := w(ctx, notify); res == nil || !strings.HasPrefix(res.Content[0].(*mcp.TextContent).Text, "status: pending") {
			t.Errorf("at the end of the server = %+v, want pending", res)
		}
		if err := r.box.Close(); err != nil {
			t.Fatal(err)
		}
		if res := w(t.Context(), notify); res == nil || !strings.HasPrefix(res.Content[0].(*mcp.TextContent).Text, "status: pending") {
			t.Errorf("when the mailbox is closed = %+v, want pending", res)
		}
	})
}

// Who comes back to an answer that is there reads it for himself, so he asks for room, and waits for that.
func TestParkedComesBack(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, r *rig) {
		waits := make(chan Wait, 1)
		r.call = &Call{Park: func(w Wait) { waits <- w }}
		for i, tt := range []struct {
			room, await error
			want        string
			isError     bool
			begun       int
		}{
			{nil, nil, "status: modified\nnotes: less", false, 1},
			{ErrBusy, nil, "status: modified\nnotes: less", false, 1},
			{ErrBusy, ErrBusy, "status: pending\nproposal_id: ID\n\nThe operator has decided", false, 0},
			{ErrBusy, ErrShutdown, "status: pending\nproposal_id: ID", false, 0},
			{errors.New("none at all"), nil, "none at all", true, 0},
		} {
			<-r.asked("egress-block", with(askGitHub, "host", fmt.Sprintf("h%d.example", i)))
			w := <-waits
			left, hangUp := context.WithCancel(t.Context())
			hangUp()
			if res := w(left, nil); res != nil {
				t.Fatalf("a wait that was left = %+v", res)
			}
			id := r.box.only(t)
			r.box.respond(t, id, queue.Response{Status: queue.Modified, Notes: "less", FinalFile: "{}"})
			begun, waited := 0, 0
			ctx := WithCall(t.Context(), &Call{
				OnDelivered: func(f func() func(bool)) { begun++; f()(true) },
				Room:        func(int) error { return tt.room },
				AwaitRoom:   func(_ context.Context, size int) error { waited = size; return tt.await },
			})
			res := w(ctx, nil)
			if res == nil {
				t.Fatalf("%+v: no answer", tt)
			}
			text := res.Content[0].(*mcp.TextContent).Text
			if res.IsError != tt.isError || !strings.HasPrefix(text, strings.Replace(tt.want, "ID", string(id), 1)) || begun != tt.begun {
				t.Errorf("%+v: %q, error %v, %d answers on their way", tt, text, res.IsError, begun)
			}
			if (waited > 1000) != errors.Is(tt.room, ErrBusy) {
				t.Errorf("%+v: waited for room for %d bytes", tt, waited)
			}
			if begun == 0 { // out of the next one's way
				if got := <-r.asked("egress-block", with(askGitHub, "host", fmt.Sprintf("h%d.example", i))); got.meta.Status != "modified" {
					t.Errorf("%+v: asked again: %+v", tt, got)
				}
			}
		}
	})
}

// A call that is cancelled while its proposal is stored is not waited for: its answer would go out to nobody and count.
func TestCancelledBeforeParked(t *testing.T) {
	var ev events
	bubble(t, Options{Observe: ev.add}, func(t *testing.T, r *rig) {
		gate := make(chan struct{})
		r.box.gate = gate
		r.call = &Call{Park: func(Wait) { t.Error("it is parked") }}
		ctx, cancel := context.WithCancel(t.Context())
		call := r.start(ctx, "egress-block", askGitHub)
		synctest.Wait()
		cancel()
		synctest.Wait()
		close(gate)
		if got := <-call; got.err == nil {
			t.Errorf("a cancelled call = %+v", got)
		}
		synctest.Wait()
		if diff := cmp.Diff([]Event{{Kind: Asked, Tool: "egress-block"}, {Kind: Left, Tool: "egress-block"}}, ev.take()); diff != "" {
			t.Errorf("events mismatch (-want +got):\n%s", diff)
		}
		r.call = nil
		again := r.asked("egress-block", askGitHub)
		r.box.respond(t, r.box.only(t), queue.Response{Status: queue.Approved})
		if got := <-again; got.meta.Status != "approved" {
			t.Errorf("asked again = %+v", got)
		}
	})
}

// What is no progress token, or a long one, is as good as none: it would be kept, and sent every 15 s.
func TestOddProgressTokens(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, r *rig) {
		for i, token := range []any{strings.Repeat("x", maxToken+1), []any{[]any{}}, map[string]any{"a": 1}, true} {
			call := r.startWith(t.Context(), &mcp.CallToolParams{Meta: mcp.Meta{"progressToken": token}, Name: "egress-block", Arguments: args{"host": fmt.Sprintf("h%d.example", i), "justification": "x"}})
			got := <-call // after what is right for a client without progress
			if got.meta.Status != Pending {
				t.Errorf("token %.20v: %+v", token, got)
			}
		}
		if n := len(r.messages()); n != 0 {
			t.Errorf("%d notifications, want none", n)
		}
		for i, token := range []any{strings.Repeat("x", maxToken), 7, 1.5} {
			call := r.startWith(t.Context(), &mcp.CallToolParams{Meta: mcp.Meta{"progressToken": token}, Name: "egress-block", Arguments: args{"host": fmt.Sprintf("g%d.example", i), "justification": "x"}})
			synctest.Wait()
			if n := len(r.messages()); n != i+1 {
				t.Errorf("token %.20v: %d notifications, want %d", token, n, i+1)
			}
			for _, id := range r.box.ids() {
				r.box.respond(t, id, queue.Response{Status: queue.Approved})
			}
			<-call
		}
	})
}

func TestArchiveFails(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, r *rig) {
		r.box.fail("archive", false, errors.New("disk full"))
		call := r.asked("egress-block", askGitHub)
		id := r.box.only(t)
		r.box.respond(t, id, queue.Response{Status: queue.Approved})
		if got := <-call; got.meta.Status != "approved" {
			t.Errorf("answer = %+v, want it in spite of the archive", got)
		}
		r.box.fail("", false, nil)
		if got := r.do("egress-block", with(askGitHub, "justification", "new")); got.meta.ProposalID != id {
			t.Errorf("asked again = %+v, want the same answer, never a second proposal", got)
		}
		if !strings.Contains(r.log.String(), "disk full") {
			t.Error("the failure is not in the log")
		}
	})
}

func TestShutdownAnswersPending(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, r *rig) {
		calls := []<-chan reply{r.asked("egress-block", askGitHub)}
		id := r.box.only(t)
		calls = append(calls, r.asked(Await, args{"proposal_id": string(id)}))
		start := time.Now()
		r.shutdown(ErrShutdown)
		for _, c := range calls {
			got := <-c
			if got.isError || !strings.HasPrefix(got.text, "status: pending\nproposal_id: "+string(id)+"\n") || !strings.Contains(got.text, "the supervise server is restarting") {
				t.Errorf("answer = %q, %v", got.text, got.err)
			}
		}
		if d := time.Since(start); d != 0 {
			t.Errorf("after %v, want at once", d)
		}
		if n := len(r.box.ids()); n != 1 {
			t.Errorf("%d open proposals, want 1", n)
		}
	})
}

func TestMailboxCloses(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, r *rig) {
		call := r.asked("egress-block", askGitHub)
		r.box.Close()
		if got := <-call; got.meta.Status != "pending" {
			t.Errorf("answer = %+v", got)
		}
	})
}

func TestRemovedWhileWaiting(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, r *rig) {
		call := r.asked("egress-block", askGitHub)
		id := r.box.only(t)
		r.box.remove(id)
		want := fmt.Sprintf("egress-block: proposal %s was removed from the queue undecided: ask again if you still need it", id)
		if got := <-call; !got.isError || got.text != want {
			t.Errorf("answer\n got %s\nwant %s", got.text, want)
		}
		call = r.asked("egress-block", askGitHub)
		if again := r.box.only(t); again == id {
			t.Error("the removed proposal came back")
		}
		r.box.respond(t, r.box.only(t), queue.Response{Status: queue.Approved})
		<-call
	})
}

func TestAwaitOnlyOwnBottle(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, r *rig) {
		p := queue.Proposal{ID: queue.NewID(), Bottle: "other", Tool: "egress-block", ProposedFile: "x"}
		r.box.strays[p.ID] = queue.Entry{Proposal: p}
		if got := r.await(p.ID); !got.isError || !strings.Contains(got.text, "is not known here") {
			t.Errorf("another bottle's proposal = %+v", got)
		}
	})
}

func TestCancelledCallLosesNothing(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, r *rig) {
		ctx, cancel := context.WithCancel(t.Context())
		call := r.start(ctx, "egress-block", askGitHub)
		synctest.Wait()
		id := r.box.only(t)
		cancel()
		if got := <-call; !errors.Is(got.err, context.Canceled) {
			t.Errorf("cancelled call = %+v", got)
		}
		synctest.Wait()
		r.box.respond(t, id, queue.Response{Status: queue.Modified, Notes: "later"}) // nobody waits
		time.Sleep(5 * time.Hour)
		if r.box.delivered(id) {
			t.Error("archived though nobody got it")
		}
		got := r.do("egress-block", with(askGitHub, "justification", "quite other words"))
		if !strings.HasPrefix(got.text, "status: modified\nnotes: later\n") || got.meta.Repeated {
			t.Errorf("asked again = %q", got.text)
		}
		if r.box.puts() != 1 || !r.box.delivered(id) {
			t.Errorf("%d proposals, delivered %v; want 1, true", r.box.puts(), r.box.delivered(id))
		}
	})
}
