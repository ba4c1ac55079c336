package aliyun

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"net/http"
	"strings"

	"github.com/labstack/echo/v4"

	"vmimport/internal/audit"
	"vmimport/internal/auth/aliyunsig"
)

// form is how an answer is encoded. Fields of answers have the names that they have on
// the wire, so that one value makes both.
type form string

const (
	formXML     form = "XML"
	formJSON    form = "JSON"
	formUnknown form = "" // asked for as something else; answered as XML
)

// formOf says how the answer to r is to be encoded. Before r was parsed, or where that is
// not possible, signed is nil; then the query alone decides.
func formOf(r *http.Request, signed *aliyunsig.Request) form {
	acs3 := strings.HasPrefix(r.Header.Get(echo.HeaderAuthorization), "ACS3-")
	asked := r.URL.Query().Get("Format")
	if signed != nil {
		acs3, asked = signed.Scheme == aliyunsig.ACS3, signed.Params["Format"]
	}
	switch {
	case strings.EqualFold(asked, string(formJSON)):
		return formJSON
	case strings.EqualFold(asked, string(formXML)):
		return formXML
	case asked != "":
		return formUnknown
	case acs3 && !wantsXML(r.Header.Get(echo.HeaderAccept)):
		return formJSON
	}
	return formXML
}

// wantsXML reports whether an Accept header names XML and neither JSON nor anything.
func wantsXML(accept string) bool {
	return strings.Contains(accept, "xml") && !strings.Contains(accept, "json") && !strings.Contains(accept, "*/*")
}

func (f form) check() error {
	if f == formUnknown {
		return errFormat
	}
	return nil
}

// base is what every answer begins with.
type base struct{ RequestId string }

// write sends an answer whose element is called name in XML.
func (cl *call) write(c echo.Context, status int, name string, answer any) error {
	c.Response().Header().Set("x-acs-request-id", cl.requestID)
	body := &bytes.Buffer{}
	contentType := "application/json;charset=utf-8"
	var err error
	if cl.form == formJSON {
		enc := json.NewEncoder(body)
		enc.SetEscapeHTML(false) // strings to sign are full of &
		err = enc.Encode(answer)
	} else {
		contentType = "text/xml;charset=utf-8"
		body.WriteString(xml.Header)
		err = xml.NewEncoder(body).EncodeElement(answer, xml.StartElement{Name: xml.Name{Local: name}})
	}
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	return c.Blob(status, contentType, bytes.TrimSpace(body.Bytes()))
}

// errorAnswer is the answer to what is refused, or goes wrong. All of it is text: one of
// the vendor's clients panics on anything else.
type errorAnswer struct {
	base
	HostId, Code, Message, Recommend string
}

// WriteError answers with the problem that err is.
func (d *Dialect) WriteError(c echo.Context, err error) error {
	cl, ok := c.Get(callKey).(*call)
	if !ok {
		cl = &call{d: d, http: c.Request(), requestID: d.opts.NewRequestID(), form: formOf(c.Request(), nil)}
	}
	p := problemOf(err)
	annotate(c, "code", p.code)
	audit.From(c.Request().Context()).Fault = p.code
	if p.status == http.StatusServiceUnavailable {
		c.Response().Header().Set(echo.HeaderRetryAfter, retryAfter)
	}
	return cl.write(c, p.status, "Error", errorAnswer{cl.base(), cl.http.Host, p.code, p.message, p.recommend})
}

// retryAfter is when to come back, in seconds: about what a failover takes.
const retryAfter = "10"
