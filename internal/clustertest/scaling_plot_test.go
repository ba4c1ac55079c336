package clustertest

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"testing"
	"text/template"
	"time"
)

// The plot of BenchmarkScaling, in pixels. Both axes are logarithmic, so that what falls
// in proportion is a straight line.
const (
	plotWidth, plotHeight = 720, 460
	plotLeft, plotRight   = 84, 676
	plotTop, plotBottom   = 92, 388
)

// plotPoint is a place in the plot, and what is written there.
type plotPoint struct {
	X, Y  float64
	Label string
	Note  string // under Label
}

type scalingPicture struct {
	Width, Height            int
	Left, Right, Top, Bottom int
	Title, Subtitle          string
	Columns, Rows            []plotPoint // the grid
	Ideal, Measured          []plotPoint
}

// Path joins points to a line.
func (scalingPicture) Path(points []plotPoint) string {
	var path strings.Builder
	for i, p := range points {
		fmt.Fprintf(&path, "%c%.1f %.1f", "ML"[min(i, 1)], p.X, p.Y)
	}
	return path.String()
}

// Middles are halfway between top and bottom, and left and right.
func (p scalingPicture) Middles() [2]int {
	return [2]int{(p.Left + p.Right) / 2, (p.Top + p.Bottom) / 2}
}

// drawScaling returns the plot as SVG. rate is in bytes per second.
func drawScaling(points []scalingPoint, rate int64) ([]byte, error) {
	first, last := points[0], points[len(points)-1]
	ideal := func(p scalingPoint) float64 { return first.took.Seconds() / float64(p.workers) }
	most, least := 1.25*first.took.Seconds(), 0.75*ideal(last)
	x := func(workers int) float64 {
		// With room for what is written beside the last point.
		return plotLeft + 36 + (plotRight-plotLeft-36-104)*math.Log(float64(workers))/math.Log(float64(last.workers))
	}
	y := func(seconds float64) float64 {
		return plotBottom - (plotBottom-plotTop)*math.Log(seconds/least)/math.Log(most/least)
	}
	p := scalingPicture{
		Width: plotWidth, Height: plotHeight, Left: plotLeft, Right: plotRight, Top: plotTop, Bottom: plotBottom,
		Title: "One backlog, more workers",
		Subtitle: fmt.Sprintf("%.1f GB of raw images; the source gives each worker %.0f MB/s",
			float64(first.bytes)/1e9, float64(rate)/1e6),
	}
	for _, point := range points {
		at := plotPoint{X: x(point.workers), Y: y(point.took.Seconds()), Label: fmt.Sprintf("%.1f s", point.took.Seconds())}
		if point.workers > 1 {
			at.Note = fmt.Sprintf("%.0f %%", 100*point.efficiency)
		}
		p.Measured = append(p.Measured, at)
		p.Ideal = append(p.Ideal, plotPoint{X: at.X, Y: y(ideal(point))})
		p.Columns = append(p.Columns, plotPoint{X: at.X, Label: fmt.Sprint(point.workers)})
	}
	for power := math.Pow(10, math.Floor(math.Log10(least))); power < most; power *= 10 {
		for _, seconds := range []float64{power, 2 * power, 5 * power} {
			if seconds > least && seconds < most {
				p.Rows = append(p.Rows, plotPoint{Y: y(seconds), Label: fmt.Sprintf("%g s", seconds)})
			}
		}
	}
	var svg bytes.Buffer
	err := scalingSVG.Execute(&svg, p)
	return svg.Bytes(), err
}

