package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/bot-bottle/supervise/internal/routes"
)

// soakQuestion is one thing that an agent wants, with the words it asks in.
type soakQuestion struct {
	bottle *soakBottle
	host   string // "": a Dockerfile
	own    bool   // the host is nobody else's
	n      int
	words  string

	left int             // agents that have not had its answer yet; guarded by soak.mu, like what follows
	ids  map[string]bool // proposals that it was answered as
}

func (q *soakQuestion) path() string { return fmt.Sprintf("/p%d/", q.n) }

// call is the tool and its arguments, in JSON.
func (q *soakQuestion) call() (tool, arguments string) {
	if q.host == "" {
		return "capability-block", fmt.Sprintf(`{"dockerfile":"FROM debian:12@sha256:%064x\nRUN echo %d\n","justification":%q}`, 7, q.n, q.words)
	}
	return "egress-block", fmt.Sprintf(`{"host":%q,"path_allowlist":[%q],"justification":%q}`, q.host, q.path(), q.words)
}

// soakBottle is one bottle with a sidecar and a proxy of its own.
type soakBottle struct {
	*world
	frail bool // its sidecar and its proxy are killed
	proxy *process
	at    string // of the proxy

	metrics string // address
}

// soakAnswer is what an agent was told.
type soakAnswer struct{ status, notes, final, outcome string }

type soak struct {
	t       *testing.T
	dir     string
	bin     string
	bottles []*soakBottle
	more    chan *soakQuestion // what is to be asked
	rest    chan struct{}      // closed when nothing is killed any more

	mu       sync.Mutex // guards what follows
	rng      *rand.Rand
	counts   map[string]int
	answers  map[string]soakAnswer    // by proposal
	asked    map[string]*soakQuestion // by proposal
	undoable []string
	undoing  []string // undos that were killed: to be done again
	settled  int
	sessions []func(context.Context) // ends one that an agent left open
}

func (s *soak) roll() float64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rng.Float64()
}

func (s *soak) within(d time.Duration) time.Duration { return time.Duration(s.roll() * float64(d)) }

func (s *soak) count(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts[what]++
}

// TestSoak runs the whole for SOAK (a duration) with SOAK_PROPOSALS (5,000 in 30 min): two bottles, agents that are cut,
// slow and impatient, operators whose commands are killed, a sidecar and a proxy that are killed. In the end all
// must have been answered once, and alike. SOAK_SEED repeats its choices, but not the machine's.
func TestSoak(t *testing.T) {
	if os.Getenv("SOAK") == "" {
		t.Skip("SOAK=30m is not set; make soak sets it")
	}
	length, err := time.ParseDuration(os.Getenv("SOAK"))
	if err != nil {
		t.Fatalf("SOAK must be a duration, such as 30m: %v", err)
	}
	number := func(name string, otherwise int64) int64 {
		if os.Getenv(name) == "" {
			return otherwise
		}
		n, err := strconv.ParseInt(os.Getenv(name), 10, 64)
		if err != nil {
			t.Fatalf("%s must be a number: %v", name, err)
		}
		return n
	}
	total := int(number("SOAK_PROPOSALS", max(50, int64(5000*length/(30*time.Minute)))))
	seed := number("SOAK_SEED", time.Now().Unix())
	t.Logf("SOAK=%s SOAK_PROPOSALS=%d SOAK_SEED=%d", length, total, seed)

	s := newSoak(t, seed)
	ctx, cancel := context.WithCancel(t.Context())
	var agents, operators sync.WaitGroup
	defer func() { cancel(); agents.Wait(); operators.Wait() }()
	desk := start(t, nil, "web", "--listen", "127.0.0.1:0", "--config", filepath.Join(s.dir, "supervise.yaml")) // it recovers too, and must not grow
	desk.says(`(http://\S+)`)
	start := time.Now()
	agents.Go(func() {
		defer close(s.more)
		for i := range total {
			if time.Since(start) > length { // a machine that is too slow for all of them is asked fewer
				return
			}
			q := s.question(i)
			for range q.left {
				select {
				case <-time.After(time.Until(start.Add(length * time.Duration(i) / time.Duration(total)))):
				case <-ctx.Done():
					return
				}
				select {
				case s.more <- q:
				case <-ctx.Done():
					return
				}
			}
		}
	})
	for range 48 {
		agents.Go(func() {
			for q := range s.more {
				s.settle(ctx, q)
			}
		})
	}
	for range 3 {
		operators.Go(func() { s.operate(ctx) })
	}
	asked := make(chan struct{})
	go func() { agents.Wait(); close(asked) }()

	// What lives long: the sidecar of the other bottle, and the desk.
	steady := s.bottles[1]
	var samples []soakSample
	every := max(1, total/20)
	look := time.NewTicker(100 * time.Millisecond)
	defer look.Stop()
	next := time.Now().Add(s.within(10 * time.Second))
	calm := start.Add(length)
	last, lastAt := 0, start
	for done := false; !done; {
		select {
		case <-asked:
			done = true
		case <-look.C:
		}
		s.mu.Lock()
		settled := s.settled
		s.mu.Unlock()
		if settled >= len(samples)*every {
			samples = append(samples, s.sample(steady, desk, settled))
		}
		now := time.Now()
		switch {
		case settled > last:
			last, lastAt = settled, now
		case now.After(lastAt.Add(5 * time.Minute)):
			t.Fatalf("%d of about %d questions are answered, and no more come", settled, total)
		}
		switch {
		case now.Before(calm) && now.After(next):
			s.strike()
			next = time.Now().Add(time.Second + s.within(min(30*time.Second, length/20)))
		case now.After(calm):
			select {
			case <-s.rest:
			default:
				close(s.rest)
			}
		}
		if t.Failed() {
			return
		}
	}
	cancel()
	operators.Wait()
	s.finish(steady, desk, samples, time.Since(start))
}

