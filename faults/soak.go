package main

import (
	"context"
	"fmt"
	"image/color"
	"math"
	"path/filepath"
	"syscall"
	"time"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
)

// soak runs for DURATION (an hour) at 200 events/s with a light fault now and then, and asks whether anything grows. What
// was delivered becomes old before its time, so that retention has days to count and drop.
func soak() scenario {
	var samples []sample
	return scenario{
		name: "soak", what: "an hour at 200 events/s with a light fault every five minutes, and days that are counted and dropped: nothing grows", named: true,
		workers: 2, load: load{connections: 4, rate: 200, most: 20}, drain: 2 * time.Minute, recovery: afterFault,
		market: func(ctx context.Context, f *field) error {
			if err := f.exec(ctx, keepAgedSQL); err != nil {
				return err
			}
			return sluggish(ctx, f)
		},
		run: func(ctx context.Context, f *field) error {
			lasts := f.duration(time.Hour)
			sampling, stop := context.WithCancel(ctx)
			done := make(chan struct{})
			go func() {
				defer close(done)
				samples = f.sample(sampling, lasts/360)
			}()
			err := f.lightFaults(ctx, lasts)
			stop()
			<-done
			return err
		},
		verify: func(ctx context.Context, f *field, _ *checker) error {
			for _, q := range quantities() {
				if err := f.judge(q, samples); err != nil {
					return err
				}
			}
			return f.checkAged(ctx, f.duration(time.Hour) >= settled)
		},
	}
}

// eldest is how old what the first twelfth of a soak brought becomes, in days; what the next ones brought, a day less each.
const eldest = 30

// lightFaults makes twelve faults, at equal distances, none of which ends a process: a slope of memory over processes that
// begin again would say nothing.
func (f *field) lightFaults(ctx context.Context, lasts time.Duration) error {
	random := f.random("nemesis")
	for i := range 12 {
		if !pause(ctx, lasts/12-3*time.Second) {
			return ctx.Err()
		}
		if err := f.age(ctx, eldest-i); err != nil {
			return err
		}
		from := time.Now()
		switch i % 3 {
		case 0:
			if _, err := f.terminateOurs(ctx); err != nil {
				return err
			}
		case 1:
			living := f.living()
			victim := living[random.IntN(len(living))]
			victim.signal(syscall.SIGSTOP)
			pause(ctx, 2*time.Second)
			victim.signal(syscall.SIGCONT)
		default:
			s := f.everySubscription()[random.IntN(len(f.subscriptions))]
			s.behave(behaviour{status: 503})
			pause(ctx, 2*time.Second)
			s.behave(behaviour{})
		}
		f.faulty(fault{from: from, to: time.Now()})
		progress("soak: %d of 12 faults, %d requests", i+1, f.receiver.count.Load())
	}
	return nil
}

// A sample is what is not to grow.
type sample struct {
	at                                    time.Duration
	memory, goroutines, connections, size float64
}

// A quantity is one of them, with what counts as nothing: a rise over the whole run below it is noise of another kind than
// that of the samples, such as a page or a session that comes and goes.
type quantity struct {
	name, unit string
	of         func(sample) float64
	nothing    float64
}

func quantities() []quantity {
	return []quantity{
		{"memory", "MiB of both workers", func(s sample) float64 { return s.memory }, 8},
		{"goroutines", "of both workers", func(s sample) float64 { return s.goroutines }, 10},
		{"connections", "to the database", func(s sample) float64 { return s.connections }, 1},
		{"table-size", "MiB of outbox, deliveries and their indexes", func(s sample) float64 { return s.size }, 2},
	}
}

// sample reads all quantities at an interval until ctx ends.
func (f *field) sample(ctx context.Context, interval time.Duration) (samples []sample) {
	for pause(ctx, interval) {
		s := sample{at: time.Since(f.began)}
		for _, p := range f.living() {
			metrics, err := p.metrics(ctx)
			if err != nil {
				break
			}
			s.memory += metrics["process_resident_memory_bytes"] / (1 << 20)
			s.goroutines += metrics["go_goroutines"]
		}
		err := f.pool.QueryRow(ctx, `SELECT (SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'mailhook%'),
			(pg_total_relation_size('mailhook.outbox') + pg_total_relation_size('mailhook.deliveries')) / 1048576.0`).Scan(&s.connections, &s.size)
		if err == nil && s.memory > 0 {
			samples = append(samples, s)
		}
	}
	return samples
}

