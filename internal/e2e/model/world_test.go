package model

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing/synctest"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
	"pgregory.net/rapid"

	"github.com/bot-bottle/supervise/internal/apply"
	"github.com/bot-bottle/supervise/internal/config"
	"github.com/bot-bottle/supervise/internal/operator"
	"github.com/bot-bottle/supervise/internal/payload"
	"github.com/bot-bottle/supervise/internal/routes"
	"github.com/bot-bottle/supervise/queue"
	"github.com/bot-bottle/supervise/tools"
)

const (
	bottle       = "web"
	baseRoutes   = "# kept by hand\nroutes:\n  - host: api.github.com   # the API\n    path_allowlist:\n      - /repos/\n"
	basePipelock = "# ours\nmode: strict\napi_allowlist:\n  - api.github.com\n"
)

var errCrash = errors.New("the process is dead")

// proxy shows the table that is in its file, or, deaf, the one it had. It is made outside of the bubble of fake time.
type proxy struct {
	mu   sync.Mutex
	path string // guarded by mu
	had  []byte // guarded by mu; nil: not deaf
}

func (p *proxy) set(path string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.path, p.had = path, nil
}

func (p *proxy) deaf(on bool) (err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.had = nil
	if on {
		p.had, err = os.ReadFile(p.path)
	}
	return err
}

// table is what it lets through.
func (p *proxy) table() (routes.Table, []byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	data := p.had
	if data == nil {
		var err error
		if data, err = os.ReadFile(p.path); err != nil {
			return routes.Table{}, nil, err
		}
	}
	t, err := routes.Parse(data)
	return t, data, err
}

func (p *proxy) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	t, data, err := p.table()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	a := apply.Allowlist{Routes: []apply.LiveRoute{}, SHA256: apply.SHA256(data)}
	for _, r := range t.Routes {
		a.Routes = append(a.Routes, apply.LiveRoute{Host: r.Host, PathAllowlist: r.PathAllowlist, Token: "none"})
	}
	json.NewEncoder(w).Encode(a)
}

// world is one root with one bottle, and everything that happens to it.
type world struct {
	t        *rapid.T
	dir      string
	proxy    *proxy
	mem      *queue.Mem
	cfg      config.Bottle
	side     *sidecar
	desks    []*desk
	model    *model
	nextCall int

	mu     sync.Mutex
	whole  map[string]string // guarded by mu; the last content of a file that was looked at
	humans int               // guarded by mu; how often a person has edited
	wrong  []string          // guarded by mu; found by goroutines that may not end the test
	steps  int               // guarded by mu; durable steps of desks and hands
}

func (w *world) routesFile() string   { return filepath.Join(w.dir, "routes.yaml") }
func (w *world) pipelockFile() string { return filepath.Join(w.dir, "pipelock.yaml") }
func (w *world) root() string         { return filepath.Join(w.dir, "queue") }

func newWorld(t *rapid.T, dir string, p *proxy, url string) *world {
	w := &world{t: t, dir: dir, proxy: p, mem: queue.NewMem(), model: newModel(), whole: map[string]string{}}
	for path, data := range map[string]string{w.routesFile(): baseRoutes, w.pipelockFile(): basePipelock} {
		if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	p.set(w.routesFile())
	w.cfg = config.Bottle{Egress: &config.Egress{File: w.routesFile(), AllowlistURL: url}, Pipelock: &config.Pipelock{File: w.pipelockFile()}}
	w.startSide()
	for _, name := range []string{"ann", "bob"} {
		d := &desk{w: w, name: name, seen: map[queue.ID]*operator.Preview{}}
		d.open()
		w.desks = append(w.desks, d)
	}
	return w
}

// settle lets everything run until it waits for something that only the test does. Within it, who polls for a lock gets it.
func (w *world) settle() {
	time.Sleep(200 * time.Millisecond) // in the bubble of the run
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.wrong) > 0 {
		w.t.Fatalf("%s", strings.Join(w.wrong, "\n"))
	}
}

