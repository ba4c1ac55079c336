package aliyunsig

import (
	"fmt"
	"net/http"
)

// Refusal is an error as the client is to be told it.
type Refusal struct {
	Status  int    // of HTTP
	Code    string // what clients branch on
	Message string // may repeat what the client sent
}

// Error returns the code alone. The message is for the client: it can hold the whole of
// what was signed, a security token included, and has no place in a log.
func (r *Refusal) Error() string { return "request refused: " + r.Code }

func missing(name string) *Refusal {
	return refuse(http.StatusBadRequest, "MissingParameter",
		`An input parameter "%s" that is mandatory for processing the request is not supplied.`, name)
}

func invalid(name string) *Refusal {
	return refuse(http.StatusBadRequest, "InvalidParameter", `The specified parameter "%s" is not valid.`, name)
}

// misspelt is invalid with the code as the vendor has it for some parameters.
func misspelt(name string) *Refusal {
	r := invalid(name)
	r.Code = "InvalidParamater"
	return r
}

func incomplete(format string, args ...any) *Refusal {
	return refuse(http.StatusBadRequest, "IncompleteSignature", "The request signature does not conform to Aliyun standards. "+format, args...)
}

func refuse(status int, code, format string, args ...any) *Refusal {
	return &Refusal{status, code, fmt.Sprintf(format, args...)}
}
