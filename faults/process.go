package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/google/uuid"
)

// A process is a worker or an API: the real binary, with a log of its own.
type process struct {
	field      *field
	name       string
	cmd        *exec.Cmd
	log        string
	address    string
	ended      chan struct{} // closed when it has
	err        error         // how it ended; read it after ended
	asked      atomic.Bool   // to end, by us
	goroutines float64       // when it had just become ready
}

func (f *field) environment() []string {
	return append(os.Environ(), "MAILHOOK_DATABASE_URL="+f.workerURL, "MAILHOOK_SECRET_KEY="+f.key,
		"MAILHOOK_ALLOW_INSECURE_HTTP=true", "MAILHOOK_ALLOW_CIDR=127.0.0.0/8", "MAILHOOK_LISTEN=127.0.0.1:0", "MAILHOOK_BREAK="+f.scenario.breaks)
}

// command runs the binary to its end.
func (f *field) command(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, f.binary, args...) //nolint:gosec // ours
	cmd.Env = f.environment()
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("mailhook %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// startWorkers starts n workers and waits until each makes progress.
func (f *field) startWorkers(ctx context.Context, n int) error {
	for range n {
		if err := f.startWorker(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (f *field) startWorker(ctx context.Context) error {
	p, err := f.startProcess(ctx, "worker")
	if err != nil {
		return err
	}
	if err := p.awaitReady(ctx); err != nil {
		return err
	}
	metrics, err := p.metrics(ctx)
	p.goroutines = metrics["go_goroutines"]
	return err
}

// startProcess starts the binary and waits until it says where it listens.
func (f *field) startProcess(ctx context.Context, args ...string) (*process, error) {
	f.mu.Lock()
	name := fmt.Sprintf("%s-%d", args[0], len(f.workers))
	f.mu.Unlock()
	p := &process{field: f, name: name, log: filepath.Join(f.dir, name+".log"), ended: make(chan struct{})}
	log, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()                                                    //nolint:errcheck // the process has it
	p.cmd = exec.CommandContext(context.Background(), f.binary, args...) //nolint:gosec // ours; it ends by a signal of ours
	p.cmd.Env, p.cmd.Stdout, p.cmd.Stderr = f.environment(), log, log
	p.cmd.SysProcAttr = dieWithParent()
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.ended)
		if !p.asked.Load() {
			f.problem("%s ended by itself: %v; its log is %s", p.name, p.err, p.log)
		}
	}()
	f.mu.Lock()
	f.workers = append(f.workers, p)
	f.mu.Unlock()
	return p, eventually(ctx, 30*time.Second, p.name+" listens", func() (bool, error) {
		if p.hasEnded() {
			return false, fmt.Errorf("%s ended: see %s", p.name, p.log)
		}
		p.address, err = listening(p.log)
		return p.address != "", err
	})
}

func listening(log string) (string, error) {
	file, err := os.Open(log) //nolint:gosec // a path of ours
	if err != nil {
		return "", err
	}
	defer file.Close() //nolint:errcheck // only read
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		if _, address, ok := strings.Cut(lines.Text(), "address="); ok {
			return address, nil
		}
	}
	return "", lines.Err()
}

func (p *process) awaitReady(ctx context.Context) error {
	return eventually(ctx, 30*time.Second, p.name+" is ready", func() (bool, error) {
		if p.hasEnded() {
			return false, fmt.Errorf("%s ended: see %s", p.name, p.log)
		}
		status, _, err := p.get(ctx, "/readyz")
		return err == nil && status == http.StatusOK, nil
	})
}

func (p *process) get(ctx context.Context, path string) (int, string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.address+path, nil)
	if err != nil {
		return 0, "", err
	}
	request.Close = true // the worker's goroutines are counted
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, "", err
	}
	defer answer.Body.Close() //nolint:errcheck // read to its end
	text, err := io.ReadAll(answer.Body)
	return answer.StatusCode, string(text), err
}

// metrics are the worker's, by name; those with labels are added up.
func (p *process) metrics(ctx context.Context) (map[string]float64, error) {
	_, text, err := p.get(ctx, "/metrics")
	values := map[string]float64{}
	for line := range strings.Lines(text) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok || name == "#" {
			continue
		}
		name, _, _ = strings.Cut(name, "{")
		number, _ := strconv.ParseFloat(value, 64) // what is no number is no metric
		values[name] += number
	}
	return values, err
}

