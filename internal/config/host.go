// Package config reads what people configure: supervise.yaml on the operator's host, the
// environment and flags of the sidecar. Both are strict: a wrong value or unknown key is an error that
// names it and the mend.
package config

// Host is supervise.yaml.
type Host struct {
	Root     string            // the mailboxes; made absolute
	Defaults Bottle            // with {slug} still in it
	Bottles  map[string]Bottle // a bottle's own keys win, key by key
}

// Bottle is where a bottle's targets are. A nil target is not managed.
type Bottle struct {
	Egress     *Egress
	Pipelock   *Pipelock
	Capability *Capability
}

// Egress is the route table and the proxy that reads it.
type Egress struct {
	File         string
	Reload       Reload
	AllowlistURL string // "": the outcome is unverified
	Proxy        string // HTTP proxy through which AllowlistURL is asked; "": directly
}

// Pipelock is the second gate's configuration file.
type Pipelock struct {
	File   string
	Reload Reload
	Check  []string // argv that validates a candidate; {file} is replaced
}

// Capability is the bottle's Dockerfile.
type Capability struct {
	File    string
	Build   []string // argv; empty: not built
	Replace []string // argv; run after the answer is archived, since it ends the waiting agent
}

// Reload says how a proxy is told to read its file again. At most one is set; the zero value is none.
type Reload struct {
	PID     int      // signal: SIGHUP to this process
	PIDFile string   // signal: read each time
	Engine  string   // "docker" or "podman": ENGINE kill -s HUP Name
	Name    string   // the container's name
	Exec    []string // argv, no shell, 10 s
}

// API (implemented in this package):
//
//	func LoadHost(path string, env func(string) string) (Host, error) // path "": ./supervise.yaml, $XDG_CONFIG_HOME/supervise/supervise.yaml, or none; errors carry file:line
//	func (h Host) For(slug string) Bottle                             // defaults merged with the bottle's own keys; {slug} and a leading ~ replaced
