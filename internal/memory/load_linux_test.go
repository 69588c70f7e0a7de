package memory

import (
	"encoding/binary"
	"os"
	"runtime"
	"testing"
	"unsafe"
)

// TestLoad: the ballast takes no memory where a crowd has been before it, either.
func TestLoad(t *testing.T) {
	touch := func() {
		b := make([]byte, 2*ballast)
		for i := range b {
			b[i] = 1
		}
		runtime.KeepAlive(b)
	}
	touch()
	runtime.GC()
	b := load()
	if n := resident(t, b); n > len(b)/100 {
		t.Errorf("%d of the ballast's %d bytes take memory", n, len(b))
	}
	runtime.KeepAlive(b)
}

// resident is how many bytes of b are in memory.
func resident(t *testing.T, b []byte) (n int) {
	t.Helper()
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		t.Skip("needs pagemap:", err)
	}
	defer f.Close()
	page := os.Getpagesize()
	pages := make([]byte, 8*(len(b)/page))
	if _, err := f.ReadAt(pages, int64(uintptr(unsafe.Pointer(&b[0]))/uintptr(page))*8); err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(pages); i += 8 {
		if binary.LittleEndian.Uint64(pages[i:])>>63 == 1 {
			n += page
		}
	}
	return n
}
