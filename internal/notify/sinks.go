package notify

import (
	"bytes"
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/bot-bottle/supervise/internal/safetext"
)

// Exec runs a program in dir for every message, without a shell: the message's JSON is its input, and {title}, {text} and
// {url} in its arguments are replaced. It has ten seconds. Title and text begin with a bottle's slug or a number, so
// neither is ever taken for an option or a file.
func Exec(dir string, argv []string) Sink { return execSink{dir, argv, 10 * time.Second} }

type execSink struct {
	dir  string
	argv []string
	most time.Duration
}

func (e execSink) Name() string { return "exec " + filepath.Base(e.argv[0]) }

func (e execSink) Deliver(ctx context.Context, m Message) error {
	body, err := safetext.JSON(m)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, e.most)
	defer cancel()
	text := m.Text
	if filepath.Base(e.argv[0]) == "notify-send" {
		text = notifySend.Replace(text)
	}
	r := strings.NewReplacer("{title}", m.Title, "{text}", text, "{url}", m.URL)
	var args []string
	for _, a := range e.argv[1:] {
		args = append(args, r.Replace(a))
	}
	cmd := exec.CommandContext(ctx, e.argv[0], args...)
	cmd.Dir = e.dir
	cmd.Stdin = bytes.NewReader(append(body, '\n'))
	var stderr head
	cmd.Stderr = &stderr
	cmd.WaitDelay = time.Second // for what it has started and left behind
	err = cmd.Run()
	if ctx.Err() == context.DeadlineExceeded {
		return fmt.Errorf("it took longer than %v", e.most)
	}
	if errors.Is(err, exec.ErrWaitDelay) {
		return nil // it exited 0
	}
	if err != nil && len(stderr.b) > 0 {
		return fmt.Errorf("%w: %s", err, safetext.Line(strings.TrimSpace(string(stderr.b)), 300))
	}
	return err
}

// notifySend keeps text as it is where it is read as notify-send's body: with C's escapes, also octal ones, and then as markup.
var notifySend = strings.NewReplacer(`\`, `\\`, "&", "&amp;", "<", "&lt;", ">", "&gt;")

// head keeps the beginning of what is written to it.
type head struct{ b []byte }

func (h *head) Write(p []byte) (int, error) {
	h.b = append(h.b, p[:min(len(p), max(0, 1024-len(h.b)))]...)
	return len(p), nil
}

// Terminal rings the bell and, where the terminal knows OSC 9, shows the title.
func Terminal(w io.Writer) Sink { return terminal{w} }

type terminal struct{ w io.Writer }

func (t terminal) Name() string { return "terminal" }

func (t terminal) Deliver(_ context.Context, m Message) error {
	line := m.Title
	if len(m.Proposals) == 1 {
		line = m.Text
	}
	_, err := fmt.Fprintf(t.w, "\x1b]9;supervise: %s\x07\x07", safetext.Line(line, 160))
	return err
}

// WebhookOptions configure a Webhook.
type WebhookOptions struct {
	URL    string
	Secret []byte // if empty, messages are not signed
	Client *http.Client
	// Pauses before each repeat; if nil, 1 s, 5 s, 30 s and 2 min.
	Pauses []time.Duration
}

// Webhook posts the message as JSON. What fails on the way, 408, 429 and 5xx are repeated; anything else is final,
// redirects too. Supervise-Delivery is the same on every repeat. With a secret, Supervise-Signature is
// "t=UNIX,v1=HEX": the HMAC-SHA256 of UNIX, a full stop and the body.
func Webhook(o WebhookOptions) Sink {
	if o.Client == nil {
		o.Client = &http.Client{Timeout: 10 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	}
	if o.Pauses == nil {
		o.Pauses = []time.Duration{time.Second, 5 * time.Second, 30 * time.Second, 2 * time.Minute}
	}
	return webhook{o}
}

type webhook struct{ WebhookOptions }

// Name has the host only: the rest of such a URL is often a secret.
func (w webhook) Name() string {
	u, err := url.Parse(w.URL)
	if err != nil {
		return "webhook"
	}
	return "webhook " + u.Host
}

func (w webhook) Deliver(ctx context.Context, m Message) error {
	body, err := safetext.JSON(m)
	if err != nil {
		return err
	}
	id := rand.Text()
	for i := 0; ; i++ {
		after, err := w.post(ctx, id, body)
		if err == nil {
			return nil
		}
		if _, final := errors.AsType[*finalError](err); final || i >= len(w.Pauses) {
			return fmt.Errorf("after %d attempts: %w", i+1, err)
		}
		if !pause(ctx, max(w.Pauses[i], min(after, 5*time.Minute))) {
			return context.Cause(ctx)
		}
	}
}

// finalError is an answer that a repeat will not change.
type finalError struct{ status string }

func (e *finalError) Error() string { return "it answers " + e.status }

func (w webhook) post(ctx context.Context, id string, body []byte) (after time.Duration, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.URL, bytes.NewReader(body))
	if err != nil {
		return 0, &finalError{"nothing: the URL is wrong"}
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "supervise")
	req.Header.Set("Supervise-Delivery", id)
	if len(w.Secret) > 0 {
		t := strconv.FormatInt(time.Now().Unix(), 10)
		req.Header.Set("Supervise-Signature", "t="+t+",v1="+Sign(w.Secret, t, body))
	}
	resp, err := w.Client.Do(req)
	if ue, ok := errors.AsType[*url.Error](err); ok {
		err = ue.Err // without the URL
	}
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10)) // so that the connection is kept
	status := safetext.Line(cmp.Or(resp.Status, strconv.Itoa(resp.StatusCode)), 60)
	switch c := resp.StatusCode; {
	case c >= 200 && c < 300:
		return 0, nil
	case c == http.StatusRequestTimeout || c == http.StatusTooManyRequests || c >= 500:
		if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s > 0 {
			after = time.Duration(min(s, 3600)) * time.Second
		}
		return after, fmt.Errorf("it answers %s", status)
	}
	return 0, &finalError{status}
}

// Sign is the v1 of Supervise-Signature.
func Sign(secret []byte, t string, body []byte) string {
	h := hmac.New(sha256.New, secret)
	h.Write([]byte(t + "."))
	h.Write(body)
	return hex.EncodeToString(h.Sum(nil))
}
