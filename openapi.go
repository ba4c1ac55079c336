// Package vmimport holds what the repository publishes as a whole: the
// description of its HTTP interface.
package vmimport

import _ "embed"

// OpenAPI is openapi.yaml, the OpenAPI 3.0.3 description of everything that the
// API process serves.
//
//go:embed openapi.yaml
var OpenAPI []byte
