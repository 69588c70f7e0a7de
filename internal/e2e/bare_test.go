package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// bareAsk is a client of the first kind: one POST of tools/call, with no initialize, no session and no version.
func (w *world) bareAsk(host string) <-chan answer {
	ch := make(chan answer, 1)
	body := fmt.Sprintf(`{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"egress-block","arguments":{"host":%q,"justification":"tests"}}}`, host)
	req, err := http.NewRequestWithContext(w.t.Context(), http.MethodPost, w.sideURL+"any/path", strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json, text/event-stream")
	go func() { ch <- bareAnswer(http.DefaultClient.Do(req)) }()
	return ch
}

// bareAnswer reads the one message of a response that is JSON or an event stream.
func bareAnswer(resp *http.Response, err error) answer {
	if err != nil {
		return answer{err: err}
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(resp.Body)
		return answer{err: fmt.Errorf("%s: %s", resp.Status, b)}
	}
	sc := bufio.NewScanner(resp.Body)
	sc.Buffer(nil, 4<<20)
	for sc.Scan() {
		data, ok := strings.CutPrefix(sc.Text(), "data: ")
		if !ok {
			continue
		}
		var m struct {
			ID     any
			Result struct {
				Meta    map[string]any `json:"_meta"`
				IsError bool           `json:"isError"`
				Content []struct{ Text string }
			}
			Error *struct{ Message string }
		}
		if err := json.Unmarshal([]byte(data), &m); err != nil {
			return answer{err: err}
		}
		if m.ID == nil {
			continue // a notification
		}
		if m.Error != nil {
			return answer{err: fmt.Errorf("JSON-RPC error: %s", m.Error.Message)}
		}
		a := answer{isError: m.Result.IsError, meta: m.Result.Meta}
		for _, c := range m.Result.Content {
			a.text += c.Text
		}
		return a
	}
	return answer{err: fmt.Errorf("the stream ended without an answer: %v", sc.Err())}
}
