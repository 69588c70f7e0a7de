package tools

import (
	"bytes"
	"encoding/json"
	"flag"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/modelcontextprotocol/go-sdk/mcp"
)

var update = flag.Bool("update", false, "write the golden files of testdata")

// TestGolden keeps what clients are told of the tools: a diff of these files is the review.
func TestGolden(t *testing.T) {
	r := newRig(t, newBox(), Options{})
	defer r.close()
	const most = 2 << 10 // Claude Code cuts descriptions and instructions there
	if n := len(r.session.InitializeResult().Instructions); n > most {
		t.Errorf("instructions have %d bytes, want at most %d", n, most)
	}
	golden(t, "instructions.txt", []byte(r.session.InitializeResult().Instructions+"\n"))
	res, err := r.session.ListTools(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, tool := range res.Tools {
		names = append(names, tool.Name)
		var b bytes.Buffer
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "  ")
		if err := enc.Encode(tool); err != nil {
			t.Fatal(err)
		}
		golden(t, tool.Name+".json", b.Bytes())
		if n := len(tool.Description); n > most {
			t.Errorf("the description of %s has %d bytes, want at most %d", tool.Name, n, most)
		}
		if tool.OutputSchema != nil {
			t.Errorf("%s has an output schema", tool.Name)
		}
		if tool.Meta["anthropic/alwaysLoad"] != true {
			t.Errorf("%s: _meta = %v, want anthropic/alwaysLoad", tool.Name, tool.Meta)
		}
		if got, want := tool.Annotations.ReadOnlyHint, tool.Name == ListRoutes || tool.Name == Await; got != want {
			t.Errorf("%s: readOnlyHint = %v, want %v", tool.Name, got, want)
		}
	}
	want := []string{Await, "capability-block", "egress-block", ListRoutes, "pipelock-block"}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("tools mismatch (-want +got):\n%s", diff)
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (run with -update to write it)", err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s mismatch (-want +got):\n%s", path, diff)
	}
}

func TestDockerfilePathIsNamed(t *testing.T) {
	r := newRig(t, newBox(), Options{Dockerfile: "/etc/other/Dockerfile"})
	defer r.close()
	if got := r.session.InitializeResult().Instructions; !strings.Contains(got, "/etc/other/Dockerfile") {
		t.Errorf("instructions do not name the Dockerfile: %s", got)
	}
	for tool, err := range r.session.Tools(t.Context(), nil) {
		if err != nil {
			t.Fatal(err)
		}
		if tool.Name == "capability-block" && !strings.Contains(tool.Description, "/etc/other/Dockerfile") {
			t.Errorf("its description does not name the Dockerfile: %s", tool.Description)
		}
	}
}

func TestBadArguments(t *testing.T) {
	const why = "because"
	tests := []struct {
		tool string
		args any
		want string
	}{
		{"egress-block", nil, "egress-block: host is required: the bare host name that was refused, such as api.github.com"},
		{"egress-block", args{"justification": why}, "egress-block: host is required: the bare host name that was refused, such as api.github.com"},
		{"egress-block", args{"host": nil, "justification": why}, "egress-block: host is required: the bare host name that was refused, such as api.github.com"},
		{"egress-block", args{"host": " ", "justification": why}, "egress-block: host is required: the bare host name that was refused, such as api.github.com"},
		{"egress-block", args{"host": 5, "justification": why}, `egress-block: host 5 must be a string, such as "api.github.com"`},
		{"egress-block", args{"host": args{"a\x1b\u202e": 1}, "justification": why}, `egress-block: host {"a\\u001b\u202e":1} must be a string, such as "api.github.com"`},
		{"egress-block", args{"host": "a.example"}, "egress-block: justification is required: say what you were doing, what was refused, and why this is the smallest change that helps"},
		{"egress-block", args{"host": "a.example", "justification": " \n"}, "egress-block: justification is required: say what you were doing, what was refused, and why this is the smallest change that helps"},
		{"egress-block", args{"host": "a.example", "justification": 3}, `egress-block: justification 3 must be a string, such as "npm install was refused for packages.acme.test"`},
		{"egress-block", args{"host": "a.example", "path_allowlist": "/v1", "justification": why}, `egress-block: path_allowlist "/v1" must be a list of strings, such as ["/repos/"]`},
		{"egress-block", args{"host": "a.example", "path_allowlist": []any{"/", 1}, "justification": why}, `egress-block: path_allowlist[1] 1 must be a string, such as "/repos/"`},
		{"egress-block", args{"host": "a.example", "path_allowlist": []any{nil}, "justification": why}, `egress-block: path_allowlist[0] null must be a string, such as "/repos/"`},
		{"egress-block", args{"host": "a.example", "path_allowlist": []string{"/", "v1"}, "justification": why}, `egress-block: path_allowlist[1] "v1" must start with '/'`},
		{"egress-block", args{"host": "a.example", "auth": "Bearer", "justification": why}, `egress-block: auth "Bearer" must be an object, such as {"scheme": "Bearer", "token_ref": "GH_TOKEN"}`},
		{"egress-block", args{"host": "a.example", "auth": args{}, "justification": why}, `egress-block: auth.scheme must be "Bearer" or "token"`},
		{"egress-block", args{"host": "a.example", "auth": args{"scheme": "Basic", "token_ref": "T"}, "justification": why}, `egress-block: auth.scheme "Basic" must be "Bearer" or "token"`},
		{"egress-block", args{"host": "a.example", "auth": args{"scheme": "Bearer", "token_ref": 1}, "justification": why}, `egress-block: auth.token_ref 1 must be a string, such as "GH_TOKEN"`},
		{"egress-block", args{"host": "a.example", "auth": args{"scheme": "Bearer", "token_ref": "T", "token": "s"}, "justification": why}, "egress-block: auth.token is not known: auth takes scheme and token_ref"},
		{"egress-block", args{"host": "https://a.example/", "justification": why}, `egress-block: host "https://a.example/" must be a bare host name, such as api.github.com, not a URL`},
		{"egress-block", []string{"a"}, `egress-block: arguments ["a"] must be a JSON object`},
		{"pipelock-block", args{"justification": why}, "pipelock-block: failed_url is required: the URL that was refused, such as https://api.example.com/v1/items"},
		{"pipelock-block", args{"failed_url": []int{1}, "justification": why}, `pipelock-block: failed_url [1] must be a string, such as "https://api.example.com/v1/items"`},
		{"pipelock-block", args{"failed_url": "https://u:p@a.example", "justification": why}, "pipelock-block: failed_url must not contain credentials: leave out what stands before the '@'"},
		{"capability-block", args{"justification": why}, "capability-block: dockerfile is required: the whole new Dockerfile, not only the changed lines"},
		{"capability-block", args{"dockerfile": "FROM a"}, "capability-block: justification is required: say what you were doing, what was refused, and why this is the smallest change that helps"},
		{ListRoutes, args{"host": "a"}, "list-egress-routes: host is not known: it takes no arguments"},
		{Await, args{}, "await-decision: proposal_id is required: the id that a pending answer gave you, such as 0197f3b2-6d1e-7c3a-9b58-3f6f0a2c4d1e"},
		{Await, args{"proposal_id": "../x"}, `await-decision: proposal_id "../x" must be the id that a pending answer gave you, such as 0197f3b2-6d1e-7c3a-9b58-3f6f0a2c4d1e`},
		{Await, args{"proposal_id": "x", "wait": true}, "await-decision: wait is not known: it takes proposal_id"},
		{Await, args{"proposal_id": "0197f3b2-6d1e-7c3a-9b58-3f6f0a2c4d1e"}, `await-decision: proposal_id "0197f3b2-6d1e-7c3a-9b58-3f6f0a2c4d1e" is not known here, or its answer is so old that it was removed: ask again with the tool you proposed with`},
	}
	b := newBox()
	r := newRig(t, b, Options{})
	defer r.close()
	for _, tt := range tests {
		got := r.do(tt.tool, tt.args)
		if got.err != nil {
			t.Errorf("%s(%v): protocol error %v, want a tool error", tt.tool, tt.args, got.err)
			continue
		}
		if !got.isError || got.text != tt.want {
			t.Errorf("%s(%v): isError %v, text\n got %s\nwant %s", tt.tool, tt.args, got.isError, got.text, tt.want)
		}
	}
	if b.puts() != 0 {
		t.Errorf("%d proposals were stored, want none", b.puts())
	}
}

