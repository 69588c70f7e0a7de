package yamlerr

import (
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

// The line is the one where a person finds the mistake, by the parser's count and by the scanner's.
func TestSplit(t *testing.T) {
	for in, want := range map[string]struct {
		line int
		text string
	}{
		"a: 1\nb: [1, 2\n":    {2, "did not find expected ',' or ']'"},
		"a: 1\n\tb: 2":        {2, "found a tab character that violates indentation"},
		"a: 1\nb: 'x":         {2, "found unexpected end of stream"},
		"a: b: c":             {1, "mapping values are not allowed in this context"},
		"x: 1\na: b: c":       {2, "mapping values are not allowed in this context"},
		"a:\n  - 1\n  b: 2\n": {2, "did not find expected '-' indicator"}, // where the list begins
	} {
		var n yaml.Node
		err := yaml.Unmarshal([]byte(in), &n)
		if err == nil {
			t.Errorf("%q parses", in)
			continue
		}
		if line, text := Split(err); line != want.line || !strings.HasPrefix(text, want.text) {
			t.Errorf("%q: %v is line %d, %q; want %d, %q", in, err, line, text, want.line, want.text)
		}
	}
}
