// Package ts holds no code but tests: a client that is not ours against the real binary, and the official conformance suite.
// What they need is pinned in package-lock.json (`npm ci --prefix internal/e2e/ts`).
package ts
