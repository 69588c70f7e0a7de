package tools

import (
	"encoding/json"

	"github.com/google/jsonschema-go/jsonschema"
)

// schemaOf is the input schema that the tags of In make, as change leaves it. It is encoded here, once: the SDK encodes a
// tool's schema for each call, to look for parameters that are headers too, and JSON is the cheapest thing to encode.
func schemaOf[In any](change func(*jsonschema.Schema)) json.RawMessage {
	s, err := jsonschema.For[In](nil)
	if err != nil {
		panic(err) // a mistake in a struct of ours; every test would meet it
	}
	if change != nil {
		change(s)
	}
	data, err := json.Marshal(s)
	if err != nil {
		panic(err) // the same
	}
	return data
}

// open makes it the schema of a proposing tool: unknown arguments are ignored, as models add them.
func open(s *jsonschema.Schema) { s.AdditionalProperties = nil }