func newSoak(t *testing.T, seed int64) *soak {
	s := &soak{t: t, dir: t.TempDir(), bin: binary(t), more: make(chan *soakQuestion), rest: make(chan struct{}), rng: rand.New(rand.NewPCG(uint64(seed), 1)),
		counts: map[string]int{}, answers: map[string]soakAnswer{}, asked: map[string]*soakQuestion{}}
	var config strings.Builder
	config.WriteString("root: queue\nbottles:\n")
	for _, slug := range []string{"web", "db"} {
		b := &soakBottle{world: &world{t: t, dir: s.dir, bottle: slug, port: freePort(t), desk: s.desk()}, frail: slug == "web", at: "127.0.0.1:" + freePort(t), metrics: "127.0.0.1:" + freePort(t)}
		if err := errors.Join(os.MkdirAll(b.path("queue"), 0o755), os.MkdirAll(b.path(slug), 0o755)); err != nil {
			t.Fatal(err)
		}
		b.write(slug+"/routes.yaml", "# by hand\nroutes: []\n")
		b.write(slug+"/Dockerfile", "FROM debian:12\n")
		fmt.Fprintf(&config, "  %s:\n    egress: {file: %s/routes.yaml, reload: none, allowlist_url: 'http://_egress.local/allowlist', proxy: 'http://%s'}\n    capability: {file: %s/Dockerfile}\n", slug, slug, b.at, slug)
		s.bottles = append(s.bottles, b)
		s.proxy(b)
		b.world.proxyAt = b.at
		s.side(b)
	}
	s.bottles[0].write("supervise.yaml", config.String())
	return s
}

func (s *soak) proxy(b *soakBottle) {
	b.proxy = start(s.t, nil, "egress", "--listen", b.at, "--routes", b.path(b.bottle+"/routes.yaml"), "--ca-dir", b.path(b.bottle+"/ca"))
	b.proxy.says("egress listening")
}

func (s *soak) side(b *soakBottle) {
	env := []string{"SUPERVISE_HOLD=claude-code=0,*=3s", "SUPERVISE_MAX_PENDING=16"}
	if !b.frail {
		env = append(env, "SUPERVISE_METRICS="+b.metrics)
	}
	b.startSide(env...)
}

