package main

import (
	"cmp"
	"fmt"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version may be set by the linker; else it is what the toolchain stamped.
var version string

// versionJSON is what version --json prints.
type versionJSON struct {
	Version  string `json:"version"`
	Revision string `json:"revision"` // of the source; "" if it was not built from a checkout
	Go       string `json:"go"`
}

func built() versionJSON {
	v := versionJSON{Version: version}
	if b, ok := debug.ReadBuildInfo(); ok {
		v.Version = cmp.Or(v.Version, b.Main.Version)
		v.Go = b.GoVersion
		for _, s := range b.Settings {
			if s.Key == "vcs.revision" {
				v.Revision = s.Value
			}
		}
	}
	v.Version = cmp.Or(v.Version, "(devel)")
	return v
}

func (v versionJSON) String() string {
	if v.Revision != "" {
		return fmt.Sprintf("supervise %s, revision %s, %s", v.Version, v.Revision, v.Go)
	}
	return fmt.Sprintf("supervise %s, %s", v.Version, v.Go)
}

func newVersion(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Which build this is",
		Example: `  supervise version --json`,
		Args:    args(0, 0),
		RunE: func(*cobra.Command, []string) error {
			v := built()
			if a.json {
				return a.printJSON(v)
			}
			return a.printf("%s\n", v)
		},
	}
	a.jsonFlag(cmd)
	return cmd
}
