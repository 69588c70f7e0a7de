package egress

import (
	"container/list"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"
)

const (
	caLife   = 5 * 365 * 24 * time.Hour
	leafLife = 30 * 24 * time.Hour
	leafKeep = 24 * time.Hour // a leaf is minted again this long before its end
	leafMax  = 1024           // leaves kept
	skew     = 24 * time.Hour // a client's clock may be behind
)

// EnsureCA makes sure that a CA is at certFile and keyFile: it creates one, or checks the one that
// is there. The key is created with mode 0600; a bottle needs the certificate only, so keep them in different
// directories if a directory is mounted. Whoever has the key can pose as any host to whoever trusts the
// certificate: the CA is for one operator's bottles, is not name-constrained, and ends after five years.
func EnsureCA(certFile, keyFile string) error {
	_, certErr := os.Lstat(certFile)
	_, keyErr := os.Lstat(keyFile)
	switch {
	case certErr == nil:
		_, err := loadCA(certFile, keyFile)
		return err
	case !errors.Is(certErr, fs.ErrNotExist):
		return fmt.Errorf("egress: CA certificate: %w", certErr)
	case errors.Is(keyErr, fs.ErrNotExist):
		// The key first: a key without certificate, which a crash leaves behind, is finished next time.
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return fmt.Errorf("egress: making a CA key: %w", err)
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return fmt.Errorf("egress: making a CA key: %w", err)
		}
		if err := create(keyFile, "PRIVATE KEY", der, 0o600); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	key, err := loadKey(keyFile)
	if err != nil {
		return err
	}
	now := time.Now()
	root := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: "supervise egress CA " + now.UTC().Format(time.DateOnly)},
		NotBefore:             now.Add(-skew),
		NotAfter:              now.Add(caLife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, root, root, key.Public(), key) // its own issuer: OpenSSL looks for that
	if err != nil {
		return fmt.Errorf("egress: making a CA certificate: %w", err)
	}
	if err := create(certFile, "CERTIFICATE", der, 0o644); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	_, err = loadCA(certFile, keyFile) // ours, or that of another process which was first
	return err
}

// create writes a PEM file that must not exist yet: complete or absent.
func create(name, kind string, der []byte, mode os.FileMode) error {
	dir := filepath.Dir(name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("egress: creating %s: %w", name, err)
	}
	tmp, err := os.CreateTemp(dir, "."+filepath.Base(name)+"-*")
	if err != nil {
		return fmt.Errorf("egress: creating %s: %w", name, err)
	}
	defer os.Remove(tmp.Name())
	werr := pem.Encode(tmp, &pem.Block{Type: kind, Bytes: der})
	if err := errors.Join(werr, tmp.Chmod(mode), tmp.Sync(), tmp.Close()); err != nil {
		return fmt.Errorf("egress: creating %s: %w", name, err)
	}
	if err := os.Link(tmp.Name(), name); err != nil {
		return fmt.Errorf("egress: creating %s: %w", name, err)
	}
	return nil
}

// authority signs leaf certificates. All of them share one key, which lives as long as the process.
type authority struct {
	cert    *x509.Certificate
	key     crypto.Signer
	leafKey *ecdsa.PrivateKey

	mu     sync.Mutex
	leaves map[string]*list.Element // guarded by mu; values are *minted
	recent *list.List               // guarded by mu; last used first
}

type minted struct {
	host string
	cert *tls.Certificate
	end  time.Time
}

func loadKey(keyFile string) (crypto.Signer, error) {
	data, err := os.ReadFile(keyFile)
	if err != nil {
		return nil, fmt.Errorf("egress: CA key: %w", err)
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("egress: CA key %s: no PEM in it", keyFile)
	}
	for _, parse := range []func([]byte) (any, error){
		x509.ParsePKCS8PrivateKey,
		func(b []byte) (any, error) { return x509.ParseECPrivateKey(b) },
		func(b []byte) (any, error) { return x509.ParsePKCS1PrivateKey(b) },
	} {
		if k, err := parse(block.Bytes); err == nil {
			if s, ok := k.(crypto.Signer); ok {
				return s, nil
			}
		}
	}
	return nil, fmt.Errorf("egress: CA key %s: not a private key in PKCS #8, EC or PKCS #1 form", keyFile)
}

func loadCA(certFile, keyFile string) (*authority, error) {
	key, err := loadKey(keyFile)
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(certFile)
	if err != nil {
		return nil, fmt.Errorf("egress: CA certificate: %w", err)
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("egress: CA certificate %s: no PEM certificate in it", certFile)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("egress: CA certificate %s: %w", certFile, err)
	}
	pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	switch {
	case !ok || !pub.Equal(cert.PublicKey):
		return nil, fmt.Errorf("egress: CA certificate %s is not for the key %s", certFile, keyFile)
	case !cert.IsCA:
		return nil, fmt.Errorf("egress: CA certificate %s is not a CA's", certFile)
	case len(cert.Issuer.Names) == 0:
		return nil, fmt.Errorf("egress: CA certificate %s names no issuer, and OpenSSL, Node and Python do not trust such a one: remove it to have a new one made, and have the bottles trust that", certFile)
	case time.Now().After(cert.NotAfter):
		return nil, fmt.Errorf("egress: CA certificate %s ended on %s: remove it to have a new one made, and have the bottles trust that", certFile, cert.NotAfter.Format(time.DateOnly))
	}
	leafKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("egress: making a leaf key: %w", err)
	}
	return &authority{cert: cert, key: key, leafKey: leafKey, leaves: map[string]*list.Element{}, recent: list.New()}, nil
}

// leaf returns a certificate for host, which may be an IP address.
func (a *authority) leaf(host string) (*tls.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	if e, ok := a.leaves[host]; ok {
		if m := e.Value.(*minted); now.Before(m.end.Add(-leafKeep)) {
			a.recent.MoveToFront(e)
			return m.cert, nil
		}
		a.recent.Remove(e)
		delete(a.leaves, host)
	}
	end := now.Add(leafLife)
	if end.After(a.cert.NotAfter) {
		end = a.cert.NotAfter
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial(),
		NotBefore:    now.Add(-skew),
		NotAfter:     end,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if ip := net.ParseIP(host); ip != nil {
		tmpl.IPAddresses = []net.IP{ip}
	} else {
		tmpl.DNSNames = []string{host}
	}
	if len(host) <= 64 { // the limit of a common name; without one the SAN is critical
		tmpl.Subject.CommonName = host
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, a.leafKey.Public(), a.key)
	if err != nil {
		return nil, fmt.Errorf("signing: %w", err)
	}
	m := &minted{host: host, end: end, cert: &tls.Certificate{Certificate: [][]byte{der, a.cert.Raw}, PrivateKey: a.leafKey}}
	a.leaves[host] = a.recent.PushFront(m)
	for a.recent.Len() > leafMax {
		oldest := a.recent.Back()
		a.recent.Remove(oldest)
		delete(a.leaves, oldest.Value.(*minted).host)
	}
	return m.cert, nil
}

func serial() *big.Int {
	b := make([]byte, 16)
	rand.Read(b) // never fails
	b[0] &= 0x7f // positive
	return new(big.Int).SetBytes(b)
}
