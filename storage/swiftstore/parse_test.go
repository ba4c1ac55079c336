package swiftstore

import (
	"bytes"
	"crypto/md5"
	"math"
	"net/url"
	"strings"
	"testing"

	"vmimport/storage"
)

func TestParseManifest(t *testing.T) {
	t.Parallel()
	const seg = `"name":"/c/o","hash":"d41d8cd98f00b204e9800998ecf8427e"`
	for text, ok := range map[string]bool{
		`[]`:                            true,
		` [ {` + seg + `,"bytes":5} ] `: true,
		`[{` + seg + `,"bytes":0}]`:     true,
		`[{` + seg + `,"bytes":5,"range":"0-4"}]`: true,
		`[{"data":"aGVsbG8="}]`:                   true,
		``:                                        false,
		`{}`:                                      false,
		`null`:                                    false,
		`[`:                                       false,
		`[]]`:                                     false,
		`[] []`:                                   false,
		`[null]`:                                  false,
		`[1]`:                                     false,
		`[{}]`:                                    false,
		`[{` + seg + `}]`:                         false,
		`[{` + seg + `,"bytes":-1}]`:              false,
		`[{` + seg + `,"bytes":1e3}]`:             false,
		`[{` + seg + `,"bytes":"5"}]`:             false,
		`[{` + seg + `,"bytes":9223372036854775808}]`:  false,
		`[{` + seg + `,"bytes":5,"range":"0-5"}]`:      false,
		`[{` + seg + `,"bytes":5,"range":"4-3"}]`:      false,
		`[{` + seg + `,"bytes":5,"range":"-3"}]`:       false,
		`[{` + seg + `,"bytes":5,"range":"3-"}]`:       false,
		`[{` + seg + `,"bytes":5,"range":"+1-2"}]`:     false,
		`[{` + seg + `,"bytes":5,"range":""}]`:         false,
		`[{` + seg + `,"bytes":5,"range":"1-2,3-4"}]`:  false,
		`[{` + seg + `,"bytes":5,"sub_slo":"yes"}]`:    false,
		`[{"name":"/c/o","bytes":5}]`:                  false,
		`[{"name":"/c/o","bytes":5,"hash":"a\"b"}]`:    false,
		`[{"name":"/c/o","bytes":5,"hash":"a\r\nb"}]`:  false,
		`[{"name":"/c","bytes":5,"hash":"x"}]`:         false,
		`[{"name":"//o","bytes":5,"hash":"x"}]`:        false,
		`[{"name":"/c/../o","bytes":5,"hash":"x"}]`:    false,
		`[{"name":"/../c/o","bytes":5,"hash":"x"}]`:    false,
		`[{"name":"/c/o\u0000","bytes":5,"hash":"x"}]`: false,
		`[{"name":null,"bytes":5,"hash":"x"}]`:         false,
		`[{"data":""}]`:                                false,
		`[{"data":"&"}]`:                               false,
		`[{"data":"aGVsbG8=","name":"/c/o"}]`:          false,
	} {
		if _, err := parseManifest([]byte(text)); (err == nil) != ok {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// Whatever a manifest says, what is taken from it lies within objects of the account
// that have plain names.
func FuzzManifest(f *testing.F) {
	f.Add([]byte(`[{"name":"/c/o","hash":"x","bytes":5,"range":"1-3"},{"data":"aGVsbG8="},{"name":"/c/o","hash":"x","bytes":9,"sub_slo":true}]`))
	f.Add([]byte(`[{"name":"/c/../o","hash":"x","bytes":9223372036854775807,"range":"0-9223372036854775806"}]`))
	f.Fuzz(func(t *testing.T, text []byte) {
		entries, err := parseManifest(text)
		if err != nil && entries != nil || len(entries) > maxParts {
			t.Fatalf("%d entries, %v", len(entries), err)
		}
		for _, e := range entries {
			loc := storage.Location{API: "swift", Container: e.at.container, Name: e.at.name}
			switch {
			case e.off < 0 || e.n < 0 || e.size < 0 || e.off > e.size-e.n:
				t.Errorf("%d+%d of %d", e.off, e.n, e.size)
			case e.data != nil && (int64(len(e.data)) != e.size || e.manifest || e.at != place{}):
				t.Errorf("data: %+v", e)
			case e.data == nil && (!loc.Valid() || !validETag(e.etag) || e.at.version != ""):
				t.Errorf("%+v", e)
			}
			e.addTo(md5.New())
			if run := cut([]part{{size: e.size, n: e.size}}, e.off, e.n); len(run) > 1 || len(run) == 1 && (run[0].off != e.off || run[0].n != e.n) {
				t.Errorf("cut to %+v", run)
			}
		}
	})
}

func FuzzListing(f *testing.F) {
	f.Add([]byte(`[{"name":"o","hash":"x","bytes":5,"content_type":"x/y"},{"subdir":"x/"}]`))
	f.Fuzz(func(t *testing.T, text []byte) {
		page, err := parseListing(bytes.NewReader(text))
		if err != nil {
			return
		}
		for _, l := range page {
			p, err := l.part("c")
			if loc := (storage.Location{API: "swift", Container: p.at.container, Name: p.at.name}); err == nil && (!loc.Valid() || p.n < 0 || p.n != p.size || !validETag(p.etag)) {
				t.Errorf("%+v", p)
			}
		}
	})
}

func FuzzPrefix(f *testing.F) {
	f.Add("c%20c/pre%2Ffix")
	f.Fuzz(func(t *testing.T, header string) {
		container, _, ok := parsePrefix(header)
		if ok && (container == "" || strings.ContainsAny(container, "/\x00") || container == "..") {
			t.Errorf("container %q", container)
		}
	})
}

// What is escaped comes back the same, and is what servers of any kind leave alone.
func FuzzEscape(f *testing.F) {
	f.Add("a b%2F//ü?#&=;+")
	f.Fuzz(func(t *testing.T, s string) {
		for _, slashes := range []bool{true, false} {
			escaped := escape(s, slashes)
			if back, err := url.PathUnescape(escaped); err != nil || back != s {
				t.Errorf("%q: %q, %v", escaped, back, err)
			}
			if back, err := url.QueryUnescape(escaped); err != nil || back != s {
				t.Errorf("%q: %q, %v", escaped, back, err)
			}
			u, err := url.Parse("http://h/" + escaped)
			if err != nil || u.RequestURI() != "/"+escaped {
				t.Errorf("%q: sent as %q, %v", escaped, u.RequestURI(), err)
			}
		}
	})
}

// cut gives just the bytes that were asked for, however parts lie.
func TestCut(t *testing.T) {
	t.Parallel()
	parts := []part{{off: 10, n: 3}, {off: 0, n: 1}, {off: 5, n: 4}}
	flat := func(parts []part) string {
		var b strings.Builder
		for _, p := range parts {
			for i := range p.n {
				b.WriteByte(byte('a' + p.off + i))
			}
		}
		return b.String()
	}
	whole := flat(parts)
	for off := range int64(len(whole)) {
		for n := range int64(len(whole)) - off {
			if got := flat(cut(parts, off, n+1)); got != whole[off:off+n+1] {
				t.Errorf("%d+%d: %q, want %q", off, n+1, got, whole[off:off+n+1])
			}
		}
	}
	if _, err := total([]part{{n: math.MaxInt64}, {n: 1}}); err == nil {
		t.Error("more bytes than there can be")
	}
}