var scalingSVG = template.Must(template.New("").Parse(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {{.Width}} {{.Height}}" role="img" aria-label="{{.Title}}" font-family="system-ui, sans-serif" font-size="13">
<rect width="{{.Width}}" height="{{.Height}}" rx="10" fill="#ffffff"/>
<text x="{{.Left}}" y="38" font-size="19" font-weight="600" fill="#1f2937">{{.Title}}</text>
<text x="{{.Left}}" y="62" fill="#6b7280">{{.Subtitle}}</text>
<g stroke="#e5e7eb">
{{- range .Rows}}
<path d="M{{$.Left}} {{printf "%.1f" .Y}}H{{$.Right}}"/>
{{- end}}
{{- range .Columns}}
<path d="M{{printf "%.1f" .X}} {{$.Top}}V{{$.Bottom}}"/>
{{- end}}
</g>
<path d="M{{.Left}} {{.Top}}V{{.Bottom}}H{{.Right}}" fill="none" stroke="#9ca3af"/>
<g fill="#6b7280">
{{- range .Rows}}
<text x="{{$.Left}}" dx="-10" y="{{printf "%.1f" .Y}}" dy="4" text-anchor="end">{{.Label}}</text>
{{- end}}
{{- range .Columns}}
<text x="{{printf "%.1f" .X}}" y="{{$.Bottom}}" dy="22" text-anchor="middle">{{.Label}}</text>
{{- end}}
<text x="{{index .Middles 0}}" y="{{.Bottom}}" dy="48" text-anchor="middle">worker processes</text>
<text transform="translate(24 {{index .Middles 1}}) rotate(-90)" text-anchor="middle">first request to last success</text>
</g>
<path d="{{.Path .Ideal}}" fill="none" stroke="#9ca3af" stroke-width="1.5" stroke-dasharray="6 5"/>
<path d="{{.Path .Measured}}" fill="none" stroke="#0f766e" stroke-width="2.5" stroke-linejoin="round"/>
{{- range .Measured}}
<circle cx="{{printf "%.1f" .X}}" cy="{{printf "%.1f" .Y}}" r="5" fill="#0f766e" stroke="#ffffff" stroke-width="2"/>
<text x="{{printf "%.1f" .X}}" y="{{printf "%.1f" .Y}}" dx="10" dy="-10" font-weight="600" fill="#0f766e">{{.Label}}{{with .Note}}<tspan dx="8" font-weight="400" fill="#6b7280">{{.}}</tspan>{{end}}</text>
{{- end}}
<g transform="translate({{.Right}} 38)" fill="#6b7280" text-anchor="end">
<path d="M-180 -5h26" stroke="#0f766e" stroke-width="2.5"/><text x="-82">measured</text>
<path d="M-66 -5h26" stroke="#9ca3af" stroke-width="1.5" stroke-dasharray="6 5"/><text>ideal</text>
</g>
</svg>
`))

// The plot is well-formed, all that is in it is within it, and the times fall from left to
// right.
func TestScalingPlot(t *testing.T) {
	t.Parallel()
	var points []scalingPoint
	for i, took := range []time.Duration{86 * time.Second, 44 * time.Second, 23 * time.Second, 11800 * time.Millisecond} {
		workers := 1 << i
		points = append(points, scalingPoint{
			workers: workers, took: took, bytes: 8 << 30, efficiency: 86 / (float64(workers) * took.Seconds()),
		})
	}
	svg, err := drawScaling(points, 100e6)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{">86.0 s<", ">11.8 s<", ">98 %<", ">50 s<", "8.6 GB", "100 MB/s"} {
		if !bytes.Contains(svg, []byte(want)) {
			t.Errorf("the plot lacks %q", want)
		}
	}
	type place struct{ x, y float64 }
	var circles []place
	for d := xml.NewDecoder(bytes.NewReader(svg)); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%v in\n%s", err, svg)
		}
		e, ok := token.(xml.StartElement)
		if !ok || e.Name.Local != "circle" {
			continue
		}
		var at place
		for _, a := range e.Attr {
			switch a.Name.Local {
			case "cx":
				_, _ = fmt.Sscan(a.Value, &at.x)
			case "cy":
				_, _ = fmt.Sscan(a.Value, &at.y)
			}
		}
		circles = append(circles, at)
	}
	if len(circles) != len(points) {
		t.Fatalf("%d points", len(circles))
	}
	for i, c := range circles {
		if c.x < plotLeft || c.x > plotRight || c.y < plotTop || c.y > plotBottom || i > 0 && (c.x <= circles[i-1].x || c.y <= circles[i-1].y) {
			t.Errorf("points at %v", circles)
		}
	}
	if t.Failed() {
		t.Logf("%s", svg)
	}
}
