package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/clipperhouse/displaywidth"
	"github.com/modelcontextprotocol/go-sdk/mcp"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/bot-bottle/supervise/internal/apply"
	"github.com/bot-bottle/supervise/internal/config"
	"github.com/bot-bottle/supervise/internal/operator"
	"github.com/bot-bottle/supervise/internal/payload"
	"github.com/bot-bottle/supervise/queue"
)

var update = flag.Bool("update", false, "write the golden files")

func TestMain(m *testing.M) {
	syscall.Umask(0o022) // a supervise.yaml that a group can write is refused
	testscript.Main(m, map[string]func(){"supervise": main})
}

// terminalCommand runs supervise on a terminal; see tty_linux_test.go.
var terminalCommand = func(ts *testscript.TestScript, _ bool, _ []string) { ts.Fatalf("no terminals on this system") }

// ids are what scripts call $ID1, $ID2, …: of one second, as ids of one busy bottle are.
func ids() []string {
	var out []string
	for i := 1; i <= 9; i++ {
		out = append(out, fmt.Sprintf("0197f3b2-6d%02x-7c3a-9b58-3f6f0a2c4d%02x", i, i))
	}
	return out
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		UpdateScripts:       *update,
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			for i, id := range ids() {
				e.Setenv(fmt.Sprintf("ID%d", i+1), id)
			}
			e.Setenv("HOME", e.WorkDir)
			e.Setenv("XDG_STATE_HOME", "")
			e.Setenv("XDG_CONFIG_HOME", "")
			e.Setenv("SUPERVISE_ROOT", "")
			e.Setenv("TERM", "xterm")
			useConfig(e)
			return os.MkdirAll(filepath.Join(e.WorkDir, "root"), 0o700)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"propose":   propose,
			"nocontrol": noControl,
			"code":      exitCode,
			"jq":        jq,
			"response":  response,
			"await":     await,
			"terminal":  terminalCommand,
			"crash":     crash,
			"address":   address,
			"get":       get,
			"port":      port,
			"ask":       ask,
			"getuntil":  getUntil,
			"gutter":    gutter,
		},
	})
}

// useConfig makes a script's supervise.yaml, when it has one, what its commands read.
func useConfig(e *testscript.Env) {
	file := filepath.Join(e.WorkDir, "supervise.yaml")
	if _, err := os.Stat(file); err != nil {
		file = ""
	}
	e.Setenv("SUPERVISE_CONFIG", file)
}

// propose [-raw|-wait] BOTTLE ID TOOL FILE [JUSTIFICATION] puts a proposal into root/BOTTLE. FILE is a file of the script; with
// -raw it is the text itself, Go-quoted, as is JUSTIFICATION. With -wait an agent waits until the script ends; without,
// nobody does.
func propose(ts *testscript.TestScript, neg bool, args []string) {
	raw := len(args) > 0 && args[0] == "-raw"
	waits := len(args) > 0 && args[0] == "-wait"
	if raw || waits {
		args = args[1:]
	}
	if neg || len(args) < 4 || len(args) > 5 {
		ts.Fatalf("usage: propose [-raw|-wait] BOTTLE ID TOOL FILE [JUSTIFICATION]")
	}
	unquote := func(s string) string {
		s, err := strconv.Unquote(`"` + strings.ReplaceAll(s, `"`, `\"`) + `"`)
		ts.Check(err)
		return s
	}
	p := queue.Proposal{ID: queue.ID(args[1]), Bottle: args[0], Tool: args[2], Justification: "the build needs it"}
	if raw {
		p.Tool = unquote(args[2])
		p.ProposedFile = unquote(args[3])
	} else {
		p.ProposedFile = ts.ReadFile(args[3])
		if p.Tool == payload.Pipelock {
			p.ProposedFile = strings.TrimSpace(p.ProposedFile)
		}
	}
	if len(args) == 5 {
		p.Justification = unquote(args[4])
	}
	box, err := queue.OpenDir(context.Background(), ts.MkAbs(filepath.Join("root", args[0])), queue.Options{Slug: args[0]})
	ts.Check(err)
	ts.Check(box.Put(context.Background(), p))
	// Ages tell the order of proposals, and the clock of files is coarse.
	at := time.Now().Add(time.Duration(slices.Index(ids(), args[1])-30) * time.Second)
	ts.Check(os.Chtimes(ts.MkAbs(filepath.Join("root", args[0], args[1]+".proposal.json")), at, at))
	if !waits {
		ts.Check(box.Close())
		// As a running sidecar would have it soon: nobody waits, and the hint is newer than the proposal.
		ts.Check(os.WriteFile(ts.MkAbs(filepath.Join("root", args[0], "presence.json")), []byte(`{"waiting": {}}`), 0o640))
		return
	}
	var waiter sync.WaitGroup
	waiter.Go(func() { _, _ = box.Wait(context.Background(), p.ID) })
	ts.Defer(func() {
		_ = box.Close() // its directory may be gone by now
		waiter.Wait()
	})
	awaitText(ts, filepath.Join("root", args[0], "presence.json"), args[1])
}