// question is the i-th. A tenth is asked by two agents at once, a tenth is for a Dockerfile, a tenth for a host of many.
func (s *soak) question(i int) *soakQuestion {
	q := &soakQuestion{bottle: s.bottles[i%2], n: i, own: true, host: fmt.Sprintf("h%d.example.com", i), words: fmt.Sprintf("step %d needs it", i), left: 1, ids: map[string]bool{}}
	switch r := s.roll(); {
	case r < 0.1:
		q.host = ""
	case r < 0.2:
		q.host, q.own = fmt.Sprintf("shared%d.example.com", i%10), false
	}
	if s.roll() < 0.1 {
		q.left = 2
	}
	return q
}

// settle asks until there is an answer, whatever happens to the calls.
func (s *soak) settle(ctx context.Context, q *soakQuestion) {
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.settled++
	}()
	again := false
	pending := ""
	for ctx.Err() == nil {
		tool, arguments := q.call()
		if pending != "" && s.roll() < 0.5 {
			tool, arguments = "await-decision", fmt.Sprintf(`{"proposal_id":%q}`, pending)
		}
		a := s.once(ctx, q.bottle, tool, arguments)
		meta, _ := a.meta["supervise/decision"].(map[string]any)
		text := func(key string) string { v, _ := meta[key].(string); return v }
		id := text("proposal_id")
		switch {
		case a.err != nil:
			s.count("call cut, or its sidecar gone")
			s.pause(ctx, 100*time.Millisecond)
		case meta == nil && a.isError && strings.Contains(a.text, "which is the limit"):
			s.count("refused: too many open")
			s.pause(ctx, 300*time.Millisecond)
		case meta == nil && a.isError && strings.Contains(a.text, "This is no decision; call again in a moment"):
			s.count("refused: the sidecar is shutting down")
			s.pause(ctx, 300*time.Millisecond)
		case meta == nil:
			s.t.Errorf("%s %s: %s", tool, arguments, a.text)
			return
		case text("status") == "pending":
			s.count("pending")
			pending = id
		default:
			s.mu.Lock()
			got := soakAnswer{text("status"), text("notes"), text("final_file"), text("outcome")}
			if before, ok := s.answers[id]; ok && before != got {
				s.t.Errorf("proposal %s is answered %+v and %+v", id, before, got)
			}
			if !strings.HasPrefix(a.text, "status: "+got.status+"\n") || a.isError != (got.status == "rejected") {
				s.t.Errorf("proposal %s: %+v, but the text is %s", id, got, a.text)
			}
			s.answers[id], s.asked[id] = got, q
			q.ids[id] = true
			s.counts["answers"]++
			s.mu.Unlock()
			if !again && s.roll() < 0.2 { // an answer may be asked for twice
				again = true
				continue
			}
			s.mu.Lock()
			q.left--
			last := q.left == 0
			s.mu.Unlock()
			if last && got.status == "rejected" && !strings.HasSuffix(q.words, "!") && s.roll() < 0.3 {
				retry := &soakQuestion{bottle: q.bottle, host: q.host, own: q.own, n: q.n, words: q.words + " really!", left: 1, ids: map[string]bool{}}
				s.count("asked again after a rejection")
				q, again, pending = retry, true, ""
				continue
			}
			return
		}
	}
}

func (s *soak) pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// operate decides on what is open, in the ways that there are. One of eight commands is killed.
func (s *soak) operate(ctx context.Context) {
	for ctx.Err() == nil {
		out, _, code := s.command(ctx, false, "list", "--json")
		var l struct {
			Items    []item
			Problems []struct{ Text string }
		}
		if code != 0 || json.Unmarshal([]byte(out), &l) != nil {
			continue
		}
		for _, p := range l.Problems {
			s.count("list tells of a problem: " + p.Text)
		}
		for range min(2, len(l.Items)) {
			it := l.Items[int(s.roll()*float64(len(l.Items)))]
			if it.State == "stuck" {
				s.t.Errorf("stuck: %+v", it)
			}
			s.decide(ctx, it)
		}
		if len(l.Items) == 0 {
			s.pause(ctx, 50*time.Millisecond)
		}
	}
}

