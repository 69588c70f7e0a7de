// Package lazy has what most processes never need, and whose start somebody may wait for.
package lazy

import (
	"regexp"
	"sync"
)

// Regexp compiles an expression when it is first used.
func Regexp(expr string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expr) })
}
