// Package payload knows the three things an agent can propose: an egress route, a URL to let
// through pipelock, a Dockerfile. It checks what an agent sent, encodes it for the queue, parses
// it again on the operator's side, and says when two proposals are the same question.
//
// New* check and trim; the only way to a Payload is through them, so a Payload is always
// one that could have been proposed. Whatever is refused is refused with a [FieldError], which the agent can mend.
//
// Every string in a Payload is an agent's: show it only through package safetext.
package payload

import "fmt"

// The proposing tools, which are also the kinds of payload.
const (
	Egress     = "egress-block"
	Pipelock   = "pipelock-block"
	Capability = "capability-block"
)

// Limits, in bytes unless said otherwise.
const (
	MaxDockerfile    = 256 << 10
	MaxJustification = 4 << 10
	MaxURL           = 8 << 10
	MaxHost          = 253
	MaxPaths         = 64 // count
	MaxPath          = 1 << 10
	MaxTokenRef      = 128
)

// Route is the payload of egress-block. Field order is the order in the stored file.
type Route struct {
	Host          string   `json:"host"`
	PathAllowlist []string `json:"path_allowlist,omitempty"` // prefixes, each starts with "/"; empty: the whole host
	Auth          *Auth    `json:"auth,omitempty"`
}

// Auth names a credential the proxy adds to requests for a host.
type Auth struct {
	Scheme   string `json:"scheme"`    // "Bearer" or "token"
	TokenRef string `json:"token_ref"` // an environment variable's name
}

// Payload is one checked proposal. Exactly the fields of its Tool are set.
type Payload struct {
	Tool       string
	Route      *Route // Egress; Host as written, trimmed
	URL        string // Pipelock; as written, trimmed
	Host       string // Egress, Pipelock: ASCII (IDNA), lower-case, no trailing dot: what is compared
	Dockerfile string // Capability
}

// FieldError is bad input that its writer can mend. Error() reads `TOOL: FIELD VALUE must …`.
type FieldError struct {
	Tool  string
	Field string // "host", "path_allowlist[1]", …
	Value string // as sent, cut; "" for no value
	Mend  string // what it must be: "must start with '/'"
}

func (e *FieldError) Error() string {
	if e.Value == "" {
		return fmt.Sprintf("%s: %s %s", e.Tool, e.Field, e.Mend)
	}
	return fmt.Sprintf("%s: %s %.200q %s", e.Tool, e.Field, e.Value, e.Mend)
}