// settled is the least that a soak must last: connections to receivers, which are kept for a minute, and the files of tables
// come to their size in the first minutes.
const settled = 20 * time.Minute

// judge fits a line to the floor of a quantity, without the first tenth, in which caches fill, and plots both. It grows when
// the line rises by more than nothing, and by more than three standard errors of its slope.
func (f *field) judge(q quantity, samples []sample) error {
	samples = samples[len(samples)/10:]
	if len(samples) < 20 {
		f.problem("%d samples are too few to say whether the %s grows", len(samples), q.name)
		return nil
	}
	hours, values := make([]float64, len(samples)), make([]float64, len(samples))
	for i, s := range samples {
		hours[i], values[i] = s.at.Hours(), q.of(s)
	}
	start, slope, deviation := fit(floor(hours, values))
	rise := slope * (hours[len(hours)-1] - hours[0])
	f.note("%s: floor %.1f at the start, slope %.2f ± %.2f an hour", q.name, start+slope*hours[0], slope, 3*deviation)
	if f.duration(time.Hour) < settled {
		f.problem("too short to say whether the %s grows", q.name)
	} else if slope > 3*deviation && rise > q.nothing {
		f.problem("the %s grows: by %.1f in %.0f minutes", q.name, rise, 60*(hours[len(hours)-1]-hours[0]))
	}
	return f.plot(q, hours, values, start, slope)
}

// floor is the least of each twelfth of the values, and when it was. What is given back again, such as kept connections
// after a fault, is no growth; and neighbouring samples, which are nearly the same, would make any slope look certain.
func floor(x, y []float64) (at, least []float64) {
	const parts = 12
	for part := range parts {
		from, to := part*len(y)/parts, (part+1)*len(y)/parts
		lowest := from
		for i := from; i < to; i++ {
			if y[i] < y[lowest] {
				lowest = i
			}
		}
		at, least = append(at, x[lowest]), append(least, y[lowest])
	}
	return at, least
}

// fit is the line of least squares, and the standard error of its slope.
func fit(x, y []float64) (start, slope, deviation float64) {
	n := float64(len(x))
	var sx, sy, sxx, sxy float64
	for i := range x {
		sx, sy, sxx, sxy = sx+x[i], sy+y[i], sxx+x[i]*x[i], sxy+x[i]*y[i]
	}
	spread := sxx - sx*sx/n
	slope = (sxy - sx*sy/n) / spread
	start = (sy - slope*sx) / n
	var rest float64
	for i := range x {
		d := y[i] - start - slope*x[i]
		rest += d * d
	}
	return start, slope, math.Sqrt(rest / (n - 2) / spread)
}

// plot writes an SVG beside the report.
func (f *field) plot(q quantity, hours, values []float64, start, slope float64) error {
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = q.name, "minutes", q.unit
	p.Y.Min = 0
	points := make(plotter.XYs, len(hours))
	for i := range hours {
		points[i] = plotter.XY{X: 60 * hours[i], Y: values[i]}
	}
	line, err := plotter.NewLine(points)
	if err != nil {
		return fmt.Errorf("plot %s: %w", q.name, err)
	}
	trend := plotter.NewFunction(func(minute float64) float64 { return start + slope*minute/60 })
	trend.Color = color.RGBA{R: 200, A: 255}
	p.Add(plotter.NewGrid(), line, trend)
	path := filepath.Join(f.plots, "soak-"+q.name+".svg")
	if err := p.Save(16*vg.Centimeter, 8*vg.Centimeter, path); err != nil {
		return fmt.Errorf("plot %s: %w", q.name, err)
	}
	return nil
}
