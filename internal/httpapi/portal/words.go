package portal

import (
	"embed"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/labstack/echo/v4"
)

//go:embed words
var wordFiles embed.FS

// language is one that the pages are written in, as HTML's lang has it.
type language string

const (
	english  language = "en"
	japanese language = "ja"
)

// catalog is all that the pages say in one language.
type catalog struct {
	language
	words map[string]string // {0}, {1} are places for arguments
	// faults says in the language what the API says in English, by the code.
	faults map[string]faultWords
	zone   *time.Location // of times, until the script puts them into the viewer's own
	dates  string         // layout of time.Format
}

// faultWords is one failure.
type faultWords struct {
	Message string `json:"message"`
	Remedy  string `json:"remedy,omitempty"`
}

// catalogs are those of all languages.
var catalogs = map[language]*catalog{
	english:  mustCatalog(english, time.UTC, "2 Jan 2006, 15:04 MST"),
	japanese: mustCatalog(japanese, time.FixedZone("JST", 9*60*60), "2006年1月2日 15:04 MST"),
}

// mustCatalog reads an embedded catalog, which tests have read before.
func mustCatalog(l language, zone *time.Location, dates string) *catalog {
	c := &catalog{language: l, zone: zone, dates: dates, faults: map[string]faultWords{}}
	mustRead("words/"+string(l)+".json", &c.words)
	if l != english {
		mustRead("words/faults."+string(l)+".json", &c.faults)
	}
	return c
}

func mustRead(name string, into any) {
	b, err := wordFiles.ReadFile(name)
	if err == nil {
		err = json.Unmarshal(b, into)
	}
	if err != nil {
		panic(fmt.Sprintf("portal: %s: %v", name, err))
	}
}

// words returns the catalog for a request: of the language that was chosen, else of the
// one that the browser likes best.
func (p *Portal) words(c echo.Context) *catalog {
	if cookie, err := c.Cookie(languageCookie); err == nil {
		if chosen := catalogs[language(cookie.Value)]; chosen != nil {
			return chosen
		}
	}
	return catalogs[preferred(c.Request().Header.Get("Accept-Language"))]
}

// preferred reads an Accept-Language, RFC 9110 section 12.5.4. What it cannot read is
// passed over.
func preferred(header string) language {
	best, weight := english, 0.0
	for part := range strings.SplitSeq(header, ",") {
		tag, params, _ := strings.Cut(strings.TrimSpace(part), ";")
		primary, _, _ := strings.Cut(strings.ToLower(strings.TrimSpace(tag)), "-")
		q := 1.0
		if v, ok := strings.CutPrefix(strings.TrimSpace(params), "q="); ok {
			var err error
			if q, err = strconv.ParseFloat(v, 64); err != nil {
				continue
			}
		}
		if catalogs[language(primary)] != nil && q > weight {
			best, weight = language(primary), q
		}
	}
	return best
}

// text returns a text with its arguments in place. A word of the API that the catalog
// does not know is shown as it is.
func (c *catalog) text(key string, args ...any) string {
	s, ok := c.words[key]
	if !ok {
		return key[strings.LastIndexByte(key, '.')+1:]
	}
	for i, arg := range args {
		s = strings.ReplaceAll(s, "{"+strconv.Itoa(i)+"}", fmt.Sprint(arg))
	}
	return s
}

// failureText is a failure in a reader's language.
type failureText struct {
	failure
	// Original is the API's own sentence, if the message is not.
	Original string
}

// failure puts a failure into the language; nil stays nil.
func (c *catalog) failure(f *failure) *failureText {
	if f == nil {
		return nil
	}
	t := &failureText{failure: *f}
	if own, ok := c.faults[f.Code]; ok {
		t.Original = strings.TrimSpace(f.Message + " " + f.Remedy)
		t.Message, t.Remedy = own.Message, own.Remedy
	}
	return t
}

// refusal puts what the API said of a request into the language, by the API's code.
// original is its own sentence, if the message is not.
func (c *catalog) refusal(k kind, said *apiError) (message, original string) {
	if own, ok := c.faults["api."+string(k.Kind)+"."+said.Code]; ok {
		return own.Message, said.Message
	}
	if own, ok := c.faults["api."+said.Code]; ok {
		return own.Message, said.Message
	}
	return said.Message, ""
}

// bytes is a size in binary units, of three digits.
func (c *catalog) bytes(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, unit := float64(n)/1024, 0
	for v >= 1023.5 && unit < len(units)-1 {
		v, unit = v/1024, unit+1
	}
	digits := 0
	switch {
	case v < 9.995:
		digits = 2
	case v < 99.95:
		digits = 1
	}
	return fmt.Sprintf("%.*f %ciB", digits, v, units[unit])
}

// left is about how long something still takes.
func (c *catalog) left(d time.Duration) string {
	switch minutes := int(d.Round(time.Minute) / time.Minute); {
	case d <= 0:
		return ""
	case d < time.Minute:
		return c.text("left.seconds")
	case minutes < 60:
		return c.text("left.minutes", minutes)
	case minutes < 24*60:
		return c.text("left.hours", minutes/60, minutes%60)
	default:
		return c.text("left.days", (minutes+12*60)/(24*60))
	}
}

// took is how long something lasted.
func (c *catalog) took(d time.Duration) string {
	switch s := int(d.Round(time.Second) / time.Second); {
	case s < 60:
		return c.text("took.seconds", s)
	case s < 60*60:
		return c.text("took.minutes", s/60, s%60)
	default:
		return c.text("took.hours", s/3600, s/60%60)
	}
}

// date is a time for people who have no script.
func (c *catalog) date(t time.Time) string { return t.In(c.zone).Format(c.dates) }