func TestUnknownTool(t *testing.T) {
	r := newRig(t, newBox(), Options{})
	defer r.close()
	got := r.do("egress_block\x1b", args{})
	want := `calling "tools/call": unknown tool "egress_block\x1b": the tools are await-decision, capability-block, egress-block, list-egress-routes, pipelock-block`
	if got.err == nil || got.err.Error() != want {
		t.Errorf("error\n got %v\nwant %s", got.err, want)
	}
}

// FuzzArguments checks that whatever a model sends as arguments gives a readable tool error or a proposal, and that our
// check refuses whatever the schema does.
func FuzzArguments(f *testing.F) {
	f.Add(uint8(0), `{"host":"a.example","justification":"x","path_allowlist":null,"auth":null,"more":[1]}`)
	f.Add(uint8(0), `{"host":"a.example","auth":{"scheme":"Bearer","token_ref":null}}`)
	f.Add(uint8(1), `{"failed_url":"https://a.example"}`)
	f.Add(uint8(2), `{"dockerfile":"FROM a","justification":1e999}`)
	f.Add(uint8(3), `{"x":{}}`)
	f.Add(uint8(4), `{"proposal_id":"x"}`)
	f.Add(uint8(4), `[]`)
	names := []string{"egress-block", "pipelock-block", "capability-block", ListRoutes, Await}
	at := func(string) (time.Duration, bool) { return time.Nanosecond, true } // nobody answers
	r := newRig(f, newBox(), Options{Hold: at, MaxPending: 1 << 30, Logger: slog.New(slog.DiscardHandler)})
	f.Cleanup(r.close)
	f.Fuzz(func(t *testing.T, n uint8, raw string) {
		if !json.Valid([]byte(raw)) {
			return
		}
		name := names[int(n)%len(names)]
		err := shapes[name].check(name, json.RawMessage(raw))
		if err != nil {
			if !strings.HasPrefix(err.Error(), name+": ") || strings.ContainsFunc(err.Error(), func(r rune) bool { return r < ' ' || r == 0x7f }) {
				t.Errorf("check(%q) = %q", raw, err)
			}
			return
		}
		if name == ListRoutes {
			return
		}
		res, err := r.session.CallTool(t.Context(), &mcp.CallToolParams{Name: name, Arguments: json.RawMessage(raw)})
		if err != nil {
			t.Fatalf("%s(%s): %v", name, raw, err)
		}
		text := res.Content[0].(*mcp.TextContent).Text
		if strings.Contains(text, "do not fit the tool's schema") || !strings.HasPrefix(text, name+": ") && !strings.HasPrefix(text, "status: ") {
			t.Errorf("%s(%s) = %s", name, raw, text)
		}
	})
}
