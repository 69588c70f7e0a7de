package config

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/bot-bottle/supervise/internal/lazy"
	"github.com/bot-bottle/supervise/queue"
)

// Sidecar is the configuration of `supervise serve`.
type Sidecar struct {
	BottleSlug   string
	QueueDir     string
	Port         int // 0: any free one
	Bind         string
	Debug        bool
	Hold         string // for tools.ParseHold; "": the built-in table
	Redeliver    time.Duration
	MaxPending   int
	MaxWaiting   int
	EgressProxy  string
	Dockerfile   string
	AllowedHosts []string
	Metrics      string // HOST:PORT of the Prometheus listener; "": none
	Token        Secret // "": none is asked for
}

// Secret is text that neither fmt nor slog prints.
type Secret string

func (Secret) String() string       { return "redacted" }
func (Secret) GoString() string     { return "redacted" }
func (Secret) LogValue() slog.Value { return slog.StringValue("redacted") }

// SidecarVar is one setting of the sidecar.
type SidecarVar struct {
	Env     string // the variable
	Flag    string // the flag of the same name; "" for a secret, which a process list would show
	Default string
	Usage   string
	set     func(s *Sidecar, value string) error // its error says what a value must be
}

// SidecarVars are all settings, in the order in which a person reads about them.
func SidecarVars() []SidecarVar {
	return []SidecarVar{
		{"SUPERVISE_BOTTLE_SLUG", "bottle-slug", "", "the bottle's name, which is its mailbox's (required)", func(s *Sidecar, v string) error {
			s.BottleSlug = v
			return queue.CheckSlug(v)
		}},
		{"SUPERVISE_QUEUE_DIR", "queue-dir", "/run/supervise/queue", "the bottle's mailbox directory", func(s *Sidecar, v string) error {
			s.QueueDir = v
			return nil
		}},
		{"SUPERVISE_PORT", "port", "9100", "TCP port to listen on; 0: any free one", func(s *Sidecar, v string) (err error) {
			s.Port, err = number(v, 0, 65535)
			return err
		}},
		{"SUPERVISE_BIND", "bind", "0.0.0.0", "address to listen on", func(s *Sidecar, v string) error {
			s.Bind = strings.TrimSuffix(strings.TrimPrefix(v, "["), "]")
			if _, err := netip.ParseAddr(s.Bind); err != nil && !isHost(s.Bind) {
				return errors.New("must be an IP address or a host name, without a port")
			}
			return nil
		}},
		{"SUPERVISE_DEBUG", "debug", "false", "log more", func(s *Sidecar, v string) (err error) {
			if s.Debug, err = strconv.ParseBool(v); err != nil {
				return errors.New("must be true or false")
			}
			return nil
		}},
		{"SUPERVISE_HOLD", "hold", "", "how long a call is held: 240s, or codex-mcp-client=240s,*=50s; 0: until decided; unset: by client", func(s *Sidecar, v string) error {
			s.Hold = v
			return nil
		}},
		{"SUPERVISE_REDELIVER", "redeliver", "10m", "how long the same question gets the recorded answer again", func(s *Sidecar, v string) (err error) {
			if s.Redeliver, err = time.ParseDuration(v); err != nil || s.Redeliver < 0 {
				return errors.New("must be a duration such as 10m")
			}
			return nil
		}},
		{"SUPERVISE_MAX_PENDING", "max-pending", "32", "open proposals of the bottle", func(s *Sidecar, v string) (err error) {
			s.MaxPending, err = number(v, 1, 4096)
			return err
		}},
		{"SUPERVISE_MAX_WAITING", "max-waiting", "2048", "calls held at once", func(s *Sidecar, v string) (err error) {
			s.MaxWaiting, err = number(v, 1, 1<<20)
			return err
		}},
		{"SUPERVISE_EGRESS_PROXY", "egress-proxy", "http://egress:9099", "the egress proxy that list-egress-routes asks", func(s *Sidecar, v string) error {
			s.EgressProxy = v
			u, err := url.Parse(v)
			if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
				return errors.New("must be a URL such as http://egress:9099")
			}
			return nil
		}},
		{"SUPERVISE_DOCKERFILE", "dockerfile", "/etc/claude-bottle/current-config/Dockerfile", "where the bottle has its current Dockerfile, for the agent to read", func(s *Sidecar, v string) error {
			s.Dockerfile = v
			return nil
		}},
		{"SUPERVISE_ALLOWED_HOSTS", "allowed-hosts", "", "more names that clients may use for the sidecar, parted by commas", func(s *Sidecar, v string) error {
			for name := range strings.SplitSeq(v, ",") {
				if name = strings.TrimSpace(name); name == "" {
					continue
				}
				if _, err := netip.ParseAddr(name); err != nil && !isHost(name) {
					return fmt.Errorf("must be host names without scheme or port, parted by commas; %q is none", name)
				}
				s.AllowedHosts = append(s.AllowedHosts, name)
			}
			return nil
		}},
		{"SUPERVISE_METRICS", "metrics", "", "address, HOST:PORT, of a listener of its own with Prometheus metrics at /metrics; unset: none", func(s *Sidecar, v string) error {
			s.Metrics = v
			return CheckMetrics(v)
		}},
		{"SUPERVISE_TOKEN", "", "", "bearer token that clients must send", func(s *Sidecar, v string) error {
			if s.Token != "" {
				return errors.New("must not be set together with SUPERVISE_TOKEN_FILE")
			}
			s.Token = Secret(v)
			return checkToken(v)
		}},
		{"SUPERVISE_TOKEN_FILE", "", "", "file that holds the token", func(s *Sidecar, v string) error {
			if s.Token != "" {
				return errors.New("must not be set together with SUPERVISE_TOKEN")
			}
			token, err := readToken(v)
			if err != nil {
				return err
			}
			s.Token = Secret(token)
			return checkToken(token)
		}},
	}
}

