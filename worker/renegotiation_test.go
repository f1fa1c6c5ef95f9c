package worker

import (
	"bufio"
	"crypto/x509"
	"encoding/pem"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A server that asks to renegotiate in the middle of an answer gets no second handshake. Package crypto/tls cannot ask,
// so the server is openssl.
func TestRenegotiationIsRefused(t *testing.T) {
	t.Parallel()
	program, err := exec.LookPath("openssl")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip("openssl is not installed")
	}
	authority := newAuthority()
	key, err := x509.MarshalPKCS8PrivateKey(authority.leafKey)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "server.pem")
	text := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: authority.leaf}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})...)
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	server := exec.CommandContext(t.Context(), program, "s_server", "-accept", "127.0.0.1:0", "-tls1_2", "-cert", file, "-key", file)
	commands, err := server.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := server.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Process.Kill(); server.Wait() })

	address := make(chan string, 1)
	go func() {
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			line := lines.Text()
			if at, ok := strings.CutPrefix(line, "ACCEPT "); ok {
				address <- at
			}
			if strings.HasPrefix(line, "X-Signature") || strings.HasPrefix(line, "Webhook-Signature") {
				io.WriteString(commands, "r\n") // renegotiate
			}
		}
	}()
	client := newClient(testClientConfig())
	defer client.close()
	client.transports.shared.TLSClientConfig = authority.trusted()
	s := &subscription{format: standardFormat, url: "https://" + <-address + "/", timeout: time.Minute, keys: [][]byte{[]byte("k")}}
	if o := client.attempt(t.Context(), s, testDelivery()); o.word != outcomeTLS {
		t.Error(o.word)
	}
}
