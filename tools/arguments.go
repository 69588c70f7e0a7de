package tools

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/bot-bottle/supervise/internal/payload"
	"github.com/bot-bottle/supervise/internal/safetext"
	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// Middleware makes what the SDK says of bad calls readable: arguments of the wrong shape become a tool error in
// our form, before the SDK's own check names neither tool nor mend; an unknown tool stays a
// protocol error, and names the known ones.
func (t *Tools) Middleware() mcp.Middleware {
	return func(next mcp.MethodHandler) mcp.MethodHandler {
		return func(ctx context.Context, method string, req mcp.Request) (mcp.Result, error) {
			call, ok := req.(*mcp.CallToolRequest)
			if !ok || call.Params == nil {
				return next(ctx, method, req)
			}
			fields, known := shapes[call.Params.Name]
			if !known {
				return nil, &jsonrpc.Error{
					Code:    jsonrpc.CodeInvalidParams,
					Message: fmt.Sprintf("unknown tool %.80q: the tools are %s", call.Params.Name, strings.Join(slices.Sorted(maps.Keys(shapes)), ", ")),
				}
			}
			if err := fields.check(call.Params.Name, call.Params.Arguments); err != nil {
				t.observe(Event{Kind: Refused, Tool: call.Params.Name})
				return toolError(err.Error()), nil
			}
			res, err := next(ctx, method, req)
			// Not reached unless our check and the schema differ.
			if r, ok := res.(*mcp.CallToolResult); err == nil && ok && r.IsError && r.GetError() != nil {
				if text, ok := strings.CutPrefix(r.GetError().Error(), `validating "arguments": `); ok {
					return toolError(call.Params.Name + ": arguments do not fit the tool's schema: " + safetext.Line(text, 300)), nil
				}
			}
			return res, err
		}
	}
}

func toolError(text string) *mcp.CallToolResult {
	var r mcp.CallToolResult
	r.SetError(errors.New(text))
	return &r
}

// shape is what the arguments of a tool, or an object in them, look like.
type shape struct {
	fields []field
	closed string // what is said of an unknown argument; "" ignores it
}

type field struct {
	name     string
	required string // what is said when it is missing, or not one of oneOf; "" makes it optional, and null the same as absent
	kind     string // "a string", "a list of strings", "an object"
	example  string
	oneOf    []string // of kind "a string"; if empty, any
	object   *shape   // of kind "an object"
}

const (
	aString = "a string"
	aList   = "a list of strings"
	anObj   = "an object"
)

var justification = field{
	name: "justification", kind: aString, example: `"npm install was refused for packages.acme.test"`,
	required: "is required: say what you were doing, what was refused, and why this is the smallest change that helps",
}

var shapes = map[string]shape{
	payload.Egress: {fields: []field{
		{name: "host", kind: aString, example: `"api.github.com"`, required: "is required: the bare host name that was refused, such as api.github.com"},
		{name: "path_allowlist", kind: aList, example: `["/repos/"]`},
		{name: "auth", kind: anObj, example: `{"scheme": "Bearer", "token_ref": "GH_TOKEN"}`, object: &shape{
			fields: []field{
				{name: "scheme", kind: aString, example: `"Bearer"`, oneOf: []string{"Bearer", "token"}, required: `must be "Bearer" or "token"`},
				{name: "token_ref", kind: aString, example: `"GH_TOKEN"`, required: "must be the name of an environment variable of the proxy, such as GH_TOKEN, never the secret itself"},
			},
			closed: "is not known: auth takes scheme and token_ref",
		}},
		justification,
	}},
	payload.Pipelock: {fields: []field{
		{name: "failed_url", kind: aString, example: `"https://api.example.com/v1/items"`, required: "is required: the URL that was refused, such as https://api.example.com/v1/items"},
		justification,
	}},
	payload.Capability: {fields: []field{
		{name: "dockerfile", kind: aString, example: `"FROM …"`, required: "is required: the whole new Dockerfile, not only the changed lines"},
		justification,
	}},
	ListRoutes: {closed: "is not known: it takes no arguments"},
	Await: {
		fields: []field{{name: "proposal_id", kind: aString, example: `"0197f3b2-6d1e-7c3a-9b58-3f6f0a2c4d1e"`, required: "is required: the id that a pending answer gave you, such as 0197f3b2-6d1e-7c3a-9b58-3f6f0a2c4d1e"}},
		closed: "is not known: it takes proposal_id",
	},
}

// check returns the first thing that is wrong with raw arguments, or nil.
func (s shape) check(tool string, raw json.RawMessage) error {
	if len(bytes.TrimSpace(raw)) == 0 || isNull(raw) {
		raw = json.RawMessage("{}")
	}
	return s.object(tool, "", raw)
}

// object checks the members of the object at path, "" or "auth.".
func (s shape) object(tool, path string, raw json.RawMessage) error {
	var got map[string]json.RawMessage
	if json.Unmarshal(raw, &got) != nil || got == nil {
		return fmt.Errorf("%s: arguments %s must be a JSON object", tool, show(raw))
	}
	for _, f := range s.fields {
		name := path + f.name
		v, there := got[f.name]
		there = there && !isNull(v)
		switch {
		case !there && f.required != "":
			return fmt.Errorf("%s: %s %s", tool, name, f.required)
		case !there:
			continue
		}
		if err := f.value(tool, name, v); err != nil {
			return err
		}
	}
	if s.closed == "" {
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(got)) {
		if !slices.ContainsFunc(s.fields, func(f field) bool { return f.name == name }) {
			return fmt.Errorf("%s: %s %s", tool, path+safetext.Line(name, 80), s.closed)
		}
	}
	return nil
}

func (f field) value(tool, name string, v json.RawMessage) error {
	wrong := func() error {
		return fmt.Errorf("%s: %s %s must be %s, such as %s", tool, name, show(v), f.kind, f.example)
	}
	switch f.kind {
	case aString:
		var got string
		if json.Unmarshal(v, &got) != nil {
			return wrong()
		}
		if f.oneOf != nil && !slices.Contains(f.oneOf, got) {
			return fmt.Errorf("%s: %s %s %s", tool, name, show(v), f.required)
		}
	case aList:
		var items []json.RawMessage
		if json.Unmarshal(v, &items) != nil {
			return wrong()
		}
		for i, item := range items {
			if isNull(item) || json.Unmarshal(item, new(string)) != nil {
				return fmt.Errorf("%s: %s[%d] %s must be a string, such as %s", tool, name, i, show(item), strings.Trim(f.example, "[]"))
			}
		}
	case anObj:
		if v = bytes.TrimSpace(v); v[0] != '{' {
			return wrong()
		}
		return f.object.object(tool, name+".", v)
	}
	return nil
}

func isNull(v json.RawMessage) bool { return string(bytes.TrimSpace(v)) == "null" }

// show is a value as it was sent, on one line and cut.
func show(v json.RawMessage) string {
	var b bytes.Buffer
	if json.Compact(&b, v) != nil {
		b.Reset()
		b.Write(v)
	}
	return safetext.Line(b.String(), 200)
}
