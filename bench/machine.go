package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"
)

// An about says what was measured, where, and when.
type about struct {
	Date       string            `json:"date"`
	Commit     string            `json:"commit,omitempty"`
	Cores      int               `json:"cores"`
	CPU        string            `json:"cpu"`
	MemoryGB   float64           `json:"memory_gb"`
	Kernel     string            `json:"kernel"`
	PostgreSQL string            `json:"postgresql"`
	Go         string            `json:"go"`
	FsyncMS    float64           `json:"fsync_ms"`
	Settings   map[string]string `json:"settings"` // of PostgreSQL, where they are not the defaults
}

func (b *bench) describe(ctx context.Context) (a about, err error) {
	a = about{
		Date: time.Now().UTC().Format("2006-01-02 15:04 MST"), Commit: commit(), Cores: runtime.NumCPU(),
		CPU: field("/proc/cpuinfo", "model name"), Kernel: kernel(), Go: runtime.Version(), Settings: b.cluster.settings,
	}
	kilobytes, _ := strconv.ParseFloat(strings.TrimSuffix(field("/proc/meminfo", "MemTotal"), " kB"), 64)
	a.MemoryGB = kilobytes / (1 << 20)
	if err := b.cluster.pool.QueryRow(ctx, "SHOW server_version").Scan(&a.PostgreSQL); err != nil {
		return a, err
	}
	took, err := b.fsync(ctx)
	a.FsyncMS = took.Seconds() * 1000
	return a, err
}

func (a about) markdown(w io.Writer) {
	fmt.Fprintf(w, "%s, commit %s. %d cores of %s, %.0f GB of memory, Linux %s, PostgreSQL %s, %s. ", a.Date, a.Commit, a.Cores, a.CPU, a.MemoryGB, a.Kernel, a.PostgreSQL, a.Go)
	fmt.Fprintf(w, "A write of 8 KB with fsync takes %.2f ms (median of 200). PostgreSQL, worker, host and receiver share the machine.\n\n", a.FsyncMS)
	fmt.Fprint(w, "PostgreSQL as it comes, with fsync on, and")
	for _, name := range slices.Sorted(maps.Keys(a.Settings)) {
		fmt.Fprintf(w, " `%s = %s`", name, a.Settings[name])
	}
	fmt.Fprintf(w, ". mailhook as it comes, but for leave to send to loopback by http; every contestant has %d requests under way at most, and signs the same body.\n", concurrency)
	fmt.Fprintf(w, "Ratios are of measurements that took turns in this run; three rounds where a spread is given. How each row is measured stands above its function in `bench/`.\n")
}

// commit is what this command was built from.
func commit() string {
	info, _ := debug.ReadBuildInfo()
	revision, changed := "unknown", ""
	if info == nil {
		return revision
	}
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			revision = s.Value[:min(12, len(s.Value))]
		case s.Key == "vcs.modified" && s.Value == "true":
			changed = " with changes"
		}
	}
	return revision + changed
}

func kernel() string {
	text, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return strings.TrimSpace(string(text))
}

// field is the value of the first line "name: value" of a file of /proc.
func field(path, name string) string {
	text, _ := os.ReadFile(path) //nolint:gosec // of /proc
	for line := range strings.Lines(string(text)) {
		if key, value, found := strings.Cut(line, ":"); found && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// fsync is the median of 200 writes of 8 KB, each with fsync, where the database is.
func (b *bench) fsync(ctx context.Context) (time.Duration, error) {
	var dir string
	if err := b.cluster.pool.QueryRow(ctx, "SHOW data_directory").Scan(&dir); err != nil {
		return 0, err
	}
	f, err := os.CreateTemp(dir, "fsync")
	if err != nil {
		return 0, err
	}
	defer os.Remove(f.Name()) //nolint:errcheck // the directory is thrown away
	defer f.Close()           //nolint:errcheck // as above
	var took []time.Duration
	for range 200 {
		began := time.Now()
		if _, err := f.WriteAt(make([]byte, 8<<10), 0); err != nil {
			return 0, err
		}
		if err := f.Sync(); err != nil {
			return 0, err
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	return took[len(took)/2], nil
}