var gutters = regexp.MustCompile(`^(  [-+ ↳]| {2,10}\| | {8}↳ |[a-z][a-z ]{9}|  (DANGER|note  )  )`)

// gutter FILE COLS WORD wants every line of what a terminal showed to fit COLS cells, so that it is nowhere broken but by us, and
// those that hold WORD, which an agent wrote, to begin with a gutter of ours. Commands to copy are whole.
func gutter(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: gutter FILE COLS WORD")
	}
	cols, err := strconv.Atoi(args[1])
	ts.Check(err)
	found := 0
	for text := range strings.Lines(ts.ReadFile(args[0])) {
		text = strings.TrimSuffix(regexp.MustCompile(`\x1b\[[0-9;]*m`).ReplaceAllString(text, ""), "\n")
		if n := displaywidth.String(text); n > cols && !strings.HasPrefix(text, "  supervise ") || strings.Contains(text, "\t") {
			ts.Fatalf("a line of %d cells, over %d: %.300q", n, cols, text)
		}
		if !strings.Contains(text, args[2]) {
			continue
		}
		if found++; !gutters.MatchString(text) {
			ts.Fatalf("a line of the agent's without a gutter: %q", text)
		}
	}
	if found == 0 {
		ts.Fatalf("no line holds %q", args[2])
	}
}

// crash STEP ID approves as a process that dies right before STEP.
func crash(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: crash STEP ID")
	}
	root := ts.MkAbs("root")
	host, err := config.LoadHost(ts.MkAbs("supervise.yaml"), func(string) string { return "" })
	ts.Check(err)
	hand, err := apply.New(apply.Options{Targets: host.For, LockDir: filepath.Join(root, ".desk", "locks")})
	ts.Check(err)
	inbox, err := queue.OpenRoot(root, queue.RootOptions{})
	ts.Check(err)
	defer inbox.Close()
	died := errors.New("died")
	d, err := operator.New(operator.Options{Root: root, Inbox: inbox, Hand: hand, Via: "cli", Step: func(step string) error {
		if step == args[0] {
			return died
		}
		return nil
	}})
	ts.Check(err)
	ref, err := d.Find(context.Background(), args[1])
	ts.Check(err)
	p, err := d.Show(context.Background(), ref, nil)
	ts.Check(err)
	if _, err := d.Approve(context.Background(), ref, operator.Decision{Digest: p.Digest}); !errors.Is(err, died) {
		ts.Fatalf("approving ended with %v, not at %q", err, args[0])
	}
}

var addrRE = regexp.MustCompile(`127\.0\.0\.1:\d+`)

// address FILE NAME sets NAME to the first address in a log.
func address(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: address FILE NAME")
	}
	ts.Setenv(args[1], addrRE.FindString(ts.ReadFile(args[0])))
}

// port ADDR NAME sets NAME to the port of an address.
func port(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: port ADDR NAME")
	}
	_, p, err := net.SplitHostPort(args[0])
	ts.Check(err)
	ts.Setenv(args[1], p)
}

// ask ADDR TOOL ARGUMENTS FILE calls a tool as an agent does, in the background, and writes the answer's text to FILE.
func ask(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 4 {
		ts.Fatalf("usage: ask ADDR TOOL ARGUMENTS FILE")
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	client := mcp.NewClient(&mcp.Implementation{Name: "script", Version: "1"}, nil)
	session, err := client.Connect(ctx, &mcp.StreamableClientTransport{Endpoint: "http://" + args[0] + "/"}, nil)
	ts.Check(err)
	file := ts.MkAbs(args[3])
	var call sync.WaitGroup
	call.Go(func() {
		res, err := session.CallTool(ctx, &mcp.CallToolParams{Name: args[1], Arguments: json.RawMessage(args[2])})
		text := fmt.Sprint(err)
		if err == nil {
			text = res.Content[0].(*mcp.TextContent).Text
		}
		_ = os.WriteFile(file, []byte(text), 0o600) // the script waits for it, and says so when it does not come
	})
	ts.Defer(func() {
		cancel()
		call.Wait()
		_ = session.Close() // its server may have gone
	})
}

// getUntil URL TEXT gets until the body holds TEXT, and prints as get does.
func getUntil(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: getuntil URL TEXT")
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 20 * time.Second}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) { // between two looks
		resp, err := client.Get(args[0])
		ts.Check(err)
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		ts.Check(err)
		if strings.Contains(string(b), args[1]) {
			_, err := fmt.Fprintf(ts.Stdout(), "%d\n%s", resp.StatusCode, b)
			ts.Check(err)
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%s does not come to hold %q:\n%s", args[0], args[1], b)
		}
	}
}

