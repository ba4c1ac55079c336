// Package tracing sends the spans that the service makes to a collector, by OTLP over HTTP.
//
// It sets up what go.opentelemetry.io/otel hands to all who make spans. As long as Start was
// not called, or has no endpoint, nothing is recorded and nothing runs.
package tracing

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

// Options say where spans go, and whose they are.
type Options struct {
	// Endpoint is the collector's, without the path of traces: http://127.0.0.1:4318. Empty:
	// no spans are recorded.
	Endpoint string
	// Sample is the part of the traces that begin here which are kept, from 0 to 1. Those that
	// began elsewhere are kept if they are there.
	Sample float64

	Service  string // such as vmimport-worker
	Version  string
	Instance string // unique among the processes of the service; may be empty

	// OnError is told of spans that could not be sent; nil: nobody is.
	OnError func(error)
}

const (
	exportTimeout = 10 * time.Second
	tracesPath    = "v1/traces" // of an endpoint, as OTLP/HTTP has it
)

// Start has spans recorded and sent, for the whole process. What it returns sends those that
// wait, as long as its context lasts, and ends it.
func Start(ctx context.Context, o Options) (stop func(context.Context) error, err error) {
	if o.Endpoint == "" {
		return func(context.Context) error { return nil }, nil
	}
	target, err := url.JoinPath(o.Endpoint, tracesPath)
	if err != nil {
		return nil, fmt.Errorf("tracing endpoint: %w", err)
	}
	client := newClient()
	exporter, err := otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(target), otlptracehttp.WithHTTPClient(client))
	if err != nil {
		return nil, fmt.Errorf("start tracing: %w", err)
	}
	provider := sdktrace.NewTracerProvider(
		sdktrace.WithBatcher(exporter),
		sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.TraceIDRatioBased(o.Sample))),
		sdktrace.WithResource(o.resource()),
	)
	if o.OnError != nil {
		otel.SetErrorHandler(otel.ErrorHandlerFunc(o.OnError))
	}
	otel.SetTracerProvider(provider)
	otel.SetTextMapPropagator(propagation.TraceContext{})
	return func(ctx context.Context) error {
		defer client.CloseIdleConnections()
		if err := provider.Shutdown(ctx); err != nil {
			return fmt.Errorf("send the last spans: %w", err)
		}
		return nil
	}, nil
}

// resource is what all spans of the process have in common, by OpenTelemetry's names.
func (o *Options) resource() *resource.Resource {
	attributes := []attribute.KeyValue{
		attribute.String("service.name", o.Service),
		attribute.String("service.namespace", "vmimport"),
		attribute.String("service.version", o.Version),
	}
	if o.Instance != "" {
		attributes = append(attributes, attribute.String("service.instance.id", o.Instance))
	}
	return resource.NewSchemaless(attributes...)
}

// newClient honours no proxy variables and follows no redirects: spans go where the
// configuration says.
func newClient() *http.Client {
	return &http.Client{
		Transport:     &http.Transport{TLSHandshakeTimeout: exportTimeout, IdleConnTimeout: time.Minute},
		Timeout:       exportTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// Check sends nothing to a collector, in the form of spans, and fails if it does not take it.
func Check(ctx context.Context, endpoint string) error {
	target, err := url.JoinPath(endpoint, tracesPath)
	if err != nil {
		return fmt.Errorf("tracing endpoint: %w", err)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, target, bytes.NewReader(nil)) // no bytes are an empty message
	if err != nil {
		return fmt.Errorf("tracing endpoint: %w", err)
	}
	request.Header.Set("Content-Type", "application/x-protobuf")
	client := newClient()
	defer client.CloseIdleConnections()
	answer, err := client.Do(request)
	if err != nil {
		return err
	}
	_, _ = io.CopyN(io.Discard, answer.Body, 4<<10) // what it says besides is of no use
	_ = answer.Body.Close()
	if answer.StatusCode/100 != 2 {
		return fmt.Errorf("it answers %s", answer.Status)
	}
	return nil
}
