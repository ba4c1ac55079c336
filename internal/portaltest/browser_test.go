package portaltest

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// patience bounds what may take a while. Most steps take some milliseconds.
const patience = 45 * time.Second

// chromium is the one browser process. Tests share it, and nothing in it.
var chromium context.Context

// elsewhere is a name of this machine that the browser does not take for one: without TLS such a
// page is trusted less.
const elsewhere = "portal.example.test"

// startChromium starts it, and returns what ends it and removes its files.
func startChromium() (ctx context.Context, end func(), err error) {
	path, err := exec.LookPath("chromium")
	if err != nil {
		return nil, nil, err
	}
	home, err := os.MkdirTemp("", "home")
	if err != nil {
		return nil, nil, err
	}
	// Few containers let a program set up a sandbox, and nothing strange is opened here.
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.Env("HOME="+home),
		chromedp.Flag("host-resolver-rules", "MAP "+elsewhere+" 127.0.0.1"))
	allocator, stop := chromedp.NewExecAllocator(context.Background(), options...)
	end = func() {
		stop() // which waits for the process
		_ = os.RemoveAll(home)
	}
	ctx, _ = chromedp.NewContext(allocator)
	if err := chromedp.Do(ctx); err != nil {
		end()
		return nil, nil, err
	}
	return ctx, end, nil
}

// look is what a browser is like.
type look struct {
	languages     string // as in Accept-Language
	width, height int64
	dark          bool
	noScript      bool
}

var (
	desktop = look{languages: "en-GB,en;q=0.8", width: 1280, height: 900}
	phone   = look{languages: "en", width: 360, height: 740}
)

// browser is a window with cookies of its own, at a service.
type browser struct {
	t   *testing.T
	s   *service
	ctx context.Context

	mu       sync.Mutex
	expected []string // parts of what the console may say
	problems []string
	events   map[string]int // from streams, by name
}

// open opens a browser that is there until the test ends.
func open(t *testing.T, s *service, l look) *browser {
	t.Helper()
	b := &browser{t: t, s: s, events: map[string]int{}}
	var end context.CancelFunc
	b.ctx, end = chromedp.NewContext(chromium, chromedp.WithNewBrowserContext(), chromedp.WithListener(b.watch))
	t.Cleanup(func() {
		end()
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, p := range b.problems {
			t.Error(p)
		}
	})
	scheme := "light"
	if l.dark {
		scheme = "dark"
	}
	// The first use of the context must be without a deadline: that would be the window's.
	if err := chromedp.Do(b.ctx,
		command(network.Enable, network.EnableParams{}),
		command(log.Enable, cdp.Empty{}),
		command(emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{
			Width: l.width, Height: l.height, DeviceScaleFactor: 1, Mobile: l.width < 500}),
		command(emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}}),
		command(emulation.SetUserAgentOverride, emulation.SetUserAgentOverrideParams{
			UserAgent: "Mozilla/5.0 (X11; Linux x86_64) Chrome", AcceptLanguage: l.languages}),
		command(emulation.SetTimezoneOverride, emulation.SetTimezoneOverrideParams{TimezoneID: "Asia/Tokyo"}),
		command(emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: l.noScript}),
	); err != nil {
		t.Fatalf("open a window: %v", err)
	}
	return b
}

// command is a command of the protocol whose result is of no interest.
func command[P, R any](c cdp.Command[P, R], params P) chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, c, params)
		return err
	})
}

// watch notes what must not happen, and what came by a stream.
func (b *browser) watch(event any) {
	switch e := event.(type) {
	case *network.EventRequestWillBeSent:
		if u := e.Request.URL; !strings.HasPrefix(u, b.s.url+"/") {
			b.complain("a request left the service: %s", u)
		}
	case *network.EventEventSourceMessageReceived:
		b.mu.Lock()
		defer b.mu.Unlock()
		b.events[e.EventName]++
	case *runtime.EventExceptionThrown:
		b.complain("script failed: %v", &chromedp.ExceptionError{ExceptionDetails: e.ExceptionDetails})
	case *runtime.EventConsoleAPICalled:
		for _, arg := range e.Args {
			b.complain("console: %s: %s%s", e.Type, arg.Value, arg.Description)
		}
	case *log.EventEntryAdded:
		if e.Entry.Level == log.EntryLevelError || e.Entry.Level == log.EntryLevelWarning {
			b.complain("console: %s: %s %s", e.Entry.Level, e.Entry.Text, e.Entry.URL)
		}
	}
}

func (b *browser) complain(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	problem := fmt.Sprintf(format, args...)
	for _, part := range b.expected {
		if strings.Contains(problem, part) {
			return
		}
	}
	b.problems = append(b.problems, problem)
}

// expect says what is no problem, by a part of it: the browser notes every answer above 399 on its console.
func (b *browser) expect(part string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.expected = append(b.expected, part)
}

// streamed returns how many events came by streams until now, by name.
func (b *browser) streamed() map[string]int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.events)
}

// run returns the value of an action, or fails the test with what is to be seen.
func run[T any](b *browser, what string, action chromedp.Action[T]) T {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	value, err := chromedp.Run(ctx, action)
	if err != nil {
		b.fail("%s: %v", what, err)
	}
	return value
}

