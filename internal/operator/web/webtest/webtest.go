// Package webtest starts the browser that tests look at pages with.
package webtest

import (
	"context"
	"os"
	"os/exec"
	"slices"
	"testing"

	"github.com/chromedp/chromedp"
)

// NeedChromium skips a test where there is no Chromium, or where tests are to be short. In CI, which installs one, its absence is
// a failure.
func NeedChromium(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("short: no browser")
	}
	if slices.ContainsFunc([]string{"chromium", "chromium-browser", "google-chrome", "google-chrome-stable"}, func(name string) bool {
		_, err := exec.LookPath(name)
		return err == nil
	}) {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal("there is no Chromium: .ci/deps should have installed it")
	}
	t.Skip("there is no Chromium: .ci/deps installs it")
}

// StartChromium starts one with its profile in dir, for tabs in browsers of their own. Stop ends it.
func StartChromium(dir string) (ctx context.Context, stop func(), err error) {
	opts := append(slices.Clone(chromedp.DefaultExecAllocatorOptions[:]), chromedp.NoSandbox, chromedp.DisableGPU, chromedp.UserDataDir(dir),
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true))
	actx, cancel := chromedp.NewExecAllocator(context.Background(), opts...)
	ctx, end := chromedp.NewContext(actx)
	return ctx, func() { end(); cancel() }, chromedp.Do(ctx)
}
