// Package yamlerr reads the errors of gopkg.in/yaml.v3.
package yamlerr

import (
	"strconv"
	"strings"

	"github.com/bot-bottle/supervise/internal/lazy"
)

var (
	lineRE   = lazy.Regexp(`^(?:yaml: )?(?:line (\d+): )?`)
	parserRE = lazy.Regexp(`^did not find expected (<|key|node content|'-' indicator|',' or)`)
)

// Split splits a syntax error into its line, counted from 1, and what is wrong there. The library counts the lines of its parser's
// errors from 0, those of its scanner's from 1, and does not say 0.
func Split(err error) (line int, text string) {
	m := lineRE().FindStringSubmatch(err.Error())
	line, _ = strconv.Atoi(m[1]) // 0 when it does not say
	text = strings.TrimPrefix(err.Error(), m[0])
	if parserRE().MatchString(text) {
		line++
	}
	return max(line, 1), text
}