// fail ends the test with what is to be seen.
func (b *browser) fail(format string, args ...any) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	text, err := chromedp.Run(ctx, chromedp.Evaluate[string](`location.href + "\n" + document.body.innerText`))
	if err != nil {
		text = err.Error()
	}
	b.t.Fatalf(format+"\n%s", append(args, text)...)
}

// eval returns the value of an expression in the page, which may be a promise.
func eval[T any](b *browser, expression string) T {
	b.t.Helper()
	return run(b, "look", chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
}

// until waits until an expression has a value other than null, through any number of pages,
// and returns it.
func until[T any](b *browser, what, expression string) T {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	again := time.NewTicker(25 * time.Millisecond)
	defer again.Stop()
	for {
		value, err := chromedp.Run(ctx, chromedp.Evaluate[*T](expression))
		if err == nil && value != nil {
			return *value
		}
		select {
		case <-again.C: // an error may be that of a page which is left
		case <-ctx.Done():
			b.fail("%s: not within %v (%v)", what, patience, err)
		}
	}
}

// holds waits until a condition holds.
func (b *browser) holds(what, condition string) {
	b.t.Helper()
	until[bool](b, what, `(`+condition+`) || null`)
}

// sees waits until a text can be read on the page.
func (b *browser) sees(text string) {
	b.t.Helper()
	b.holds("see "+text, `document.body?.innerText.includes(`+quote(text)+`)`)
}

// shows waits until a part of the page, by its CSS selector, has a text.
func (b *browser) shows(selector, text string) {
	b.t.Helper()
	b.holds("see "+text+" in "+selector, `document.querySelector(`+quote(selector)+`)?.innerText.trim() === `+quote(text))
}

// comes waits until the page is about a task that is in a state.
func (b *browser) comes(state string) {
	b.t.Helper()
	b.holds("see the task "+state, `document.querySelector("article")?.dataset.state === `+quote(state)+` &&
		document.querySelector(".state")?.dataset.state === `+quote(state))
}

// visit goes to a path of the service, and waits until its page is there.
func (b *browser) visit(path string) {
	b.t.Helper()
	run(b, "visit "+path, chromedp.Navigate(b.s.url+path))
}

// click clicks on a link, a button or a label by its text, as soon as nothing else is in front of it.
// Of a label the beginning is enough.
func (b *browser) click(text string) {
	b.t.Helper()
	point := until[[2]float64](b, "click on "+text, `(() => {
		const text = `+quote(text)+`;
		for (const e of document.querySelectorAll("a, button, summary, label")) {
			const own = e.innerText.trim();
			if (own !== text && !(e.matches("label") && own.startsWith(text))) continue;
			e.scrollIntoView({ block: "center", behavior: "instant" });
			const box = e.getClientRects()[0];
			if (!box) continue;
			const x = box.left + Math.min(box.width / 2, 60), y = box.top + box.height / 2;
			if (e.contains(document.elementFromPoint(x, y))) return [x, y];
		}
		return null;
	})()`)
	run(b, "click on "+text, chromedp.MouseClickXY(point[0], point[1]))
}

// fill puts a value into the field with a label, as if it were pasted, or chooses the option.
func (b *browser) fill(label, value string) {
	b.t.Helper()
	b.click(label)
	if eval[bool](b, `document.activeElement.matches("select")`) {
		b.press(value)
		return
	}
	b.holds("begin with "+label, `document.activeElement.matches("input")`)
	eval[chromedp.Void](b, `document.activeElement.select()`)
	run(b, "fill "+label, command(input.InsertText, input.InsertTextParams{Text: value}))
}

// press presses keys one after the other.
func (b *browser) press(keys string) {
	b.t.Helper()
	// As from a keyboard: a key that did something where it went down types nothing after that.
	raw := func(k *input.DispatchKeyEventParams) {
		if k.Type == kb.KeyDown {
			k.Type = kb.KeyRawDown
		}
	}
	run(b, "press keys", chromedp.KeyEvent(keys, raw))
}

// mark leaves something on the page that is gone when it is loaded anew; marked looks for it.
func (b *browser) mark()        { b.t.Helper(); eval[chromedp.Void](b, `void (window.mark = true)`) }
func (b *browser) marked() bool { b.t.Helper(); return eval[bool](b, `window.mark === true`) }

// text returns what can be read on the page.
func (b *browser) text() string { b.t.Helper(); return eval[string](b, `document.body.innerText`) }

// path returns where the page is.
func (b *browser) path() string { b.t.Helper(); return eval[string](b, `location.pathname`) }

// shoot takes a screenshot of the whole page, which go test -artifacts keeps, in a directory of any name.
func (b *browser) shoot(name string) {
	b.t.Helper()
	png := run(b, "take a screenshot", chromedp.FullScreenshot(100))
	file := strings.ReplaceAll(strings.TrimPrefix(b.t.Name(), "Test"), "/", "-") + "-" + name + ".png"
	if err := os.WriteFile(filepath.Join(b.t.ArtifactDir(), file), png, 0o600); err != nil {
		b.t.Error(err)
	}
}

// quote returns s as a string of JavaScript.
func quote(s string) string {
	text, _ := json.Marshal(s) // never fails for a string
	return string(text)
}
