package main

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/nodeprep/nodeprep/install"
)

// progress tells a person how far an apply is: bars on a terminal, plain lines in a
// pipe or a journal, nothing for machines.
type progress struct {
	out   io.Writer
	paint painter
	quiet bool
	bars  bool
	// entering is the caller's own observer, nil for none.
	entering func(install.Phase)

	// lines are printed by a goroutine of its own: a terminal that is stopped (ctrl-s)
	// or a pipe that nobody reads must not hold a host between commit and restart.
	lines   chan string
	printed chan struct{}

	mu   sync.Mutex
	pool *mpb.Progress
	by   map[string]*mpb.Bar
	// said is when a line about each download was last printed.
	said map[string]time.Time
}

func (a *app) progress() *progress {
	p := &progress{
		out: a.stdio.err, paint: a.paint(a.stdio.err), quiet: a.structured, bars: isTerminal(a.stdio.err), entering: a.entering,
		lines: make(chan string, 256), printed: make(chan struct{}),
		by: map[string]*mpb.Bar{}, said: map[string]time.Time{},
	}
	go func() {
		defer close(p.printed)
		for line := range p.lines {
			fmt.Fprintln(p.out, line)
		}
	}()
	return p
}

// say prints a line soon; when the reader is far behind, it is left out.
func (p *progress) say(format string, args ...any) {
	select {
	case p.lines <- fmt.Sprintf(format, args...):
	default:
	}
}

// finish ends the progress: everything said is printed, or its reader is gone.
func (p *progress) finish() {
	p.endBars()
	close(p.lines)
	<-p.printed
}

// PhaseStart begins a phase. Those that may take long announce themselves: a sign of
// life. How long each took is part of the result.
func (p *progress) PhaseStart(phase install.Phase) {
	if p.entering != nil {
		p.entering(phase)
	}
	switch phase {
	case install.PhaseStage, install.PhaseActivate, install.PhaseVerify, install.PhaseUndo, install.PhaseRecover:
		if !p.quiet {
			p.say("%s...", phase)
		}
	}
}

// PhaseEnd ends a phase.
func (p *progress) PhaseEnd(phase install.Phase, took time.Duration, err error) {
	p.endBars()
	if err != nil && !p.quiet {
		p.say("%s %s after %s", phase, p.paint.red("failed"), took.Round(time.Millisecond))
	}
}

// interval is how often a long download says so in a log.
const interval = 5 * time.Second

// Progress is called from several goroutines at once.
func (p *progress) Progress(name string, done, total int64) {
	if p.quiet {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.bars {
		last, seen := p.said[name]
		if now := time.Now(); !seen {
			p.said[name] = now
		} else if now.Sub(last) >= interval {
			p.said[name] = now
			p.say("%s: %s", name, amount(done, total))
		}
		return
	}
	if p.pool == nil {
		p.pool = mpb.New(mpb.WithOutput(p.out), mpb.WithWidth(40), mpb.WithRefreshRate(100*time.Millisecond))
	}
	bar, ok := p.by[name]
	if !ok {
		bar = p.pool.AddBar(total,
			mpb.PrependDecorators(decor.Name(name, decor.WCSyncSpaceR)),
			mpb.AppendDecorators(decor.CountersKibiByte("% .1f / % .1f"), decor.Percentage(decor.WC{W: 6})))
		p.by[name] = bar
	}
	if total > 0 {
		bar.SetTotal(total, false)
	}
	bar.SetCurrent(done)
}

// endBars ends the bars, so that what is printed next stands below them.
func (p *progress) endBars() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pool == nil {
		return
	}
	for _, bar := range p.by {
		if !bar.Completed() {
			// Bars of work that ended early stay as they are.
			bar.Abort(false)
		}
	}
	p.pool.Wait()
	p.pool, p.by = nil, map[string]*mpb.Bar{}
}

func amount(done, total int64) string {
	const mib = 1 << 20
	if total <= 0 {
		return fmt.Sprintf("%.1f MiB", float64(done)/mib)
	}
	return fmt.Sprintf("%.1f of %.1f MiB", float64(done)/mib, float64(total)/mib)
}