func (w *world) complain(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wrong = append(w.wrong, fmt.Sprintf(format, args...))
}

// checkFiles is called before every durable step: what is on disk is whole, and has all that a person wrote.
func (w *world) checkFiles(when string) {
	for _, path := range []string{w.routesFile(), w.pipelockFile()} {
		data, err := os.ReadFile(path)
		if err != nil {
			w.complain("%s: %v", when, err)
			return
		}
		w.mu.Lock()
		same := w.whole[path] == string(data)
		w.whole[path] = string(data)
		w.mu.Unlock()
		if same {
			continue
		}
		if path == w.routesFile() {
			_, err = routes.Parse(data)
		} else {
			_, err = routes.PipelockParse(data)
		}
		if err != nil {
			w.complain("%s: %s is half-written: %v\n%s", when, path, err, data)
		}
		text, at := string(data), 0
		w.mu.Lock()
		humans := w.humans
		w.mu.Unlock()
		for n := range humans {
			mark := fmt.Sprintf("# person %d\n", n)
			i := strings.Index(text[at:], mark)
			if i < 0 {
				w.complain("%s: %s has lost what a person wrote: %q\n%s", when, path, mark, data)
				return
			}
			at += i
		}
	}
}

// sidecar is one life of a bottle's sidecar.
type sidecar struct {
	box      queue.Mailbox
	tools    *tools.Tools
	session  *mcp.ClientSession
	server   *mcp.ServerSession
	shutdown context.CancelCauseFunc
	mu       sync.Mutex
	calls    map[int]*call // guarded by mu
}

func (w *world) startSide() {
	s := &sidecar{box: w.mem.Mailbox(bottle), calls: map[int]*call{}}
	var err error
	s.tools, err = tools.New(tools.Options{Bottle: bottle, Mailbox: s.box, MaxPending: maxPending, Hold: func(client string) (time.Duration, bool) {
		if client == "hasty" {
			return hastyHold, true
		}
		return 0, true
	}})
	if err != nil {
		w.t.Fatal(err)
	}
	service, shutdown := context.WithCancelCause(context.Background())
	s.shutdown = shutdown
	server := mcp.NewServer(&mcp.Implementation{Name: "supervise"}, &mcp.ServerOptions{Capabilities: &mcp.ServerCapabilities{Tools: &mcp.ToolCapabilities{}}})
	s.tools.Register(server)
	server.AddReceivingMiddleware(s.tools.Middleware(), func(next mcp.MethodHandler) mcp.MethodHandler {
		return func(ctx context.Context, method string, req mcp.Request) (mcp.Result, error) {
			if r, ok := req.(*mcp.CallToolRequest); ok {
				n, _ := r.Params.Meta["call"].(float64)
				s.mu.Lock()
				c := s.calls[int(n)]
				s.mu.Unlock()
				ctx = tools.WithCall(ctx, &tools.Call{Client: c.client, OnDelivered: func(f func() (then func(out bool))) { c.archive = func() { f()(true) } }})
			}
			ctx, cancel := context.WithCancelCause(ctx)
			defer cancel(nil)
			defer context.AfterFunc(service, func() { cancel(context.Cause(service)) })()
			return next(ctx, method, req)
		}
	})
	st, ct := mcp.NewInMemoryTransports()
	if s.server, err = server.Connect(context.Background(), st, nil); err != nil {
		w.t.Fatal(err)
	}
	if s.session, err = mcp.NewClient(&mcp.Implementation{Name: "agent", Version: "1"}, nil).Connect(context.Background(), ct, nil); err != nil {
		w.t.Fatal(err)
	}
	w.side = s
}

// stop ends the sidecar; what it held must have been let go of.
func (s *sidecar) stop() error {
	err := errors.Join(s.session.Close(), s.box.Close())
	_ = s.server.Wait() // it says that its client is gone
	s.shutdown(nil)
	return err
}