func (p *process) hasEnded() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

func (p *process) signal(s syscall.Signal) {
	if s == syscall.SIGKILL || s == syscall.SIGTERM {
		p.asked.Store(true)
	}
	p.cmd.Process.Signal(s) //nolint:errcheck // it may have ended
}

// kill ends it at once.
func (p *process) kill() {
	p.signal(syscall.SIGKILL)
	<-p.ended
}

// awaitEnd waits for a process that was told to stop.
func (p *process) awaitEnd(within time.Duration) error {
	select {
	case <-p.ended:
		return p.err
	case <-time.After(within):
		return fmt.Errorf("%s did not stop within %v", p.name, within)
	}
}

// held names the pairs that a worker has leased by the database's account, by the process id that it registered.
func (f *field) held(ctx context.Context, pid int) (map[pair]bool, error) {
	rows, err := f.pool.Query(ctx, `SELECT d.subscription_id, coalesce((e.data ->> 'k')::bigint, 0)
		FROM mailhook.workers AS w JOIN mailhook.deliveries AS d ON d.leased_by = w.id
		JOIN mailhook.events AS e ON e.inserted_at = d.event_inserted_at AND e.id = d.event_id WHERE w.pid = $1`, pid)
	if err != nil {
		return nil, err
	}
	numbers := f.numbers()
	held := map[pair]bool{}
	var subscription uuid.UUID
	var key int64
	for rows.Next() {
		if err := rows.Scan(&subscription, &key); err != nil {
			return nil, err
		}
		held[pair{numbers[subscription], key}] = true
	}
	return held, rows.Err()
}

// numbers are the subscriptions by the id that the database knows.
func (f *field) numbers() map[uuid.UUID]int {
	numbers := map[uuid.UUID]int{}
	for _, s := range f.everySubscription() {
		numbers[s.id] = s.number
	}
	return numbers
}

// crash kills workers by SIGKILL, all at once, and notes what they held: it may be sent twice, and it must move on.
func (f *field) crash(ctx context.Context, victims ...*process) error {
	now, stranded := time.Now(), map[pair]bool{}
	for _, p := range victims {
		p.signal(syscall.SIGKILL)
	}
	for _, p := range victims {
		<-p.ended
		held, err := f.held(ctx, p.cmd.Process.Pid)
		if err != nil {
			return err
		}
		for x := range held {
			stranded[x] = true
		}
	}
	f.allow(len(stranded))
	everybody := len(f.living()) == 0
	f.faulty(fault{from: now, to: now, stranded: stranded, everybody: everybody})
	return nil
}

// processes are those that were started, the ended ones too.
func (f *field) processes() []*process {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]*process(nil), f.workers...)
}

// living are the workers that have not ended.
func (f *field) living() (all []*process) {
	for _, p := range f.processes() {
		if !p.hasEnded() && strings.HasPrefix(p.name, "worker") {
			all = append(all, p)
		}
	}
	return all
}

// watchMemory keeps the peak of all workers, also of those that are gone at the end.
func (f *field) watchMemory(ctx context.Context) {
	pattern := regexp.MustCompile(`VmHWM:\s+(\d+) kB`)
	for ctx.Err() == nil {
		for _, p := range f.living() {
			status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
			match := pattern.FindSubmatch(status)
			if err != nil || match == nil {
				continue
			}
			kilobytes, _ := strconv.ParseInt(string(match[1]), 10, 64) // digits
			f.mu.Lock()
			f.peakRSS = max(f.peakRSS, kilobytes<<10)
			f.mu.Unlock()
		}
		pause(ctx, 500*time.Millisecond)
	}
}

// pause waits, and says whether the scenario still goes on.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// eventually asks again until the answer is yes.
func eventually(ctx context.Context, within time.Duration, what string, ask func() (bool, error)) error {
	deadline := time.Now().Add(within)
	for {
		ok, err := ask()
		switch {
		case err != nil:
			return err
		case ok:
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("not within %v: %s", within, what)
		case !pause(ctx, 20*time.Millisecond):
			return errors.Join(fmt.Errorf("cut short: %s", what), ctx.Err())
		}
	}
}