func (s *soak) decide(ctx context.Context, it item) {
	notes := fmt.Sprintf("note %d", int(s.roll()*1e9))
	args := []string{"approve", it.ID, "--yes", "--notes", notes}
	switch r := s.roll(); {
	case r < 0.2:
		args = []string{"reject", it.ID, "--notes", notes}
	case r < 0.35 && it.Tool == "egress-block":
		host, _, _ := strings.Cut(strings.TrimPrefix(it.Summary, "allow "), " ")
		file := filepath.Join(s.dir, "edit-"+strings.ReplaceAll(notes, " ", "-")+".json")
		if err := os.WriteFile(file, fmt.Appendf(nil, `{"host": %q, "path_allowlist": ["/edited/%s/"]}`, host, it.ID), 0o600); err != nil {
			s.t.Error(err)
		}
		defer os.Remove(file)
		args = []string{"modify", it.ID, "--file", file, "--yes", "--notes", notes}
	case r < 0.4:
		s.undo(ctx)
	}
	_, errs, code := s.command(ctx, true, args...)
	if code == 0 {
		s.count(args[0])
		if args[0] != "reject" && it.Tool == "egress-block" && strings.Contains(it.Summary, "allow h") {
			s.mu.Lock()
			s.undoable = append(s.undoable, it.ID)
			s.mu.Unlock()
		}
		return
	}
	s.count(fmt.Sprintf("%s: exit %d: %s", args[0], code, soakGist(errs)))
}