// call is one call of an agent.
type call struct {
	n       int
	client  string
	lost    bool          // its answer goes to a connection that is gone
	id      queue.ID      // what it waits for, in the model; "" when it must be answered at once
	began   time.Time     //
	archive func()        // set by the handler before it returns; runs if the answer arrived
	replied chan struct{} // closed when reply is there
	reply   reply
	cancel  context.CancelFunc
}

type reply struct {
	text    string
	isError bool
	meta    tools.Decision
	err     error
}

func (c *call) done() bool {
	select {
	case <-c.replied:
		return true
	default:
		return false
	}
}

func (w *world) call(tool, client string, lost bool, args map[string]any) *call {
	ctx, cancel := context.WithCancel(context.Background())
	w.nextCall++
	c := &call{n: w.nextCall, client: client, lost: lost, began: time.Now(), replied: make(chan struct{}), cancel: cancel}
	s := w.side
	s.mu.Lock()
	s.calls[c.n] = c
	s.mu.Unlock()
	go func() {
		defer close(c.replied)
		res, err := s.session.CallTool(ctx, &mcp.CallToolParams{Meta: mcp.Meta{"call": c.n}, Name: tool, Arguments: args})
		if err != nil {
			c.reply.err = err
			return
		}
		c.reply.isError = res.IsError
		for _, part := range res.Content {
			c.reply.text += part.(*mcp.TextContent).Text
		}
		raw, err := json.Marshal(res.Meta[tools.DecisionKey])
		if err == nil {
			err = json.Unmarshal(raw, &c.reply.meta)
		}
		c.reply.err = err
	}()
	w.settle()
	return c
}

// desk is one operator, whose program may stop before any durable step, go on, and die there.
type desk struct {
	w    *world
	name string
	d    *operator.Desk
	seen map[queue.ID]*operator.Preview // looked at, and not decided on yet
	op   *op                            // nil: idle
}

// op is one run of the operator's program.
type op struct {
	what   string
	id     queue.ID
	notes  string
	cancel context.CancelFunc
	done   chan struct{} // closed when it has ended
	res    *operator.Result
	err    error

	mu     sync.Mutex
	at     string     // guarded by mu; the step it stands before; "" while it runs or waits for a lock
	free   bool       // guarded by mu; stops no more
	dead   bool       // guarded by mu
	resume chan error // what the step returns
}

func (d *desk) open() {
	hand, err := apply.New(apply.Options{
		Targets: func(string) config.Bottle { return d.w.cfg }, LockDir: filepath.Join(d.w.root(), ".desk", "locks"),
		VerifyTimeout: 60 * time.Millisecond, VerifyEvery: 20 * time.Millisecond, PipelockSettle: -1, Step: d.step,
	})
	if err != nil {
		d.w.t.Fatal(err)
	}
	if d.d, err = operator.New(operator.Options{Root: d.w.root(), Inbox: inbox{d.w.mem, d}, Hand: hand, By: d.name, Via: "cli", Step: d.step}); err != nil {
		d.w.t.Fatal(err)
	}
}

func (d *desk) step(name string) error {
	o := d.op
	d.w.mu.Lock()
	d.w.steps++
	d.w.mu.Unlock()
	d.w.checkFiles("before " + name)
	o.mu.Lock()
	if o.dead || o.free {
		defer o.mu.Unlock()
		if o.dead {
			return errCrash
		}
		return nil
	}
	o.at = name
	o.mu.Unlock()
	return <-o.resume
}

func (d *desk) start(what string, id queue.ID, notes string, f func(ctx context.Context) (*operator.Result, error)) {
	ctx, cancel := context.WithCancel(context.Background())
	o := &op{what: what, id: id, notes: notes, cancel: cancel, done: make(chan struct{}), resume: make(chan error)}
	d.op = o
	go func() {
		defer close(o.done)
		o.res, o.err = f(ctx)
	}()
	d.w.settle()
}

