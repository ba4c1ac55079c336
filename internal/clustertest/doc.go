// Package clustertest proves the service as operators run it: API and worker
// processes of their own, a real Redis and a real S3 server, which are killed,
// stopped and cut off while imports run. It has tests and nothing else.
//
// TestCluster is the widest: under every such disturbance each accepted import
// must reach the one right end. With -soak it runs for minutes:
//
//	go test -timeout 60m -v ./internal/clustertest -soak -soak.duration 5m -soak.imports 200
package clustertest