var soakNoise = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f-]+|[0-9a-f]{64}|/\S*|\b[\d.:]+\b|h\d+\.example\.com|shared\d+\.example\.com`)

// soakGist is the first line of an error, without what is different each time.
func soakGist(errs string) string {
	for line := range strings.Lines(errs) {
		if strings.HasPrefix(line, "supervise: ") && !strings.HasPrefix(line, "supervise: recovered ") {
			return soakNoise.ReplaceAllString(strings.TrimSpace(line), "…")
		}
	}
	return ""
}

func (s *soak) undo(ctx context.Context) {
	s.mu.Lock()
	if len(s.undoable) == 0 {
		s.mu.Unlock()
		return
	}
	i := s.rng.IntN(len(s.undoable))
	id := s.undoable[i]
	s.undoable = slices.Delete(s.undoable, i, i+1)
	s.undoing = append(s.undoing, id) // done again in the end, when it is not done now
	s.mu.Unlock()
	_, errs, code := s.command(ctx, true, "undo", id)
	if code != 0 {
		s.count(fmt.Sprintf("undo: exit %d: %s", code, soakGist(errs)))
		return
	}
	s.count("undo")
}

// desk is the environment of an operator's commands.
func (s *soak) desk() []string {
	return []string{"SUPERVISE_CONFIG=" + filepath.Join(s.dir, "supervise.yaml")}
}

// command is one of an operator; one in eight is killed at any moment, if it may be.
func (s *soak) command(ctx context.Context, frail bool, args ...string) (stdout, stderr string, code int) {
	cmd := exec.CommandContext(ctx, s.bin, args...)
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), s.desk()...)
	var out, errb bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errb
	if err := cmd.Start(); err != nil {
		if ctx.Err() == nil {
			s.t.Error(err)
		}
		return "", "", -1
	}
	select {
	case <-s.rest:
		frail = false
	default:
	}
	if frail && s.roll() < 1.0/8 {
		s.count("killed: " + args[0])
		defer time.AfterFunc(s.within(250*time.Millisecond), func() { _ = cmd.Process.Kill() }).Stop()
	}
	_ = cmd.Wait()
	return out.String(), errb.String(), cmd.ProcessState.ExitCode()
}

// strike kills something of the frail bottle, and starts it again.
func (s *soak) strike() {
	b := s.bottles[0]
	switch r := s.roll(); {
	case r < 0.15:
		s.count("killed: proxy")
		b.proxy.end(syscall.SIGKILL)
		s.proxy(b)
	case r < 0.3:
		s.count("stopped: sidecar")
		if code := b.side.end(syscall.SIGTERM); code != 0 {
			s.t.Errorf("a sidecar that is stopped ends with %d:\n%.2000s", code, b.side.output())
		}
		s.side(b)
	default:
		s.count("killed: sidecar")
		b.side.end(syscall.SIGKILL)
		s.side(b)
	}
}

type soakSample struct {
	settled, fds, goroutines, rss int // of the sidecar that is never killed; KiB
	deskFDs, deskRSS              int
}

func (s *soak) sample(b *soakBottle, desk *process, settled int) soakSample {
	return soakSample{settled, b.side.descriptors(), s.goroutines(b), b.side.rssAnon(), desk.descriptors(), desk.rssAnon()}
}

var goroutinesRE = regexp.MustCompile(`(?m)^go_goroutines\S* (\d+)$`)

func (s *soak) goroutines(b *soakBottle) int {
	resp, err := http.Get("http://" + b.metrics + "/metrics")
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	m := goroutinesRE.FindSubmatch(body)
	if m == nil {
		s.t.Fatalf("no go_goroutines in %s", body)
	}
	n, _ := strconv.Atoi(string(m[1]))
	return n
}

// finish checks all that must hold when everything is answered.
func (s *soak) finish(steady *soakBottle, desk *process, samples []soakSample, took time.Duration) {
	t := s.t
	http.DefaultClient.CloseIdleConnections()
	for _, end := range s.sessions {
		end(t.Context())
	}
	http.DefaultClient.CloseIdleConnections()
	for _, id := range s.undoing {
		if _, errs, code := s.command(t.Context(), false, "undo", id); code != 0 && code != 4 { // 4: undone already
			t.Errorf("undo %s: exit %d: %s", id, code, errs)
		}
	}

	// The ledger proves itself, and has one decision for each proposal: the one that the agent was told.
	w := s.bottles[0].world
	if out := w.must("audit", "verify"); !strings.Contains(out, "OK") {
		t.Errorf("audit verify: %s", out)
	}
	var h struct {
		Entries []struct{ Event, Bottle, ID, Tool, Status, Notes, Outcome string }
	}
	if err := json.Unmarshal([]byte(w.must("history", "--json", "--limit", "0")), &h); err != nil {
		t.Fatal(err)
	}
	slices.Reverse(h.Entries)
	decisions, status, notes := map[string]int{}, map[string]string{}, map[string]string{}
	want := map[*soakBottle]map[string][]string{s.bottles[0]: {}, s.bottles[1]: {}}
	for _, e := range h.Entries {
		s.counts["ledger: "+e.Event]++
		q := s.asked[e.ID]
		if q == nil {
			if e.ID != "" {
				t.Errorf("the ledger has %s of %s, and no agent was answered that", e.Event, e.ID)
			}
			continue
		}
		table := want[q.bottle]
		switch e.Event {
		case "decided":
			decisions[e.ID]++
			status[e.ID], notes[e.ID] = e.Status, e.Notes
		case "failed":
			decisions[e.ID]--
		case "applied":
			if q.host != "" {
				path := q.path()
				if s.answers[e.ID].status == "modified" {
					path = "/edited/" + e.ID + "/"
				}
				table[q.host] = append(table[q.host], path)
			}
		case "undone":
			delete(table, q.host) // only of hosts with one question, whose retry comes only after a rejection
		}
	}
	for id, a := range s.answers {
		if decisions[id] != 1 || status[id] != a.status || notes[id] != a.notes {
			t.Errorf("the agent was told %+v of %s; the ledger has %d decisions, the last %s with notes %q", a, id, decisions[id], status[id], notes[id])
		}
	}
	for _, q := range s.asked {
		if len(q.ids) != 1 {
			t.Errorf("one question (%s %s) was asked as %d proposals: %v", q.host, q.words, len(q.ids), slices.Collect(maps.Keys(q.ids)))
		}
	}
	if l := w.list(); len(l) != 0 {
		t.Errorf("open in the end: %+v", l)
	}
	for _, b := range s.bottles {
		table, err := routes.Parse([]byte(b.read(b.bottle + "/routes.yaml")))
		if err != nil {
			t.Errorf("%s/routes.yaml: %v", b.bottle, err)
			continue
		}
		for _, r := range table.Routes {
			got := slices.Sorted(slices.Values(r.PathAllowlist))
			if allowed := slices.Sorted(slices.Values(want[b][r.Host])); !slices.Equal(got, allowed) {
				t.Errorf("%s/routes.yaml lets %s%v through; approved are %v", b.bottle, r.Host, got, allowed)
			}
			delete(want[b], r.Host)
		}
		if len(want[b]) > 0 {
			t.Errorf("%s/routes.yaml lacks %v", b.bottle, want[b])
		}
	}
	s.leftovers()

	// What lived through it all is as small as it was.
	first := samples[min(len(samples)-1, len(samples)/4)]
	// A call that was cut may be resumed for a minute, and a session that was cut while it was opened is nobody's for half an hour.
	lost := 4 * min(256, s.counts["session cut while it was opened"])
	end := s.sample(steady, desk, s.settled)
	for until := time.Now().Add(3 * time.Minute); end.fds > samples[0].fds+8 || end.goroutines > samples[0].goroutines+16+lost; end = s.sample(steady, desk, s.settled) {
		if time.Now().After(until) {
			t.Errorf("descriptors and goroutines are not back: %+v, then %+v", samples[0], end)
			break
		}
		s.pause(t.Context(), 100*time.Millisecond)
	}
	for _, m := range append(samples, end) {
		t.Logf("%6d settled: sidecar %4d descriptors, %4d goroutines, %6d KiB; desk %4d descriptors, %6d KiB", m.settled, m.fds, m.goroutines, m.rss, m.deskFDs, m.deskRSS)
	}
	if end.rss > first.rss+16<<10 || end.deskRSS > first.deskRSS+32<<10 || end.deskFDs > first.deskFDs+8 {
		t.Errorf("grown since a quarter of it: %+v, then %+v", first, end)
	}
	t.Logf("%v: %d proposals answered", took.Round(time.Second), len(s.answers))
	for _, what := range slices.Sorted(maps.Keys(s.counts)) {
		t.Logf("%6d %s", s.counts[what], what)
	}
}

// leftovers looks for files that no one will remove. What killed commands leave in a mailbox goes after an hour.
func (s *soak) leftovers() {
	t := s.t
	for i, b := range s.bottles { // one more of each: it takes away what the last command that was killed left
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		done := make(chan answer, 1)
		go func() {
			tool, arguments := (&soakQuestion{host: fmt.Sprintf("last%d.example.com", i), n: i, words: "x"}).call()
			done <- s.bare(ctx, b, "2026-07-28", tool, arguments)
		}()
		items := b.open(1)
		b.must("approve", items[0].ID, "--yes")
		if a := <-done; a.err != nil {
			t.Errorf("the last call: %v", a.err)
		}
		cancel()
	}
	old := time.Now().Add(-2 * time.Hour)
	temps := func(age bool) (names []string) {
		err := filepath.WalkDir(s.dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if name := strings.TrimPrefix(path, s.dir); !d.IsDir() && strings.Contains(name, "tmp") {
				names = append(names, name)
				if age {
					return os.Chtimes(path, old, old)
				}
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		return names
	}
	s.counts["temporary files of killed commands, removed after an hour"] = len(temps(true))
	b := s.bottles[0]
	if code := b.side.end(syscall.SIGTERM); code != 0 {
		t.Errorf("the sidecar ends with %d", code)
	}
	s.side(b)
	if s.bottles[1] != nil {
		s.bottles[1].must("list")
	}
	var left []string
	for _, name := range temps(false) {
		if !strings.HasPrefix(name, "/queue/db/.operator-") { // its sidecar sweeps at most once an hour
			left = append(left, name)
		}
	}
	if len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}