// get URL [PROXY] prints the status and the body.
func get(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 || len(args) > 2 {
		ts.Fatalf("usage: get URL [PROXY]")
	}
	tr := &http.Transport{DisableKeepAlives: true}
	if len(args) == 2 {
		tr.Proxy = http.ProxyURL(&url.URL{Scheme: "http", Host: args[1]})
	}
	resp, err := (&http.Client{Transport: tr, Timeout: 20 * time.Second}).Get(args[0])
	ts.Check(err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	ts.Check(err)
	_, err = fmt.Fprintf(ts.Stdout(), "%d\n%s", resp.StatusCode, b)
	ts.Check(err)
}

// response BOTTLE ID FILE is what another operator program writes.
func response(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: response BOTTLE ID FILE")
	}
	name := ts.MkAbs(filepath.Join("root", args[0], args[1]+".response.json"))
	ts.Check(os.WriteFile(name, []byte(ts.ReadFile(args[2])), 0o640))
}

// noControl NAME checks that nothing in an output can move a cursor, hide or reorder text.
func noControl(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: nocontrol stdout|stderr|FILE...")
	}
	for _, name := range args {
		text := ts.ReadFile(name)
		if !utf8.ValidString(text) {
			ts.Fatalf("%s is not UTF-8: %q", name, text)
		}
		for i, r := range text {
			if r != '\n' && r != '\t' && !unicode.IsPrint(r) {
				ts.Fatalf("%s holds %U at byte %d: %q", name, r, i, text[max(0, i-40):min(len(text), i+40)])
			}
		}
	}
}

// exitCode N ARGS... runs supervise and wants exit code N.
func exitCode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: code N ARGS...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec("supervise", args[1:]...)
	got := 0
	if e, ok := err.(interface{ ExitCode() int }); ok {
		got = e.ExitCode()
	} else if err != nil {
		ts.Fatalf("running supervise: %v", err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// jq FILE PATH [WANT] follows a path such as items.0.id in JSON and compares, or with one argument less saves the value as $JQ.
func jq(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 || len(args) > 3 {
		ts.Fatalf("usage: [!] jq stdout|FILE PATH [WANT]")
	}
	dec := json.NewDecoder(bytes.NewReader([]byte(ts.ReadFile(args[0]))))
	dec.UseNumber()
	var v any
	ts.Check(dec.Decode(&v))
	if dec.More() {
		ts.Fatalf("more than one document: %s", ts.ReadFile(args[0]))
	}
	for key := range strings.SplitSeq(args[1], ".") {
		switch at := v.(type) {
		case map[string]any:
			v = at[key]
		case []any:
			if key == "length" {
				v = len(at)
				continue
			}
			i, err := strconv.Atoi(key)
			ts.Check(err)
			if i >= len(at) {
				ts.Fatalf("%s: only %d elements", args[1], len(at))
			}
			v = at[i]
		default:
			v = nil
		}
	}
	got := fmt.Sprint(v)
	if len(args) == 2 {
		ts.Setenv("JQ", got)
		return
	}
	if (got == args[2]) == neg {
		ts.Fatalf("%s = %q, want (unless negated) %q", args[1], got, args[2])
	}
}

// await FILE TEXT waits until a file holds a text.
func await(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: await FILE TEXT")
	}
	awaitText(ts, args[0], args[1])
}

func awaitText(ts *testscript.TestScript, file, text string) {
	deadline := time.Now().Add(20 * time.Second)
	for {
		b, err := os.ReadFile(ts.MkAbs(file))
		if err == nil && strings.Contains(string(b), text) {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%s never held %q: %s (%v)", file, text, b, err)
		}
		time.Sleep(5 * time.Millisecond) // between two looks
	}
}
