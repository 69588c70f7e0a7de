package queue

import (
	"fmt"
	"strings"

	"github.com/google/uuid"
)

// ID is a UUIDv7 in canonical lower-case form. Values come from [NewID] or [ParseID] only.
type ID string

// NewID returns a fresh ID; later IDs sort after earlier ones.
func NewID() ID { return ID(uuid.Must(uuid.NewV7()).String()) }

// ParseID accepts exactly the canonical form, so that an ID is always safe as a file name.
func ParseID(s string) (ID, error) {
	u, err := uuid.Parse(s)
	if err != nil || u.Version() != 7 || u.Variant() != uuid.RFC4122 || u.String() != s {
		return "", fmt.Errorf("id %.64q is not a UUIDv7 like 0197f3b2-6d1e-7c3a-9b58-3f6f0a2c4d1e", s)
	}
	return ID(s), nil
}

// CheckSlug tells whether s may name a bottle (and so a directory).
func CheckSlug(s string) error {
	if s == "" || len(s) > 63 || s[0] == '-' || strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return fmt.Errorf("bottle slug %.80q must match [a-z0-9][a-z0-9-]{0,62}", s)
	}
	return nil
}
