package ts

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/bot-bottle/supervise/server"
)

// conformance runs the official suite's server scenarios of one revision against url. What is in the file of expected
// failures must fail, and nothing else may.
func conformance(t *testing.T, url, version, expected string) {
	t.Helper()
	file, err := filepath.Abs(expected)
	if err != nil {
		t.Fatal(err)
	}
	checkReasons(t, file)
	out, err := run(t.Context(), t, nil, "node_modules/@modelcontextprotocol/conformance/dist/index.js", "server",
		"--url", url, "--requirements", version, "--expected-failures", file, "--output-dir", t.TempDir())
	if _, summary, ok := strings.Cut(out, "=== SUMMARY ==="); ok {
		t.Log(summary)
	} else {
		t.Errorf("no summary: %s", out)
	}
	if err != nil {
		t.Errorf("conformance with %s: %v", version, err)
	}
}

// checkReasons wants a reason behind every expected failure.
func checkReasons(t *testing.T, file string) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "- ") {
			if _, reason, ok := strings.Cut(line, " # "); !ok || reason == "" {
				t.Errorf("%s: %q lacks a reason", file, line)
			}
		}
	}
}

// TestConformance runs the suite against the real binary.
func TestConformance(t *testing.T) {
	for _, version := range []string{"2025-11-25", "2026-07-28"} {
		t.Run(version, func(t *testing.T) {
			conformance(t, startSidecar(t).url, version, "expected-"+version+".yaml")
		})
	}
}

// TestTransportConformance runs it against package server with the tools that the suite asks for, which our own tools cannot
// stand in for: progress, a stream that is cut and resumed, errors, every kind of content.
func TestTransportConformance(t *testing.T) {
	for _, version := range []string{"2025-11-25", "2026-07-28"} {
		t.Run(version, func(t *testing.T) {
			srv, err := server.New(server.Options{Register: fixtures})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan error, 1)
			go func() { done <- srv.Run(ctx) }()
			defer func() {
				cancel()
				if err := <-done; err != nil {
					t.Errorf("Run: %v", err)
				}
			}()
			conformance(t, "http://"+srv.Addr().String()+"/", version, "expected-transport-"+version+".yaml")
		})
	}
}

func fixtures(s *mcp.Server) {
	tool := func(name string, f func(context.Context, *mcp.CallToolRequest) ([]mcp.Content, error)) {
		mcp.AddTool(s, &mcp.Tool{Name: name, Description: "what the conformance suite asks for"},
			func(ctx context.Context, req *mcp.CallToolRequest, _ struct{}) (*mcp.CallToolResult, any, error) {
				content, err := f(ctx, req)
				return &mcp.CallToolResult{Content: content}, nil, err
			})
	}
	gives := func(c ...mcp.Content) func(context.Context, *mcp.CallToolRequest) ([]mcp.Content, error) {
		return func(context.Context, *mcp.CallToolRequest) ([]mcp.Content, error) { return c, nil }
	}
	text := func(s string) mcp.Content { return &mcp.TextContent{Text: s} }
	image := &mcp.ImageContent{Data: []byte("png"), MIMEType: "image/png"}
	resource := &mcp.EmbeddedResource{Resource: &mcp.ResourceContents{URI: "test://mixed-content-resource", MIMEType: "application/json", Text: `{"test":"data","value":123}`}}
	tool("test_simple_text", gives(text("This is a simple text response for testing.")))
	tool("test_image_content", gives(image))
	tool("test_audio_content", gives(&mcp.AudioContent{Data: []byte("wav"), MIMEType: "audio/wav"}))
	tool("test_embedded_resource", gives(resource))
	tool("test_multiple_content_types", gives(text("Multiple content types test:"), image, resource))
	tool("test_error_handling", func(context.Context, *mcp.CallToolRequest) ([]mcp.Content, error) {
		return nil, errors.New("This tool intentionally returns an error for testing") //nolint:staticcheck // the suite's words
	})
	tool("test_tool_with_progress", func(ctx context.Context, req *mcp.CallToolRequest) ([]mcp.Content, error) {
		for _, done := range []float64{0, 50, 100} {
			if err := req.Session.NotifyProgress(ctx, &mcp.ProgressNotificationParams{
				ProgressToken: req.Params.GetProgressToken(), Progress: done, Total: 100}); err != nil {
				return nil, err
			}
		}
		return []mcp.Content{text("done")}, nil
	})
	// The suite takes the stream away in the middle of this call and comes back for the answer.
	tool("test_reconnection", func(ctx context.Context, req *mcp.CallToolRequest) ([]mcp.Content, error) {
		if cut := req.Extra.CloseSSEStream; cut != nil {
			cut(mcp.CloseSSEStreamArgs{RetryAfter: 10 * time.Millisecond})
		}
		<-time.After(100 * time.Millisecond)
		return []mcp.Content{text("reconnected")}, nil
	})
}