func (o *op) ended() bool {
	select {
	case <-o.done:
		return true
	default:
		return false
	}
}

// advance lets the program do the step it stands before. It reports whether it stood before one.
func (d *desk) advance() bool {
	o := d.op
	o.mu.Lock()
	stood := o.at != ""
	o.at = ""
	o.mu.Unlock()
	if stood {
		o.resume <- nil
	}
	d.w.settle()
	return stood
}

// release lets it run to its end, or kills it where it is.
func (d *desk) release(kill bool) {
	o := d.op
	o.mu.Lock()
	stood := o.at != ""
	o.at, o.free, o.dead = "", true, kill
	o.mu.Unlock()
	if kill {
		o.cancel()
	}
	if stood {
		var err error
		if kill {
			err = errCrash
		}
		o.resume <- err
	}
	d.w.settle()
}

// inbox is a desk's sight of the mailbox, and tells the model of the answers.
type inbox struct {
	queue.Inbox
	d *desk
}

func (in inbox) Respond(ctx context.Context, bottle string, r queue.Response) error {
	return in.d.w.respond(ctx, in.d.name, r)
}

// Undone notes that what was approved was taken back, which may be so though it failed.
func (in inbox) Undone(ctx context.Context, bottle string, id queue.ID) error {
	w := in.d.w
	uerr := w.mem.Undone(ctx, bottle, id)
	e, err := w.mem.Get(ctx, bottle, id)
	if err != nil {
		return err
	}
	if e.Undone.IsZero() {
		return uerr
	}
	w.mu.Lock()
	a := w.model.byID[id]
	a.undone = true
	d := a.decision
	w.mu.Unlock()
	if d == nil || d.foreign || d.resp.Status == queue.Rejected {
		w.complain("%s is taken back, and it is %+v", id, d)
	}
	return uerr
}

// respond creates a response as by does, and checks what holds at that moment.
func (w *world) respond(ctx context.Context, by string, r queue.Response) error {
	before, err := w.mem.Get(ctx, bottle, r.ProposalID)
	if err != nil {
		return err
	}
	rerr := w.mem.Respond(ctx, bottle, r)
	after, err := w.mem.Get(ctx, bottle, r.ProposalID)
	if err != nil {
		return err
	}
	if before.Response == nil && after.Response != nil {
		if err := w.decided(by, *after.Response, after.Proposal); err != nil {
			w.complain("%v", err)
		}
	} else if before.Response != nil && !before.Response.Equal(*after.Response) {
		w.complain("the response of %s was altered from %+v to %+v", r.ProposalID, before.Response, after.Response)
	}
	return rerr
}

// payloadOf is what a response stands for.
func payloadOf(p queue.Proposal, r queue.Response) (payload.Payload, error) {
	file := p.ProposedFile
	if r.FinalFile != "" {
		file = r.FinalFile
	}
	return payload.Parse(p.Tool, file)
}

// covers says what of p is not allowed now.
func (w *world) covers(p payload.Payload) error {
	data, err := os.ReadFile(w.pipelockFile())
	if err != nil {
		return err
	}
	entries, err := routes.PipelockParse(data)
	if err != nil {
		return err
	}
	if !routes.PipelockCovers(entries, p.Host) {
		return fmt.Errorf("pipelock has no %s", p.Host)
	}
	if p.Tool != payload.Egress {
		return nil
	}
	table, _, err := w.proxy.table()
	if err != nil {
		return err
	}
	return tableCovers(table, p)
}

func tableCovers(table routes.Table, p payload.Payload) error {
	live := table.Lookup(p.Host)
	if live == nil {
		return fmt.Errorf("there is no route to %s", p.Host)
	}
	paths := p.Route.PathAllowlist
	if len(paths) == 0 {
		paths = []string{"/"}
	}
	for _, path := range paths {
		if !live.Covers(path) {
			return fmt.Errorf("there is no route to %s%s", p.Host, path)
		}
	}
	return nil
}
