// Package aliyuntest drives the whole service through the ECS ImportImage API with the
// vendor's own clients, unmodified: the Go SDK of the first generation, and for JavaScript
// the generated ECS client and the generic RPC client. It has tests and nothing else.
//
// The clients for JavaScript are installed with
//
//	npm ci --ignore-scripts --prefix internal/aliyuntest/node
package aliyuntest
