package swiftstore

import (
	"strings"
	"testing"

	"vmimport/internal/fault"
)

func FuzzReply(f *testing.F) {
	f.Add(202, " \r\n\r\n"+`{"Response Status": "201 Created", "Response Body": "", "Etag": "\"8f48\"", "Last Modified": "x", "Errors": []}`)
	f.Add(202, `{"Response Status": "400 Bad Request", "Errors": [["/c/a", "Etag Mismatch"], ["/c/b", "401 Unauthorized"]]}`)
	f.Add(400, `{"Errors": [["/c/a"]]}`)
	f.Add(413, "Upload exceeds quota.")
	f.Add(202, `{"Response Status": "-1"}`)
	f.Fuzz(func(t *testing.T, status int, text string) {
		r := reply{status: status, text: []byte(text)}
		r.unwrap()
		r.tokenRefused()
		if e := fault.Of(r.fault("put")); e.Code == "" || e.Kind == fault.Internal || strings.Contains(e.Sentences(), "/c/a") {
			t.Errorf("%v", e)
		}
		if status != 202 && r.status != status {
			t.Errorf("%d has become %d", status, r.status)
		}
	})
}
