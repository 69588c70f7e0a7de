// Package routes is the egress route table: the file the proxy reads and the operator keeps by hand.
//
//	routes:
//	  - host: api.github.com
//	    path_allowlist: ["/repos/"]     # prefixes; absent or empty: the whole host
//	    auth: {scheme: Bearer, token_ref: GH_TOKEN}
//
// Merging is done on plain structs; writing is a textual edit that keeps every other byte of the
// operator's file, checked by parsing again and comparing with the merge.
package routes

// Route is one entry. Host is as written in the file.
type Route struct {
	Host          string   `yaml:"host" json:"host"`
	PathAllowlist []string `yaml:"path_allowlist,omitempty" json:"path_allowlist,omitempty"`
	Auth          *Auth    `yaml:"auth,omitempty" json:"auth,omitempty"`
}

// Auth is the credential the proxy adds for a host.
type Auth struct {
	Scheme   string `yaml:"scheme" json:"scheme"`
	TokenRef string `yaml:"token_ref" json:"token_ref"`
}

// Table is a parsed file, in its order.
type Table struct {
	Routes []Route `yaml:"routes" json:"routes"`
}

// Change is what merging one route did.
type Change struct {
	Before      *Route // nil: the host was not there
	After       *Route // never nil after Merge; nil in an undo that removes the entry
	Widened     bool   // a host limited to paths became the whole host
	AuthIgnored bool   // auth was proposed for a host that has an entry already
	Covered     bool   // nothing to change
}

// MaxFile is the largest file that is parsed or edited.
const MaxFile = 256 << 10

// API (implemented in this package):
//
//	func Parse(data []byte) (Table, error)                        // strict; errors name the line. Refuses: several documents, duplicate keys or hosts,
//	                                                              // anchors/aliases/merge keys, not UTF-8, unknown keys, over MaxFile, bad host, bad path
//	func Key(host string) string                                  // comparison form: lower-case ASCII (IDNA), no trailing dot
//	func (t Table) Lookup(host string) *Route
//	func (r Route) Allows(path string) bool                       // path already normalised
//	func Merge(t Table, r Route) (Table, Change)                  // the rules of the design
//	func Set(data []byte, host string, want *Route) ([]byte, error) // textual edit making host's entry equal to want (nil: remove), *EditError when it cannot be done safely
//	type EditError struct { Reason string; ByHand string }         // ByHand: the lines a person would add
//	func Canonical(r *Route) string                               // stable text of one entry, for digests and diffs; "" for nil
//	func PipelockParse(data []byte) ([]string, error)             // entries of api_allowlist
//	func PipelockCovers(entries []string, host string) bool       // exact, or "*.x" which matches x too
//	func PipelockSet(data []byte, host string, present bool) ([]byte, error)