var hostRE = lazy.Regexp(`^[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?$`)

func isHost(s string) bool { return len(s) <= 253 && hostRE().MatchString(s) }

func number(v string, least, most int) (int, error) {
	n, err := strconv.Atoi(v)
	if err != nil || n < least || n > most {
		return 0, fmt.Errorf("must be a number from %d to %d", least, most)
	}
	return n, nil
}

const maxToken = 4096

func readToken(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("must name a file that can be read: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxToken+2))
	if err != nil {
		return "", fmt.Errorf("must name a file that can be read: %w", err)
	}
	return strings.TrimRight(string(data), "\r\n"), nil
}

// checkToken refuses what would not come through an Authorization header as it is. Its errors never show the token.
func checkToken(t string) error {
	switch {
	case t == "":
		return errors.New("must hold a token; it is empty")
	case len(t) > maxToken:
		return fmt.Errorf("must hold a token of at most %d bytes", maxToken)
	case strings.ContainsFunc(t, func(r rune) bool { return r <= ' ' || r > '~' }):
		return errors.New("must hold a token of printable ASCII without spaces")
	}
	return nil
}

// LoadSidecar reads the environment, and the flags that were given by name (SidecarVar.Flag), which win. Empty means the
// default. The error names every bad value with its variable and the mend.
func LoadSidecar(env func(string) string, flags map[string]string) (Sidecar, error) {
	var s Sidecar
	var errs []error
	for _, v := range SidecarVars() {
		name, value := v.Env, env(v.Env)
		if given, ok := flags[v.Flag]; ok && v.Flag != "" {
			name, value = "--"+v.Flag+" ("+v.Env+")", given
		}
		if value == "" {
			value = v.Default
		}
		if value == "" {
			if v.Flag == "bottle-slug" {
				errs = append(errs, fmt.Errorf("%s is not set: set it to the bottle's name, such as web", v.Env))
			}
			continue
		}
		if err := v.set(&s, value); err != nil {
			if v.Flag == "" && v.Env == "SUPERVISE_TOKEN" {
				errs = append(errs, fmt.Errorf("%s %w", name, err))
				continue
			}
			errs = append(errs, fmt.Errorf("%s %.100q: %w", name, value, err))
		}
	}
	return s, errors.Join(errs...)
}

// Addr is what the sidecar listens on.
func (s Sidecar) Addr() string { return net.JoinHostPort(s.Bind, strconv.Itoa(s.Port)) }

// CheckMetrics tells what is wrong with an address for metrics.
func CheckMetrics(addr string) error {
	host, port, err := net.SplitHostPort(addr)
	_, portErr := number(port, 0, 65535)
	if _, addrErr := netip.ParseAddr(host); err != nil || portErr != nil || addrErr != nil && !isHost(host) {
		return errors.New("must be HOST:PORT, such as 127.0.0.1:9102")
	}
	return nil
}
