package httpapi

import (
	"context"
	"errors"
	"net/http"

	"github.com/labstack/echo/v4"
	"github.com/rs/zerolog"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"vmimport/internal/fault"
)

// span begins the span of a request, and returns what ends it. Only a trusted proxy is believed
// which trace it belongs to: with that comes whether the trace is kept, here and in the workers.
// A stream lasts as long as somebody looks, and is none. Attributes are named as OpenTelemetry
// names them.
func (f *frontend) span(ctx context.Context, c echo.Context, requestID string) (context.Context, func(err error, cut bool)) {
	if f.opts.Tracer == nil || quiet[c.Path()] || f.streams[c.Path()] {
		return ctx, func(error, bool) {}
	}
	if from(c.Request(), f.opts.TrustedProxies) {
		ctx = propagation.TraceContext{}.Extract(ctx, propagation.HeaderCarrier(c.Request().Header))
	}
	name := method(c)
	attributes := []attribute.KeyValue{attribute.String("http.request.method", method(c)), attribute.String("vmimport.request_id", requestID)}
	if path := c.Path(); path != "" {
		name += " " + path
		attributes = append(attributes, attribute.String("http.route", path))
	}
	ctx, span := f.opts.Tracer.Start(ctx, name, trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(attributes...))
	if at := span.SpanContext(); at.IsSampled() {
		zerolog.Ctx(ctx).UpdateContext(func(l zerolog.Context) zerolog.Context { return l.Str("trace_id", at.TraceID().String()) })
	}
	return ctx, func(err error, cut bool) {
		status := c.Response().Status
		span.SetAttributes(attribute.Int("http.response.status_code", status))
		if e, ok := errors.AsType[*fault.Error](err); ok {
			span.SetAttributes(attribute.String("error.type", e.Code))
		}
		if cut || status >= http.StatusInternalServerError {
			span.SetStatus(codes.Error, "")
		}
		span.End()
	}
}
