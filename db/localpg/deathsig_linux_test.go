package localpg

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// The parent passes the pipe's write end on to every process of its server, so
// the pipe ends when the last of them is gone.
func TestServerDiesWithKilledParent(t *testing.T) {
	t.Parallel()
	lives, held, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lives.Close() }()
	parent := exec.Command(os.Args[0])
	parent.Env = append(os.Environ(), parentEnv+"="+filepath.Join(publicDir(t), "data"))
	parent.ExtraFiles = []*os.File{held}
	parent.Stderr = os.Stderr
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	_ = held.Close()
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("parent started no server: %v", err)
	}

	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait() // "signal: killed"
	if err := lives.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(lives); err != nil {
		t.Errorf("server outlives its killed parent: %v", err)
	}
}
